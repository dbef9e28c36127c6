"""Name -> model: the one door to the package's models and to timm's."""

import inspect
from collections.abc import Sequence
from typing import Any

from torch import nn

from zoo import registry
from zoo.backbone import Backbone, FeatureExtractor
from zoo.errors import BadInput, BadWeights, UnknownModel
from zoo.weights import converted, load_weights, read_state_dict


def create_model(
    name: str,
    pretrained: bool = False,
    *,
    num_classes: int | None = None,
    in_chans: int = 3,
    img_size: int | Sequence[int] | None = None,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
    global_pool: str | None = None,
    checkpoint_path: str | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build a registered model, or any of timm's as `"timm/<name>"`.

    Args:
        name: A name of `zoo.list_models()`, or `"timm/..."`.
        pretrained: Load the first of the published checkpoints that facts give an address for. A
            classifier for another number of classes starts fresh; another number of image channels
            takes the published filters summed or repeated.
        num_classes: Number of logits, 0 for none; by default as published.
        in_chans: Channels of the image.
        img_size: Pixels, one number or height and width; only for models with parameters that
            depend on the size (any size can be fed without it).
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block.
        features_only: Return a `FeatureExtractor`: a list of maps instead of logits.
        out_indices: Levels of the pyramid; only with `features_only`.
        global_pool: `"avg"`, `"max"`, or `""` for none; by default as published.
        checkpoint_path: Weights to load in the end, in any published key style.
        **kwargs: What only this family takes.

    Raises:
        UnknownModel: No such model; the message names the nearest.
        BadInput: An argument that the model does not take, or a value that cannot work.
        BadWeights: Weights that cannot be had or do not fit.
    """
    if out_indices is not None and not features_only:
        raise BadInput("out_indices has an effect only with features_only=True")
    given = {
        "num_classes": num_classes,
        "img_size": img_size,
        "global_pool": global_pool,
        **kwargs,
    }
    arguments = {key: value for key, value in given.items() if value is not None}
    arguments |= {"in_chans": in_chans, "drop_rate": drop_rate, "drop_path_rate": drop_path_rate}
    if name.startswith("timm/"):
        return _from_timm(name, pretrained, features_only, out_indices, checkpoint_path, arguments)
    build = registry.get_builder(name)
    _check_arguments(name, build, arguments)
    model = build(**arguments)
    if pretrained:
        _load_published(model, name)
    if features_only:
        model = FeatureExtractor(model, out_indices)
    if checkpoint_path is not None:
        load_weights(model, checkpoint_path)
    return model


def _check_arguments(name: str, build: Any, arguments: dict[str, Any]) -> None:
    _check_rates(arguments)
    taken = inspect.signature(build).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
        return
    for key in arguments:
        if key in taken or arguments[key] in (0.0, None):
            continue
        if key == "img_size":
            raise BadInput(f"{name} has nothing that depends on img_size; feed images of any size")
        others = ", ".join(sorted(taken))
        raise BadInput(f"{name} takes no argument {key!r}; it takes {others}")


def _check_rates(arguments: dict[str, Any]) -> None:
    for key in ("drop_rate", "drop_path_rate"):
        if not 0 <= arguments[key] < 1:
            raise BadInput(f"{key}={arguments[key]}: must be at least 0 and less than 1")
    for key, least in (("in_chans", 1), ("num_classes", 0)):
        if key in arguments and not (isinstance(arguments[key], int) and arguments[key] >= least):
            raise BadInput(f"{key}={arguments[key]!r}: must be a whole number from {least}")


def _load_published(model: Backbone, name: str) -> None:
    entries = registry.get_spec(name).weights
    entry = next((entry for entry in entries if "url" in entry), None)
    if entry is None:
        pages = " or ".join(entry["page"] for entry in entries if "page" in entry)
        way_out = (
            f"fetch them from {pages} and give checkpoint_path" if pages else "pretrained=False"
        )
        raise BadWeights(f"{name} has no published weights that a program can fetch; {way_out}")
    state = converted(read_state_dict(entry["url"], entry.get("sha256")), model)
    own = model.state_dict()
    for classifier in model.classifier_names():
        for key in (f"{classifier}.weight", f"{classifier}.bias"):
            if key in state and (key not in own or own[key].shape != state[key].shape):
                del state[key]
                state |= {key: own[key]} if key in own else {}
    first = f"{model.first_conv_name()}.weight"
    if first in state and state[first].shape[1] != model.in_chans:
        from timm.models import adapt_input_conv

        state[first] = adapt_input_conv(model.in_chans, state[first])
    load_weights(model, state)


def _from_timm(
    name: str,
    pretrained: bool,
    features_only: bool,
    out_indices: int | Sequence[int] | None,
    checkpoint_path: str | None,
    arguments: dict[str, Any],
) -> nn.Module:
    import difflib

    import timm

    bare = name.removeprefix("timm/")
    if not timm.is_model(bare):
        near = difflib.get_close_matches(bare.split(".")[0], timm.list_models(), n=3)
        raise UnknownModel(
            f"timm has no model {bare!r}" + (f"; near: {', '.join(near)}" if near else "")
        )
    if arguments["drop_rate"] == 0:
        del arguments["drop_rate"]
    if arguments["drop_path_rate"] == 0:
        del arguments["drop_path_rate"]
    if features_only:
        arguments |= {"features_only": True}
        arguments |= {"out_indices": out_indices} if out_indices is not None else {}
    try:
        model = timm.create_model(bare, pretrained=pretrained, **arguments)
    except (TypeError, RuntimeError, AssertionError) as error:
        raise BadInput(f"timm cannot build {bare!r}: {error}") from error
    if checkpoint_path is not None:
        load_weights(model, checkpoint_path)
    return model
