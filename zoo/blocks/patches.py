"""Cutting an image into patches."""

import torch
from torch import Tensor, nn

from zoo.errors import BadInput


def check_patch(height: int, width: int, patch: int) -> None:
    """Raise `BadInput` unless the image holds a whole patch."""
    if height < patch or width < patch:
        raise BadInput(f"an image of {height} x {width}: at least {patch} x {patch} is needed")


torch.fx.wrap("check_patch")


class PatchEmbed(nn.Module):
    """A convolution of patches that do not overlap; what is left on the right or below is dropped.

    Args:
        in_channels: Channels of the image.
        out_channels: Channels of the map.
        patch: Side of a patch.
    """

    def __init__(self, in_channels: int, out_channels: int, patch: int):
        super().__init__()
        self.patch = patch
        self.project = nn.Conv2d(in_channels, out_channels, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        check_patch(x.shape[2], x.shape[3], self.patch)
        return self.project(x)
