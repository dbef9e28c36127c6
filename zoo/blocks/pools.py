"""Max pooling that halves a feature map; odd sizes are rounded down."""

import torch
from torch import Tensor, nn

from zoo.errors import BadInput


def check_halving(height: int, width: int, least: int) -> None:
    """Raise `BadInput` if a side is too small to be halved; `least` is for the message."""
    if height < 2 or width < 2:
        raise BadInput(
            f"a feature map of {height} x {width} cannot be halved: "
            f"images of at least {least} x {least} are required"
        )


torch.fx.wrap("check_halving")


class HalvingPool(nn.Module):
    """Max pooling with stride 2: B C H W -> B C H//2 W//2.

    Args:
        kernel_size: Side of a window: 2, or 3 (then the last window of an even side is cut off).
        least: Smallest side of an image that the whole network supports, for error messages.

    Raises:
        BadInput: In `forward`, if a side of the feature map is less than 2.
    """

    def __init__(self, kernel_size: int, least: int):
        super().__init__()
        assert kernel_size in (2, 3)
        self.least = least
        self.pool = nn.MaxPool2d(kernel_size, 2, ceil_mode=kernel_size == 3)

    def forward(self, x: Tensor) -> Tensor:
        check_halving(x.shape[2], x.shape[3], self.least)
        return self.pool(x)  # B C H//2 W//2


def least_side(stride: int, halvings: int) -> int:
    """Return the smallest side of an image that can be halved `halvings` times after `stride`.

    Args:
        stride: Stride of the first feature map that is halved.
        halvings: Number of times that the feature map is halved, rounding down.
    """
    return stride * (2**halvings - 1) + 1
