"""The layers that are quantised: convolutions and linear layers."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from zoo.errors import BadInput

KINDS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Precisions:
    """The layers of an artefact, read from the artefact and not from the plan.

    Attributes:
        int8: Names of the layers with int8 weights, wherever the artefact uses them.
        floating: Names of the others. Layers that the model never calls are in neither.
    """

    int8: list[str]
    floating: list[str]


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers of a model that can be quantised, by name, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, KINDS)}


def check_names(model: nn.Module, names: Iterable[str]) -> None:
    """Raise `BadInput` unless each name is a module of `model` that contains layers."""
    known = layers(model)
    for name in names:
        if not any(within(layer, [name]) for layer in known):
            raise BadInput(
                f"keep_float: {name!r} is not a convolution, a linear layer or a block with one "
                f"in the fused model; its layers have names like {next(iter(known), None)!r}"
            )


def within(layer: str, names: Collection[str]) -> bool:
    """Return whether a layer is one of `names`, or inside one of them."""
    return any(layer == name or layer.startswith(f"{name}.") for name in names)


def channel_axis(layer: nn.Module) -> int:
    """Return the axis of a layer's weight that is its output channels."""
    return 1 if isinstance(layer, TRANSPOSED) else 0


def largest_weights(weight: np.ndarray) -> np.ndarray:
    """Return the largest absolute weight of each output channel, and 1 where all are zero.

    Args:
        weight: The weight, output channels first.
    """
    largest = np.abs(weight).reshape(len(weight), -1).max(axis=1)
    return np.where(largest > 0, largest, 1.0)


def rows_of(layer: nn.Module) -> np.ndarray:
    """Return the weight of a layer, output channels first, in float64."""
    weight: Any = layer.weight
    return np.moveaxis(weight.detach().double().numpy(), channel_axis(layer), 0)
