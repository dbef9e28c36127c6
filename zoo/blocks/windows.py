"""Attention inside windows of a map.

A map whose sides are no multiples of the window is padded with zeros on the right and below, and
cropped afterwards. What is padded is not masked: it takes part in the attention.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.blocks.attention import BiasedAttention
from zoo.blocks.folding import affine_inputs, rebuilt, split_affine
from zoo.blocks.sizes import in_order, is_size


def to_windows(x: Tensor, side: int) -> Tensor:
    """B H W C -> B*n side*side C: the windows of each image row by row, as their pixels.

    Args:
        x: The map.
        side: Of a window.
    """
    batch, height, width, channels = x.shape
    rows, columns = (height + side - 1) // side, (width + side - 1) // side
    below, right = rows * side - height, columns * side - width
    if not is_size(below, right, (0, 0)):
        x = F.pad(x, (0, 0, 0, right, 0, below))
    strips = x.reshape(batch * rows, side, columns, side * channels)  # a row of windows each
    strips = in_order(strips.transpose(1, 2), columns)
    return strips.reshape(batch * rows * columns, side * side, channels)


def from_windows(windows: Tensor, side: int, batch: int, height: int, width: int) -> Tensor:
    """B*n side*side C -> B H W C: put windows back and leave out what was padded.

    Args:
        windows: What became of the result of `to_windows`.
        side: Of a window.
        batch: Number of maps.
        height: Of the map.
        width: Of the map.
    """
    rows, columns = (height + side - 1) // side, (width + side - 1) // side
    channels = windows.shape[2]
    strips = windows.reshape(batch * rows, columns, side, side * channels).transpose(1, 2)
    x = in_order(strips, columns).reshape(batch, rows * side, columns * side, channels)
    return x[:, :height, :width]


torch.fx.wrap("to_windows")  # leaves for symbolic tracing: what they do depends on the size
torch.fx.wrap("from_windows")


def resample_window_table(table: Tensor, side: int) -> Tensor:
    """Return a table of offsets learnt in windows of another side for windows of `side`.

    As timm does for LeViT's tables: an image resampled bicubically, its pixels taken as areas.

    Args:
        table: heads x (old side squared).
        side: Of the new windows.
    """
    old = round(table.shape[1] ** 0.5)
    if old == side or old * old != table.shape[1]:
        return table
    image = table.reshape(1, -1, old, old)
    image = F.interpolate(image.float(), (side, side), mode="bicubic", antialias=True)
    return image.flatten(2)[0].to(table.dtype)


class WindowAttention(nn.Module):
    """A norm, then self-attention in windows with a bias for every offset; B C H W to B C H W.

    Padding comes before the norm: a padded pixel is the shift of the norm.

    Args:
        channels: Of the map, a multiple of `num_heads`.
        num_heads: Number of heads.
        side: Of a window.
    """

    def __init__(self, channels: int, num_heads: int, side: int):
        super().__init__()
        self.side = side
        self.norm = nn.LayerNorm(channels)
        self.attention = BiasedAttention(
            channels,
            (side, side),
            num_heads=num_heads,
            key_dim=channels // num_heads,
            value_ratio=1,
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width = x.shape[0], x.shape[2], x.shape[3]
        windows = to_windows(x.permute(0, 2, 3, 1), self.side)
        windows = self.attention(self.norm(windows), self.side, self.side)
        return from_windows(windows, self.side, batch, height, width).permute(0, 3, 1, 2)

    def fused(self) -> "WindowAttention":
        """The affine part of the norm in the queries, keys and values; exact on padding, too."""
        if not self.norm.elementwise_affine:
            return self
        norm, *affine = split_affine(self.norm)
        qkv = affine_inputs(self.attention.qkv, *affine)
        return rebuilt(self, norm=norm, attention=rebuilt(self.attention, qkv=qkv))
