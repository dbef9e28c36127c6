"""Sizes of images and of the maps that a network makes of them."""

from collections.abc import Sequence

from zoo.errors import BadInput


def pair(size: int | Sequence[int], name: str = "img_size") -> tuple[int, int]:
    """Return a size as (height, width), both at least 1.

    Raises:
        BadInput: Not a positive whole number, nor two of them.
    """
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise BadInput(f"{name}={size!r}: give a positive number of pixels, or [height, width]")
    return sides


def grid_size(size: int | Sequence[int], stride: int) -> tuple[int, int]:
    """Return the size of the map that an image has after `stride`, halved with rounding up."""
    height, width = pair(size)
    return -(-height // stride), -(-width // stride)
