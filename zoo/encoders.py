"""Backbones as encoders: the feature pyramid below a decoder or a detector."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
from torch import nn

from zoo import registry
from zoo.build import build_timm
from zoo.errors import BadInput, first_line
from zoo.fine_tuning import load_to_fine_tune, say
from zoo.narrowing import apply_widths, saved_widths
from zoo.timm_bridge import bridged_name  # registers our backbones with timm
from zoo.weights import opened, state_for, unwrap


def required(name: str, encoder: str | None, kwargs: Mapping[str, Any]) -> str:
    """Return the encoder of a decoder or a detector.

    Args:
        name: Name of the decoder or the detector.
        encoder: The encoder that the user gave.
        kwargs: The other arguments.

    Raises:
        BadInput: There is no encoder, or an argument is one of a classifier.
    """
    if encoder is None:
        raise BadInput(
            f"{name} needs a backbone: set encoder (on the command line model.encoder), for example"
            " to mobilenetv2_100"
        )
    for key in ("img_size", "global_pool", "drop_rate"):
        if key in kwargs:
            raise BadInput(f"{key}={kwargs[key]!r} has no effect on {name}; leave it out")
    return encoder


def build(encoder: str, levels: Sequence[int], *, pretrained: bool, in_chans: int) -> Any:
    """Return a backbone as a feature pyramid with `feature_info`.

    Args:
        encoder: Name of the backbone.
        levels: The levels that it returns.
        pretrained: Load its published weights.
        in_chans: Channels of the image.
    """
    return timm.create_model(
        name_in_timm(encoder),
        pretrained=pretrained,
        features_only=True,
        out_indices=tuple(levels),
        in_chans=in_chans,
    )


def no_decay_names(model: nn.Module) -> set[str]:
    """Return the names of tables and scales that are exempt from weight decay."""
    return {
        f"{path}.{name}"
        for path, module in model.named_modules()
        for name in getattr(module, "no_decay", ())
    }


def finish(
    model: Any,
    pyramid: Any,
    encoder: str,
    checkpoint_path: str | os.PathLike | None,
    *,
    new_classes: bool,
    new_channels: bool,
    widths: Mapping[str, int] | None = None,
) -> None:
    """Cut a new model to its widths, and load weights of all of it or of its encoder.

    Args:
        model: A model with `encoder` and `in_chans`.
        pyramid: The feature pyramid in it.
        encoder: Name of the backbone.
        checkpoint_path: The weights; None leaves the model as it is.
        new_classes: Whether the number of classes was given.
        new_channels: Whether the number of channels was given.
        widths: Widths of a pruned model; None for those that the weights have.

    Raises:
        BadInput: The model has no such width.
        BadWeights: The weights cannot be read, or do not fit.
    """
    if widths:
        apply_widths(model, widths)
    if checkpoint_path is None:
        return
    content, named = opened(checkpoint_path)
    if widths is None and (saved := saved_widths(content)):
        apply_widths(model, saved)
    sizes = {"new_classes": new_classes, "new_channels": new_channels}
    if any(key.startswith("encoder.") for key in unwrap(content, named)):
        load_to_fine_tune(model, state_for(model, content, named), named, **sizes)
    else:
        _load_encoder(pyramid, encoder, content, named, model.in_chans, new_channels)


def _load_encoder(
    model: Any,
    encoder: str,
    content: Mapping[str, Any],
    named: str,
    in_chans: int,
    new_channels: bool,
) -> None:
    """Load the weights of a classification backbone into an encoder.

    Args:
        model: The feature pyramid inside the encoder.
        encoder: Its name.
        content: Everything in the checkpoint.
        named: Name of the source, for messages.
        in_chans: Channels of the image.
        new_channels: Whether they were asked for.
    """
    if registry.is_timm(encoder):  # its names in a pyramid differ from those in the whole model
        levels = model.feature_info.out_indices
        given: dict[str, Any] = {"in_chans": in_chans} if new_channels else {}
        bare = registry.timm_name(encoder)
        donor = build_timm(
            bare, checkpoint_path=content, features_only=True, out_indices=levels, **given
        )
        model.load_state_dict(donor.state_dict())
    else:
        state = state_for(model, content, named)
        load_to_fine_tune(model, state, named, new_classes=False, new_channels=new_channels)
    say(f"{named}: the encoder is loaded, the rest starts fresh")


def name_in_timm(encoder: str) -> str:
    """Return the name by which timm, and so segmentation_models_pytorch, knows a backbone.

    Raises:
        UnknownModel: There is no such model.
    """
    if registry.is_timm(encoder):
        return registry.timm_name(encoder)
    return bridged_name(registry.get_spec(encoder).full_name)


def strides_of(encoder: str) -> list[int]:
    """Return the feature strides of a backbone, which is built on the meta device.

    Raises:
        BadInput: The model is not a classification backbone, or has no feature pyramid.
        UnknownModel: The backbone does not exist.
    """
    if not registry.is_timm(encoder):
        task = registry.get_spec(encoder).task
        if task != "classification":
            raise BadInput(f"encoder={encoder} is for {task}; choose one for classification")
    try:
        with torch.device("meta"):
            model: Any = timm.create_model(name_in_timm(encoder), features_only=True)
    except BadInput:
        raise
    except (RuntimeError, AssertionError) as error:  # some of timm's models have no pyramid
        raise BadInput(f"encoder={encoder} has no feature pyramid: {first_line(error)}") from error
    reductions: Sequence[int] = model.feature_info.reduction()
    return list(reductions)
