"""Name -> model: the one door to the package's models and to timm's."""

import inspect
from collections.abc import Sequence
from typing import Any

from torch import nn

from zoo import registry
from zoo.backbone import Backbone, FeatureExtractor
from zoo.blocks.sizes import whole_number
from zoo.errors import BadInput, BadWeights, UnknownModel
from zoo.weights import converted, load_weights, read_state_dict


def create_model(
    name: str,
    pretrained: bool = False,
    *,
    num_classes: int | None = None,
    in_chans: int | None = None,
    img_size: int | Sequence[int] | None = None,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
    global_pool: str | None = None,
    checkpoint_path: str | None = None,
    encoder: str | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build a registered model, any of timm's as `"timm/<name>"`, or a decoder on a backbone.

    Args:
        name: A name of `zoo.list_models()`, `"timm/..."`, or one of `zoo.registry.DECODERS`.
        pretrained: Load the first of the published checkpoints that facts give an address for. A
            classifier for another number of classes starts fresh; another number of image channels
            takes the published filters summed or repeated.
        num_classes: Number of logits, 0 for none; by default as published.
        in_chans: Channels of the image; by default as published.
        img_size: Pixels, one number or height and width; only for models with parameters that
            depend on the size (any size can be fed without it).
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block.
        features_only: Return a `FeatureExtractor`: a list of maps instead of logits.
        out_indices: Levels of the pyramid; only with `features_only`.
        global_pool: `"avg"`, `"max"`, or `""` for none; by default as published.
        checkpoint_path: Weights to load in the end, in any published key style.
        encoder: The backbone of a decoder, `"timm/..."` or ours; `pretrained` is about it then.
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
    arguments |= {"in_chans": _channels(name) if in_chans is None else in_chans}
    arguments |= {"drop_rate": drop_rate, "drop_path_rate": drop_path_rate}
    _check_values(arguments)
    if name in registry.DECODERS:
        model = _with_decoder(name, encoder, pretrained, features_only, arguments)
        if checkpoint_path is not None:
            load_weights(model, checkpoint_path)
        return model
    build = None if name.startswith("timm/") else registry.get_builder(name)
    if encoder is not None:
        raise BadInput(
            f"encoder={encoder} has no effect on {name}; it is for {', '.join(registry.DECODERS)}"
        )
    if build is None:
        return _from_timm(name, pretrained, features_only, out_indices, checkpoint_path, arguments)
    _check_arguments(name, build, arguments)
    if features_only and "dense" in inspect.signature(build).parameters:
        arguments.setdefault("dense", True)  # a family whose public dense code computes otherwise
    model = build(**arguments)
    if pretrained:
        _load_published(model, name)
    if features_only:
        model = FeatureExtractor(model, out_indices)
    if checkpoint_path is not None:
        load_weights(model, checkpoint_path)
    return model


def _channels(name: str) -> int:
    """Return the channels of the images that a model was published for, or else 3."""
    if name.startswith("timm/") or not registry.is_model(name):
        return 3
    return registry.get_spec(name).facts.get("input", {}).get("size", (3,))[0]


def _with_decoder(
    name: str, encoder: str | None, pretrained: bool, features_only: bool, given: dict[str, Any]
) -> nn.Module:
    from zoo import decoders

    given = {key: value for key, value in given.items() if key != "drop_rate" or value}
    if given["drop_path_rate"] == 0:
        del given["drop_path_rate"]
    for key in ("img_size", "global_pool", "drop_rate"):
        if key in given:
            raise BadInput(f"{name} takes no argument {key!r}")
    if features_only:
        raise BadInput(f"features_only=True: {name} draws maps; take the features of its encoder")
    given.setdefault("num_classes", None)
    return decoders.create(name, encoder=encoder, pretrained=pretrained, **given)


def _check_arguments(name: str, build: Any, arguments: dict[str, Any]) -> None:
    taken = inspect.signature(build).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
        return
    for key in [key for key in arguments if key not in taken]:
        if key in ("drop_rate", "drop_path_rate") and arguments[key] == 0:
            del arguments[key]
            continue
        if key == "img_size":
            raise BadInput(f"{name} has nothing that depends on img_size; feed images of any size")
        others = ", ".join(sorted(taken))
        raise BadInput(f"{name} takes no argument {key!r}; it takes {others}")


def _check_values(arguments: dict[str, Any]) -> None:
    for key in ("drop_rate", "drop_path_rate"):
        rate = arguments[key]
        if not isinstance(rate, int | float) or not 0 <= rate < 1:
            raise BadInput(f"{key}={rate!r}: must be a number from 0, less than 1")
    for key, least in (("in_chans", 1), ("num_classes", 0)):
        if key in arguments:
            whole_number(arguments[key], key, least)


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
