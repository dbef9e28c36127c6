"""Groups: hidden channels and attention heads that can be taken out of a block, and the cutter.

A block states what belongs together with a method `prunable()`, which returns a list of `Group`:

    def prunable(self) -> list[Group]:
        return [hidden_channels(self, made=("fc1",), read=("fc2",))]

Unit j of a group is everything that hidden channel (or head) j needs: without it, the block
computes exactly what it computes if all of these numbers are zero. Only widths inside a block are
declared; inputs and outputs of blocks keep theirs. A width that a layer norm normalises is not a
group: taking a channel out would change the mean of the others.

A block with numbers that depend on a width, such as the number of heads, has `resize(name, width)`.
A block that is `droppable` returns its input plus a branch, and can be replaced by an identity.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo.blocks.squeeze import SqueezeExcite

SIMD = 8  # hidden channels of which a multiple is fast in every runtime


@dataclass(frozen=True)
class Slice:
    """The part of one tensor that belongs to the units of a group.

    Attributes:
        tensor: Name of a parameter or buffer of the block.
        axis: The axis along which it is cut.
        indices: Positions along the axis, parts x units x positions of a unit in a part; several
            tables if the parts have different sizes. Together they are all positions.
        reads: Whether the numbers multiply the unit's output, so that the unit has no effect if
            they are zero.
    """

    tensor: str
    axis: int
    indices: tuple[Tensor, ...]
    reads: bool = False

    def positions(self, units: Tensor) -> Tensor:
        """Return the positions of `units`, in the order in which the narrower tensor has them."""
        return torch.cat([table[:, units].flatten() for table in self.indices])


@dataclass(frozen=True)
class Group:
    """Units of a block that can be taken out one by one.

    Attributes:
        name: `"hidden"` or `"heads"`, perhaps with a number.
        width: Number of units.
        slices: What belongs to the units.
        multiple: Widths of which a multiple is fast.
    """

    name: str
    width: int
    slices: tuple[Slice, ...]
    multiple: int = 1

    def widths(self) -> list[int]:
        """Return the widths to choose from, in descending order: the full one, and multiples."""
        whole = range(self.multiple, self.width, self.multiple)
        return [self.width, *reversed(whole)]


def positions(parts: int, width: int, size: int = 1, start: int = 0) -> Tensor:
    """Return the positions of an axis that is ordered by part, by unit, and within a unit."""
    return torch.arange(start, start + parts * width * size).view(parts, width, size)


def hidden_channels(
    block: nn.Module,
    *,
    made: Sequence[str],
    read: Sequence[str],
    name: str = "hidden",
    parts: int = 1,
) -> Group:
    """Declare hidden channels.

    Args:
        block: The block.
        made: Submodules with one row per hidden channel: layers that compute them, depthwise
            convolutions, norms, and gates (`SqueezeExcite`), which both read and make them.
        read: Layers with one column per hidden channel.
        name: Name of the group.
        parts: A unit has this many channels, one in each of as many equal parts of the channels.
    """
    channels = _inputs(block.get_submodule(read[0]))
    table = (positions(parts, channels // parts),)
    slices = []
    for path in made:
        module = block.get_submodule(path)
        if isinstance(module, SqueezeExcite):
            slices.append(Slice(f"{path}.reduce.weight", 1, table, reads=True))
            module, path = module.expand, f"{path}.expand"
        slices += rows(module, path, table)
    slices += [Slice(f"{path}.weight", 1, table, reads=True) for path in read]
    multiple = SIMD // math.gcd(SIMD, parts)
    return Group(name, channels // parts, tuple(slices), multiple)


def rows(module: nn.Module, path: str, table: tuple[Tensor, ...]) -> list[Slice]:
    """Return the slices of all tensors of `module` that have one row for each position."""
    length = sum(part.numel() for part in table)
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return [
        Slice(f"{path}.{name}", 0, table)
        for name, tensor in tensors
        if tensor.ndim and len(tensor) == length
    ]


def _inputs(layer: Any) -> int:
    return layer.weight.shape[1]


def groups_of(block: nn.Module) -> list[Group]:
    """Return the groups that a block declares."""
    declare: Any = getattr(block, "prunable", None)
    return [] if declare is None else declare()


@torch.no_grad()
def narrow(block: nn.Module, group: Group, units: Tensor) -> None:
    """Keep only some units of a group, in place, and in the given order.

    Args:
        block: The block that declares the group.
        group: One of its groups.
        units: Numbers of the units to keep.
    """
    layers: dict[str, Any] = {}
    for part in group.slices:
        path, _, name = part.tensor.rpartition(".")
        layer: Any = layers.setdefault(path, block.get_submodule(path))
        tensor = getattr(layer, name)
        kept = tensor.index_select(part.axis, part.positions(units).to(tensor.device))
        if isinstance(tensor, nn.Parameter):
            kept = nn.Parameter(kept, tensor.requires_grad)
        setattr(layer, name, kept)
    for layer in layers.values():
        _fit_sizes(layer)
    resize: Any = getattr(block, "resize", None)
    if resize is not None:
        resize(group.name, len(units))


def _fit_sizes(layer: Any) -> None:
    """Set the sizes that a layer states to those of its tensors."""
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        layer.out_channels, layer.in_channels = layer.weight.shape[:2]
        if layer.groups > 1:  # depthwise
            layer.groups = layer.in_channels = layer.out_channels
    elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
        layer.num_features = len(layer.weight if layer.affine else layer.running_mean)  # type: ignore[arg-type]
    elif isinstance(layer, nn.PReLU):
        layer.num_parameters = len(layer.weight)


@torch.no_grad()
def multiply(block: nn.Module, group: Group, units: Tensor, factor: float) -> None:
    """Multiply all parameters of some units of a group, in place."""
    parameters = dict(block.named_parameters())
    for part in group.slices:
        tensor = parameters.get(part.tensor)
        if tensor is not None:
            chosen = part.positions(units).to(tensor.device)
            tensor.index_copy_(
                part.axis, chosen, tensor.index_select(part.axis, chosen).mul_(factor)
            )


@torch.no_grad()
def unit_is_zero(block: nn.Module, group: Group) -> Tensor:
    """Return for each unit whether everything that reads it is zero: it has no effect."""
    zero = torch.ones(group.width, dtype=torch.bool)
    parameters = dict(block.named_parameters())
    for part in group.slices:
        if part.reads:
            first = parameters[part.tensor].movedim(part.axis, 0).flatten(1).eq(0).all(1).cpu()
            for table in part.indices:
                zero &= first[table].all(0).all(1)
    return zero
