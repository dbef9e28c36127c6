"""How a model is put in int8: the ranges of activations, the repairs, the layers in float."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from torch import nn

from zoo.compression.layers import Precisions
from zoo.compression.ranges import METHODS
from zoo.errors import BadInput, unknown_value

if TYPE_CHECKING:
    from zoo.deploy.spec import ExportSpec

REPAIRS = ("equalize", "rounding", "biases")
Limits = Mapping[str, np.ndarray]  # per layer: the float value of the grid's last step, by channel


@dataclass(frozen=True)
class Recipe:
    """How to put a model in int8.

    Attributes:
        ranges: How the range of an activation is found, one of `ranges.METHODS`.
        repairs: Some of `REPAIRS`; they are applied in that order.
        keep_float: Names of modules of the fused model that stay in float.
    """

    ranges: str = "minmax"
    repairs: tuple[str, ...] = ("biases",)
    keep_float: tuple[str, ...] = ()

    def with_repair(self, name: str) -> "Recipe":
        """Return the recipe with one more repair."""
        chosen = {*self.repairs, name}
        return replace(self, repairs=tuple(repair for repair in REPAIRS if repair in chosen))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}

    def __str__(self) -> str:
        parts = [f"ranges {self.ranges}", f"repairs {', '.join(self.repairs) or 'none'}"]
        return ", ".join([*parts, f"{len(self.keep_float)} layers in float"])


def make(
    ranges: str = "minmax",
    repairs: Collection[str] = ("biases",),
    keep_float: Collection[str] = (),
    *,
    prefix: str = "",
) -> Recipe:
    """Check the parts of a recipe, and return it; messages put `prefix` before their names.

    Raises:
        BadInput: A part is unknown, or not a list.
    """
    if ranges not in METHODS:
        raise BadInput(unknown_value(f"{prefix}ranges", ranges, METHODS))
    for key, value in (("repairs", repairs), ("keep_float", keep_float)):
        names = not isinstance(value, str) and isinstance(value, Collection)
        if not names or not all(isinstance(name, str) for name in value):
            raise BadInput(f"{prefix}{key}={value!r} must be a list of names")
    for name in repairs:
        if name not in REPAIRS:
            raise BadInput(unknown_value(f"{prefix}repairs", name, REPAIRS))
    chosen = tuple(repair for repair in REPAIRS if repair in repairs)
    return Recipe(ranges, chosen, tuple(keep_float))


class Quantizer(Protocol):
    """The contents of the module that writes a format in int8.

    Attributes:
        PACKAGES: Packages that it needs besides PyTorch.
        RANGES: How ranges are found unless the user chooses.
    """

    PACKAGES: tuple[str, ...]
    RANGES: str

    @staticmethod
    def convert(
        model: nn.Module,
        file: Path,
        spec: "ExportSpec",
        batches: Sequence[np.ndarray],
        recipe: Recipe,
        limits: Limits | None = None,
    ) -> Precisions:
        """Write a model in int8. Repairs are not applied here; see `repairs.repair`.

        Args:
            model: The model, fused and in evaluation mode.
            file: The file to write.
            spec: Input size, batch and opset of the file.
            batches: Inputs to calibrate the ranges of activations on.
            recipe: How ranges are found, and which modules stay in float.
            limits: Limits that the weights of layers were rounded for; None: to be chosen.

        Returns:
            The layers with and without int8 weights in the file.

        Raises:
            BadInput: The model does not run on this input, or an opset that cannot be written.
            MissingExtra: A package is not installed.
            NotExportable: The model cannot be exported, quantised or lowered.
        """
        ...

    @staticmethod
    def grid(layer: nn.Module, weight: np.ndarray) -> tuple[np.ndarray, int]:
        """Return the grid that weights are rounded to.

        Args:
            layer: A convolution or a linear layer.
            weight: Its weight, output channels first.

        Returns:
            The float value of the last step for each output channel, and the number of steps
            from zero to there.
        """
        ...

    @staticmethod
    def check(model: nn.Module, file: Path, batches: Sequence[np.ndarray]) -> dict[str, Any]:
        """Return the manifest's entry about integer sums, after checking them.

        Raises:
            NotExportable: Sums would overflow on some processors.
        """
        ...
