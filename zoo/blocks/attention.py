"""Self-attention over the positions of a map, with a learnt bias for every offset between two."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.blocks.folding import rebuilt, scale_outputs
from zoo.blocks.sizes import is_size


def offset_bias(
    table: Tensor, grid: tuple[int, int], height: int, width: int, align_corners: bool = True
) -> Tensor:
    """Look up the bias between all pairs of positions of a map (LeViT, arXiv 2104.01136, sec. 4).

    The bias depends on |dy| and |dx| alone: entry `|dy| * grid_width + |dx|` of a head's row. On a
    map of another size the table is resampled as an image, corners on corners: the offset 0 keeps
    its value and the largest offset of the map takes that of the table. (Without `align_corners`
    corners of pixels lie on each other, not their centres, as some public codes have it.)

    Args:
        table: heads x (grid height * grid width).
        grid: Size of the map that the table was learnt on.
        height: Height of the map at hand.
        width: Width of the map at hand.
        align_corners: How tables are resampled.

    Returns:
        heads x N x N with N = height * width, positions row by row.
    """
    heads = table.shape[0]
    if not is_size(height, width, grid):
        image = table.view(1, heads, grid[0], grid[1])
        image = F.interpolate(image, [height, width], mode="bicubic", align_corners=align_corners)
        table = image.view(heads, height * width)
    rows = torch.arange(height, device=table.device)
    columns = torch.arange(width, device=table.device)
    dy = (rows[:, None] - rows[None, :]).abs()[:, None, :, None]  # y 1 y' 1
    dx = (columns[:, None] - columns[None, :]).abs()[None, :, None, :]  # 1 x 1 x'
    index = (dy * width + dx).flatten()
    return table[:, index].view(heads, height * width, height * width)


torch.fx.wrap("offset_bias")  # a leaf for symbolic tracing: its branch depends on the size


def resample_table(table: Tensor, grid: tuple[int, int], align_corners: bool = True) -> Tensor:
    """Return a square table of offsets as `offset_bias` would resample it for maps of size `grid`.

    Args:
        table: heads x (side * side).
        grid: Height and width of the map that the result is for.
        align_corners: As for `offset_bias`.
    """
    side = math.isqrt(table.shape[1])
    if table.shape[1] == grid[0] * grid[1] or side * side != table.shape[1]:
        return table
    image = table.reshape(1, -1, side, side)
    image = F.interpolate(image, grid, mode="bicubic", align_corners=align_corners)
    return image.flatten(2)[0]


class OffsetBias(nn.Module):
    """The learnt table behind `offset_bias`.

    Args:
        num_heads: Rows of the table.
        grid: Size of the map that the table is made for.
        align_corners: How it is resampled.
    """

    no_decay = ("table",)

    def __init__(self, num_heads: int, grid: tuple[int, int], align_corners: bool = True):
        super().__init__()
        self.grid, self.align_corners = grid, align_corners
        self.table = nn.Parameter(torch.zeros(num_heads, grid[0] * grid[1]))

    def forward(self, height: int, width: int) -> Tensor:
        return offset_bias(self.table, self.grid, height, width, self.align_corners)

    def fused(self) -> nn.Module:
        """The bias of the usual map size as a constant."""
        return ConstantOffsetBias(self.table.detach(), self.grid, self.align_corners)


def constant_or_offset_bias(
    bias: Tensor,
    table: Tensor,
    grid: tuple[int, int],
    height: int,
    width: int,
    align_corners: bool = True,
) -> Tensor:
    """Return `bias` where the map has the size of the grid, else look it up anew."""
    if is_size(height, width, grid):
        return bias
    return offset_bias(table, grid, height, width, align_corners)


torch.fx.wrap("constant_or_offset_bias")


class ConstantOffsetBias(nn.Module):
    """`OffsetBias` for inference: looked up once for the usual size, resampled for others.

    Args:
        table: heads x (grid height * grid width).
        grid: Size of the map that the table was made for.
        align_corners: How it is resampled.
    """

    def __init__(self, table: Tensor, grid: tuple[int, int], align_corners: bool = True):
        super().__init__()
        self.grid, self.align_corners = grid, align_corners
        self.table: Tensor
        self.bias: Tensor
        self.register_buffer("table", table.clone())
        self.register_buffer("bias", offset_bias(table, grid, grid[0], grid[1]))

    def forward(self, height: int, width: int) -> Tensor:
        return constant_or_offset_bias(
            self.bias, self.table, self.grid, height, width, self.align_corners
        )


class BiasedAttention(nn.Module):
    """Multi-head self-attention with an offset bias and values wider than the keys.

    Outputs of `qkv` are grouped by head (q, k, v of head 0, then of head 1 ...).

    Args:
        channels: Width of the tokens.
        grid: Size of the map that the bias table is made for.
        num_heads: Number of heads.
        key_dim: Width of a head's queries and keys.
        value_ratio: Width of a head's values over `key_dim`.
    """

    def __init__(
        self,
        channels: int,
        grid: tuple[int, int],
        *,
        num_heads: int = 8,
        key_dim: int = 32,
        value_ratio: int = 4,
    ):
        super().__init__()
        self.num_heads, self.key_dim = num_heads, key_dim
        self.value_dim = value_ratio * key_dim
        self.scale = key_dim**-0.5
        self.qkv = nn.Linear(channels, num_heads * (2 * key_dim + self.value_dim))
        self.bias = OffsetBias(num_heads, grid)
        self.proj = nn.Linear(num_heads * self.value_dim, channels)

    # B batch, N tokens, H heads, D features of a head
    def forward(self, x_BNC: Tensor, height: int, width: int) -> Tensor:
        qkv_BNHD = self.qkv(x_BNC).unflatten(-1, (self.num_heads, -1))
        q_BHND, k_BHND, v_BHND = qkv_BNHD.transpose(1, 2).split(
            [self.key_dim, self.key_dim, self.value_dim], dim=-1
        )
        bias_HNN = self.bias(height, width).to(q_BHND.dtype)
        y_BHND = F.scaled_dot_product_attention(
            q_BHND, k_BHND, v_BHND, attn_mask=bias_HNN[None], scale=self.scale
        )
        return self.proj(y_BHND.transpose(1, 2).flatten(2))

    def fused(self) -> "BiasedAttention":
        """The scale of the queries in `qkv`."""
        if self.scale == 1.0:
            return self
        per_head = torch.ones(2 * self.key_dim + self.value_dim, dtype=torch.float64)
        per_head[: self.key_dim] = self.scale
        factors = per_head.repeat(self.num_heads).to(self.qkv.weight.device)
        fused = rebuilt(self, qkv=scale_outputs(self.qkv, factors))
        fused.scale = 1.0
        return fused
