"""Patch embedding: cut an image into patches."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.blocks.sizes import pair
from zoo.errors import BadInput


def check_patch(height: int, width: int, patch: int) -> None:
    """Raise `BadInput` if the image is smaller than a patch."""
    if height < patch or width < patch:
        raise BadInput(
            f"an image of {height} x {width} is too small: at least {patch} x {patch} is required"
        )


torch.fx.wrap("check_patch")


def whole_patches(img_size: int | Sequence[int], patch: int) -> tuple[int, int]:
    """Return `img_size` as (height, width), each at least one patch.

    Raises:
        BadInput: `img_size` is smaller, or is not a size.
    """
    height, width = pair(img_size)
    if height < patch or width < patch:
        raise BadInput(f"img_size={img_size!r}: at least {patch} x {patch} pixels are required")
    return height, width


class PatchEmbed(nn.Module):
    """A convolution of patches that do not overlap; a remainder on the right or below is dropped.

    Args:
        in_channels: Channels of the image.
        out_channels: Channels of the feature map.
        patch: Side of a patch.
        least: Smallest side of an image that the following layers support.
    """

    def __init__(self, in_channels: int, out_channels: int, patch: int, *, least: int = 1):
        super().__init__()
        self.least = max(patch, least)
        self.project = nn.Conv2d(in_channels, out_channels, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        check_patch(x.shape[2], x.shape[3], self.least)
        return self.project(x)  # B C H/patch W/patch
