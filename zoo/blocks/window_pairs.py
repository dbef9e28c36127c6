"""Attention in windows of neighbours, in windows of pixels far apart, or in both (EMO, EMOv2).

Maps are B C H W, and convolutions of 1x1 give queries, keys and values. A map whose sides are no
multiples of the window is padded with zeros on the right and below before these convolutions and
cropped after the attention. What is padded is not masked: its keys and values are those of zeros.
No tensor has more than five axes, which is what phones take.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.blocks.folding import rebuilt, scale_outputs
from zoo.blocks.sizes import in_order, is_size


def pad_to_windows(x: Tensor, side: int) -> Tensor:
    """Pad B C H W with zeros on the right and below to multiples of `side`."""
    height, width = x.shape[2], x.shape[3]
    below = (height + side - 1) // side * side - height
    right = (width + side - 1) // side * side - width
    return x if is_size(below, right, (0, 0)) else F.pad(x, (0, right, 0, below))


def _heads_of_windows(
    x: Tensor, side: int, rows: int, columns: int, num_heads: int, close: bool
) -> Tensor:
    """B C H W -> n*B heads side*side C/heads: the windows, one after the other, head by head."""
    batch, channels = x.shape[0], x.shape[1]
    if close:
        grid = x.reshape(batch * channels, rows, side, columns, side).permute(1, 3, 0, 2, 4)
    else:
        grid = x.reshape(batch * channels, side, rows, side, columns).permute(2, 4, 0, 1, 3)
    windows = rows * columns * batch
    grid = in_order(grid, columns)
    return grid.reshape(windows, num_heads, channels // num_heads, side * side).transpose(2, 3)


def _map_of_windows(
    y: Tensor, batch: int, side: int, rows: int, columns: int, close: bool
) -> Tensor:
    """Put the result of `_heads_of_windows` back: n*B heads side*side D -> B heads*D H W."""
    channels = y.shape[1] * y.shape[3]
    y = in_order(y.transpose(2, 3), columns)
    grid = y.reshape(rows, columns, batch * channels, side, side)
    grid = grid.permute(2, 0, 3, 1, 4) if close else grid.permute(2, 3, 0, 4, 1)
    return in_order(grid, columns).reshape(batch, channels, side * rows, side * columns)


def attend_in_windows(
    qk: Tensor, v: Tensor, side: int, num_heads: int, scale: float, close: bool
) -> Tensor:
    """Attention in windows of a map: the far windows, and the close ones if `close`, summed.

    Far windows (EMO's "remote"): with n x m windows to a map, the pixel (i, j) is in window
    (i mod n, j mod m), so that those of a window are n rows and m columns apart. Close windows are
    blocks of neighbours. A map of one window has but one kind: twice its attention is the sum.

    Args:
        qk: Queries, then keys, B 2C H W; H and W are multiples of `side`.
        v: Values, B V H W.
        side: Of a window.
        num_heads: Number of heads, runs of channels.
        scale: Factor of the products.
        close: Whether to add the attention in close windows.

    Returns:
        B V H W.
    """
    far = _attend(qk, v, side, num_heads, scale, False)
    if not close:
        return far
    if is_size(qk.shape[2], qk.shape[3], (side, side)):
        return 2 * far
    return far + _attend(qk, v, side, num_heads, scale, True)


def _attend(qk: Tensor, v: Tensor, side: int, num_heads: int, scale: float, close: bool) -> Tensor:
    rows, columns = qk.shape[2] // side, qk.shape[3] // side
    q, k = qk.chunk(2, dim=1)
    y = F.scaled_dot_product_attention(
        _heads_of_windows(q, side, rows, columns, num_heads, close),
        _heads_of_windows(k, side, rows, columns, num_heads, close),
        _heads_of_windows(v.to(q.dtype), side, rows, columns, num_heads, close),
        scale=scale,
    )
    return _map_of_windows(y, qk.shape[0], side, rows, columns, close)


torch.fx.wrap("pad_to_windows")  # leaves for symbolic tracing: what they do depends on the size
torch.fx.wrap("attend_in_windows")


class WindowPairMixer(nn.Module):
    """Attention in windows as the mixer of a `MobileBlock`: B C H W -> B V H W.

    EMOv2 projects and activates the values before the attention; EMO (`raw_values`) attends to its
    input itself, and projects and activates the result.

    Args:
        channels: Channels of the input, a multiple of `head_dim`.
        out_channels: Channels of the output.
        side: Of a window.
        head_dim: Channels of a head's queries and keys.
        act: Class of the activation.
        close: Add the attention in close windows to that in far ones.
        raw_values: Project after the attention, not before.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        *,
        side: int,
        head_dim: int,
        act: type[nn.Module],
        close: bool,
        raw_values: bool = False,
    ):
        super().__init__()
        self.side, self.close, self.raw_values = side, close, raw_values
        self.num_heads = channels // head_dim
        self.scale = head_dim**-0.5
        self.qk = nn.Conv2d(channels, 2 * channels, 1)
        self.value = nn.Conv2d(channels, out_channels, 1)
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2], x.shape[3]
        x = pad_to_windows(x, self.side)
        v = x if self.raw_values else self.act(self.value(x))
        y = attend_in_windows(self.qk(x), v, self.side, self.num_heads, self.scale, self.close)
        y = y[:, :, :height, :width]
        return self.act(self.value(y)) if self.raw_values else y

    def fused(self) -> "WindowPairMixer":
        """The scale of the products in the queries."""
        if self.scale == 1.0:
            return self
        factors = torch.ones(self.qk.out_channels, dtype=torch.float64)
        factors[: self.qk.out_channels // 2] = self.scale
        fused = rebuilt(self, qk=scale_outputs(self.qk, factors.to(self.qk.weight.device)))
        fused.scale = 1.0
        return fused
