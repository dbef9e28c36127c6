"""`create_model`: one function for our models, timm's models, and models on a backbone."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from zoo import registry
from zoo.build import RATES, build_backbone, build_timm, check_values
from zoo.errors import BadInput, ZooError, first_line
from zoo.hub import CONFIG
from zoo.hub_files import is_repository
from zoo.merging import with_base
from zoo.weights import load_content, opened, read_source


def create_model(
    name: str,
    pretrained: bool | None = None,
    *,
    num_classes: int | None = None,
    in_chans: int | None = None,
    img_size: int | Sequence[int] | None = None,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
    global_pool: str | None = None,
    checkpoint_path: str | os.PathLike | Mapping[str, Any] | None = None,
    base: str | os.PathLike | None = None,
    encoder: str | None = None,
    widths: Mapping[str, int] | Sequence[int] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build a registered model, one of timm's, a decoder or detector, or a model of the hub.

    Args:
        name: A name of `zoo.list_models()`, `"timm/..."`, or one of `zoo.registry.ON_BACKBONES`:
            decoders, detectors and retrieval models.
            `name.tag` is a model with one of its published checkpoints, and that one's classes.
            `"hf-hub:owner/name"` is the model in a repository of the Hugging Face hub, with its
            weights; the names of its classes are in `class_names`.
        pretrained: Load the published checkpoint of the tag, or the first that has an address. If
            `num_classes` or `in_chans` is given and differs from the checkpoint, the classifier
            starts with random weights, and the filters of the first layer are summed or repeated.
            None loads weights for `"hf-hub:..."` only.
        num_classes: Number of logits, 0 for none; None keeps that of the published model.
        in_chans: Channels of the image; None keeps that of the published model.
        img_size: Image size in pixels, one number or (height, width); only for models with
            parameters that depend on it. Models support other sizes without it.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block.
        features_only: Return a `FeatureExtractor`: a list of feature maps instead of logits.
        out_indices: Levels of the feature pyramid; only with `features_only`.
        global_pool: `"avg"`, `"max"`, or `""` for none; None keeps the default of the model.
        checkpoint_path: A file, a run folder or an address of weights to load at the end, in any
            published key style; adapted like published weights. A decoder takes weights of the
            whole model or of its encoder. A run of adapters (`train.adapt`) needs its base, too.
        base: The base of the adapters in `checkpoint_path`: a file, a run folder or an address;
            None for where training found it.
        encoder: Backbone (`"timm/..."` or a zoo model) of a model of `zoo.registry.ON_BACKBONES`;
            `pretrained` then applies to the encoder.
        widths: Widths of a pruned model (`zoo prune`): number of units of each narrower group,
            and 0 for each dropped block. None takes those of the run that `checkpoint_path` names.
            A sequence is WaveMix's own argument of this name.
        **kwargs: Arguments of one family only.

    Raises:
        UnknownModel: No such model; the message suggests the nearest name.
        BadInput: The model does not have an argument, or a value is invalid.
        BadWeights: The weights cannot be fetched, or do not fit.
    """
    if out_indices is not None and not features_only:
        raise BadInput("out_indices has no effect without features_only=True; leave it out")
    arguments = {
        "num_classes": num_classes,
        "in_chans": in_chans,
        "img_size": img_size,
        "drop_rate": drop_rate,
        "drop_path_rate": drop_path_rate,
        "global_pool": global_pool,
        **kwargs,
    }
    arguments = {key: value for key, value in arguments.items() if value is not None}
    check_values(arguments)
    if widths is not None and widths != {}:
        if pretrained and isinstance(widths, Mapping):
            raise BadInput(
                "pretrained=True loads published weights, which have the full widths; leave widths"
                " or pretrained out"
            )
        arguments["widths"] = widths
    if base is not None:
        if checkpoint_path is None:
            raise BadInput(f"base={base} has no effect without checkpoint_path; leave it out")
        content, named = opened(checkpoint_path)
        checkpoint_path = with_base(content, os.fspath(base), named)
    if is_repository(name):
        arguments |= {"encoder": encoder} if encoder is not None else {}
        arguments |= {"features_only": True, "out_indices": out_indices} if features_only else {}
        given = _without_zero_rates(arguments)
        return _from_repository(name, pretrained is not False, checkpoint_path, given)
    pretrained = bool(pretrained)
    if name in registry.ON_BACKBONES:
        if features_only:
            raise BadInput(f"features_only=True has no effect on {name}; use it on its encoder")
        # They take a second to import: they register backbones with timm.
        from zoo import decoders, detectors, retrieval

        given = {"encoder": encoder, "pretrained": pretrained, **_without_zero_rates(arguments)}
        kind: Any = {"decoders": decoders, "detectors": detectors, "retrievers": retrieval}[
            registry.get_spec(name).family
        ]
        return kind.create(name, checkpoint_path=checkpoint_path, **given)
    spec = registry.get_spec(name)
    if encoder is not None:
        raise BadInput(
            f"encoder={encoder} has no effect on {name}; it is for"
            f" {', '.join(registry.ON_BACKBONES)}"
        )
    arguments |= {"features_only": features_only, "out_indices": out_indices}
    build = _build_timm if spec.family == "timm" else build_backbone
    return build(spec, pretrained, checkpoint_path=checkpoint_path, **arguments)


def _from_repository(
    name: str,
    with_weights: bool,
    checkpoint_path: str | os.PathLike | Mapping[str, Any] | None,
    given: dict[str, Any],
) -> nn.Module:
    """Build the model of a repository on the hub; `given` overrides what the repository says."""
    if checkpoint_path is not None and with_weights:
        raise BadInput(
            f"{name} and checkpoint_path both name weights; leave one out, or give pretrained=False"
        )
    content = read_source(name)[1]
    model, data = content["model"], content["data"]
    fits = not given.get("features_only") and all(
        given.get(key, model[key]) == model[key] for key in ("num_classes", "in_chans")
    )
    weights: Any = checkpoint_path if not with_weights else None if fits else content
    try:
        built: Any = create_model(**{**model, **given}, checkpoint_path=weights)
    except ZooError as error:
        raise type(error)(f"{name}: {error}") from error
    except Exception as error:  # constructors do not check every argument
        raise BadInput(
            f"{name}: {model['name']} cannot be built from its {CONFIG}: {first_line(error)}"
        ) from error
    if with_weights and fits:
        load_content(built, content, name)
    if given.get("num_classes", model["num_classes"]) == model["num_classes"]:
        built.class_names = data["class_names"]
    return built


def _without_zero_rates(arguments: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in arguments.items() if key not in RATES or value != 0}


def _build_timm(
    spec: registry.ModelSpec,
    pretrained: bool,
    *,
    features_only: bool,
    out_indices: int | Sequence[int] | None,
    checkpoint_path: str | os.PathLike | Mapping[str, Any] | None,
    **arguments: Any,
) -> nn.Module:
    given = _without_zero_rates(arguments)
    if "widths" in given:
        raise BadInput(f"{spec.name} cannot be narrowed: it is a model of timm; leave widths out")
    return build_timm(
        spec.name.removeprefix(registry.TIMM),
        pretrained,
        checkpoint_path=checkpoint_path,
        features_only=features_only,
        out_indices=out_indices,
        **given,
    )
