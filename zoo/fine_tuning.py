"""Load weights into a model of another number of classes or image channels.

The same rules hold for published weights and for files: the classifier starts fresh, the filters of
the first layer are adapted, and one line says so.
"""

import logging
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.keys import State
from zoo.weights import classifier_names, fill

log = logging.getLogger("zoo.weights")


def load_to_fine_tune(
    model: nn.Module,
    state: State,
    named: str,
    *,
    new_classes: bool,
    new_channels: bool,
) -> None:
    """Load weights of another number of classes or image channels; one line says what changed.

    A classifier of another size keeps its random weights. The filters of the first layer are summed
    for one channel, and repeated for several.

    Args:
        model: The model, whose own sizes were asked for.
        state: Weights under its names.
        named: Name of the source, for messages.
        new_classes: Whether the number of classes was asked for.
        new_channels: Whether the number of channels was asked for.

    Raises:
        BadWeights: Anything else does not fit.
    """
    own, notes, state = model.state_dict(), [], dict(state)
    if new_classes:
        notes += _fresh_classifiers(state, own, classifier_names(model))
    first = f"{first_layer_name(model)}.weight"
    before, after = state.get(first), own.get(first)
    if new_channels and before is not None and after is not None and _resembles(before, after):
        state[first] = adapted_filters(before, after.shape[1])
        how = "summed" if after.shape[1] == 1 else "repeated"
        notes.append(
            f"filters of the first layer {before.shape[1]} -> {after.shape[1]} channels are {how}"
        )
    fill(model, state, named, advice=_classes_advice(state, own, classifier_names(model)))
    if notes:
        say(f"{named}: {'; '.join(notes)}")


def _fresh_classifiers(state: State, own: State, names: Sequence[str]) -> list[str]:
    """Replace classifiers of another size in `state` by those of the model; return notes."""
    notes = []
    for name in names:
        weight, bias = f"{name}.weight", f"{name}.bias"
        before, after = state.get(weight), own.get(weight)
        if before is not None and after is not None and before.shape == after.shape:
            continue
        for key in (weight, bias):
            state.pop(key, None)
            state |= {key: own[key]} if key in own else {}
        if after is not None:
            classes = _rows(before)
            sizes = f"{classes} -> {after.shape[0]}" if classes else f"of {after.shape[0]} classes"
            notes.append(f"classifier {sizes} starts fresh")
    return list(dict.fromkeys(notes))


def _rows(weight: Tensor | None) -> int:
    """Return the number of classes of a classifier's weight; 0 if there is none."""
    return weight.shape[0] if weight is not None and weight.ndim else 0


def _classes_advice(state: State, own: State, names: Sequence[str]) -> str:
    """Return what to do if only the classifier does not fit; "" without a classifier."""
    for name in names:
        before, after = _rows(state.get(f"{name}.weight")), _rows(own.get(f"{name}.weight"))
        if after:
            as_in_file = f"num_classes={before} as in the file, or " if before else ""
            return f"give {as_in_file}num_classes={after} for a new one"
    return ""


def _resembles(before: Tensor, after: Tensor) -> bool:
    """Whether two filters differ in their number of input channels, and in nothing else."""
    same = before.shape[:1] + before.shape[2:] == after.shape[:1] + after.shape[2:]
    return before.ndim > 2 and same and before.shape != after.shape


def adapted_filters(filters: Tensor, channels: int) -> Tensor:
    """Return filters for another number of channels, summed or repeated, as timm does.

    Args:
        filters: Out, in, ...: the filters of the first layer.
        channels: The new number of input channels.
    """
    if channels == 1:
        return filters.sum(1, keepdim=True)
    before = filters.shape[1]
    chosen = torch.arange(channels, device=filters.device) % before
    return filters[:, chosen] * (before / channels)


def first_layer_name(model: Any) -> str | None:
    """Return the dotted name of the convolution that reads the image; of timm's models, too."""
    name = getattr(model, "first_conv_name", None)
    if name is not None:
        return name()
    first = (getattr(model, "pretrained_cfg", None) or {}).get("first_conv")
    if isinstance(first, str) and not getattr(model, "is_partial", False):
        return first
    layers = (n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Conv3d))
    return next(layers, None)


def say(line: str) -> None:
    """Tell the user about weights in one line; only the first of several processes does."""
    if os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0":
        log.warning("%s", line)
