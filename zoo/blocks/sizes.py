"""Sizes of images and feature maps."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zoo.errors import BadInput


def whole_number(value: Any, name: str, least: int) -> int:
    """Return `value`, or raise `BadInput` unless it is a whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise BadInput(f"{name}={value!r}: must be a whole number of at least {least}")
    return value


def pair(size: int | Sequence[int], name: str = "img_size") -> tuple[int, int]:
    """Return a size as (height, width), both at least 1.

    Raises:
        BadInput: The size is neither a positive whole number nor a pair of them.
    """
    sides = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        raise BadInput(f"{name}={size!r}: give a positive number of pixels, or [height, width]")
    return sides


def is_size(height: int, width: int, own: tuple[int, int]) -> bool:
    """Return whether a feature map has the size `own`, for which a table was made.

    While a program of dynamic size is traced, the result is always False, because the program must
    be right for any size.
    """
    if torch.jit.is_scripting():
        return height == own[0] and width == own[1]
    else:
        if is_dynamic(height) or is_dynamic(width):
            return False
        return height == own[0] and width == own[1]


def is_dynamic(side: int) -> bool:
    """Return whether a program with a dynamic `side` is being exported."""
    return torch.compiler.is_exporting() and isinstance(side, torch.SymInt)


def contiguous_if_dynamic(x: Tensor, side: int) -> Tensor:
    """Return `x`; in a program with a dynamic `side`, a contiguous copy.

    Otherwise the traced program depends on whether `reshape` has to copy, which it does for sides
    greater than 1.
    """
    if torch.jit.is_scripting():
        return x
    else:
        return x.clone(memory_format=torch.contiguous_format) if is_dynamic(side) else x


def grid_size(size: int | Sequence[int], stride: int) -> tuple[int, int]:
    """Return the size of the feature map of an image at `stride`, rounded up."""
    height, width = pair(size)
    return -(-height // stride), -(-width // stride)


def check_sides(x: Tensor, axes: int, multiple: int) -> None:
    """Raise `BadInput` unless `x` is B C and `axes` sides that are multiples of `multiple`.

    Files that call it must wrap it, `torch.fx.wrap("check_sides")`, for symbolic tracing.
    """
    if x.ndim != axes + 2:
        raise BadInput(
            f"input with {x.ndim} axes: this model requires {axes + 2} axes, B C and {axes} sides"
        )
    if torch.jit.is_tracing():  # sizes are tensors then
        return
    for side in x.shape[2:]:
        if side == 0 or side % multiple != 0:
            near = [max(1, (n + multiple - 1) // multiple) * multiple for n in x.shape[2:]]
            raise BadInput(
                f"images of {list(x.shape[2:])} pixels: every side must be a multiple of "
                f"{multiple}, such as {near}"
            )
