"""Attention within windows of a feature map, padded with zeros to whole windows."""

import torch.nn.functional as F
from torch import Tensor

from zoo.blocks.sizes import contiguous_if_dynamic, is_size


def pad_to_windows(x: Tensor, side: int) -> Tensor:
    """Pad B C H W with zeros on the right and below to multiples of `side`."""
    height, width = x.shape[2], x.shape[3]
    below = (height + side - 1) // side * side - height
    right = (width + side - 1) // side * side - width
    return x if is_size(below, right, (0, 0)) else F.pad(x, (0, right, 0, below))


def _heads_of_windows(
    x: Tensor, side: int, rows: int, columns: int, num_heads: int, partition: str
) -> Tensor:
    """Split into windows and heads: B C H W -> n*B heads side*side C/heads."""
    batch, channels = x.shape[0], x.shape[1]
    if partition == "block":
        grid = x.reshape(batch * channels, rows, side, columns, side).permute(1, 3, 0, 2, 4)
    else:
        # In two steps, each of which runtimes have a fast kernel for
        grid = x.reshape(batch * channels * side * rows, side, columns).transpose(1, 2)
        grid = contiguous_if_dynamic(grid, columns)
        grid = grid.reshape(batch * channels * side, rows, columns, side).permute(1, 2, 0, 3)
    windows = rows * columns * batch
    grid = contiguous_if_dynamic(grid, columns)
    return grid.reshape(windows, num_heads, channels // num_heads, side * side).transpose(2, 3)


def _map_of_windows(
    y: Tensor, batch: int, side: int, rows: int, columns: int, partition: str
) -> Tensor:
    """Undo `_heads_of_windows`: n*B heads side*side D -> B heads*D H W."""
    channels = y.shape[1] * y.shape[3]
    y = contiguous_if_dynamic(y.transpose(2, 3), columns)
    if partition == "block":
        grid = y.reshape(rows, columns, batch * channels, side, side).permute(2, 0, 3, 1, 4)
    else:  # in two steps, as above
        grid = y.reshape(rows, columns, batch * channels * side, side).permute(2, 0, 1, 3)
        grid = contiguous_if_dynamic(grid, columns)
        grid = grid.reshape(batch * channels * side * rows, columns, side).transpose(1, 2)
    return contiguous_if_dynamic(grid, columns).reshape(
        batch, channels, side * rows, side * columns
    )


def attend_in_windows(
    qk: Tensor, v: Tensor, side: int, num_heads: int, scale: float, block_windows: bool
) -> Tensor:
    """Return the attention in grid windows, plus that in block windows if requested: B V H W.

    Block windows are neighbouring pixels. Grid windows (MaxViT's name; EMO: "remote") are spread:
    with n x m windows, pixel (i, j) is in window (i mod n, j mod m). If there is only one window,
    both kinds are the same.

    Args:
        qk: Queries, then keys, B 2C H W; H and W are multiples of `side`.
        v: Values, B V H W.
        side: Side of a window.
        num_heads: Number of heads; each is a run of consecutive channels.
        scale: Factor of the products.
        block_windows: Whether to add the attention in block windows.
    """
    y = _attend(qk, v, side, num_heads, scale, "grid")
    if not block_windows:
        return y
    if is_size(qk.shape[2], qk.shape[3], (side, side)):
        return 2 * y
    return y + _attend(qk, v, side, num_heads, scale, "block")


def _attend(
    qk: Tensor, v: Tensor, side: int, num_heads: int, scale: float, partition: str
) -> Tensor:
    rows, columns = qk.shape[2] // side, qk.shape[3] // side
    q, k = qk.chunk(2, dim=1)
    y = F.scaled_dot_product_attention(
        _heads_of_windows(q, side, rows, columns, num_heads, partition),
        _heads_of_windows(k, side, rows, columns, num_heads, partition),
        _heads_of_windows(v.to(q.dtype), side, rows, columns, num_heads, partition),
        scale=scale,
    )
    return _map_of_windows(y, qk.shape[0], side, rows, columns, partition)
