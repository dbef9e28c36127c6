"""Self-attention over the positions of a feature map, with a learnt bias for each offset."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.blocks.folding import scale_queries
from zoo.blocks.sizes import is_size
from zoo.blocks.widths import Group, Slice, positions, rows


def attention_bias(
    table: Tensor, grid: tuple[int, int], height: int, width: int, align_corners: bool = True
) -> Tensor:
    """Look up the bias between all pairs of positions (LeViT, arXiv 2104.01136, sec. 4).

    The bias depends only on |dy| and |dx|: entry `|dy| * grid_width + |dx|` of a head's row. For a
    feature map of another size the table is resampled as an image.

    Args:
        table: heads x (grid height * grid width).
        grid: Size of the feature map that the table was learnt on.
        height: Height of the feature map.
        width: Width of the feature map.
        align_corners: Resample with the centres of the corner pixels aligned, which keeps the bias
            of offset 0; otherwise the outer corners are aligned, as in some public code.

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


def cached_attention_bias(
    bias: Tensor,
    table: Tensor,
    grid: tuple[int, int],
    height: int,
    width: int,
    align_corners: bool = True,
) -> Tensor:
    """Return `bias` if the feature map has the size of the grid, else look it up again."""
    if is_size(height, width, grid):
        return bias
    return attention_bias(table, grid, height, width, align_corners)


torch.fx.wrap("attention_bias")
torch.fx.wrap("cached_attention_bias")


class AttentionBias(nn.Module):
    """The learnt table of `attention_bias`.

    Args:
        num_heads: Rows of the table.
        grid: Size of the feature map that the table is made for.
        align_corners: As for `attention_bias`.
    """

    no_decay = ("table",)

    def __init__(self, num_heads: int, grid: tuple[int, int], align_corners: bool = True):
        super().__init__()
        self.grid, self.align_corners = grid, align_corners
        self.table = nn.Parameter(torch.zeros(num_heads, grid[0] * grid[1]))

    def forward(self, height: int, width: int) -> Tensor:
        return attention_bias(  # heads N N
            self.table, self.grid, height, width, self.align_corners
        )

    def fit_table(self, table: Tensor) -> Tensor:
        """Resample a square table learnt at another size; any other table stays as it is."""
        side = math.isqrt(table.shape[1])
        if table.shape[1] == self.grid[0] * self.grid[1] or side * side != table.shape[1]:
            return table
        return self.resampled(table.reshape(1, -1, side, side)).flatten(2)[0]

    def resampled(self, image: Tensor) -> Tensor:
        """Resample a square table: 1 heads side side -> 1 heads grid height grid width."""
        return F.interpolate(image, self.grid, mode="bicubic", align_corners=self.align_corners)

    def fused(self) -> nn.Module:
        """Return a module that stores the bias of the usual size as a constant."""
        return ConstantAttentionBias(self.table.detach(), self.grid, self.align_corners)


class ConstantAttentionBias(nn.Module):
    """`AttentionBias` for inference: looked up once for the usual size, resampled for others.

    Args:
        table: heads x (grid height * grid width).
        grid: Size of the feature map that the table was made for.
        align_corners: As for `attention_bias`.
    """

    def __init__(self, table: Tensor, grid: tuple[int, int], align_corners: bool = True):
        super().__init__()
        self.grid, self.align_corners = grid, align_corners
        self.table: Tensor
        self.bias: Tensor
        self.register_buffer("table", table.clone())
        self.register_buffer("bias", attention_bias(table, grid, grid[0], grid[1]))

    def forward(self, height: int, width: int) -> Tensor:
        return cached_attention_bias(  # heads N N
            self.bias, self.table, self.grid, height, width, self.align_corners
        )


class BiasedAttention(nn.Module):
    """Multi-head self-attention with an attention bias and values wider than the keys.

    Outputs of `qkv` are grouped by head (q, k, v of head 0, then of head 1 ...).

    Args:
        channels: Width of the tokens.
        bias: Returns the bias for the height and width of a feature map.
        num_heads: Number of heads.
        key_dim: Width of a head's queries and keys.
        value_ratio: Width of a head's values divided by `key_dim`.
    """

    input_layers, output_parts = ("qkv",), ("proj",)

    def __init__(
        self,
        channels: int,
        bias: AttentionBias,
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
        self.bias = bias
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
        """Fold the scale of the products into the queries."""
        return scale_queries(self, "qkv", self.key_dim, groups=self.num_heads)

    def prunable(self) -> list[Group]:
        """Declare the heads."""
        heads = self.num_heads
        qkv = (positions(1, heads, 2 * self.key_dim + self.value_dim),)
        values = (positions(1, heads, self.value_dim),)
        slices = [
            *rows(self.qkv, "qkv", qkv),
            *rows(self.bias, "bias", (positions(1, heads),)),
            Slice("proj.weight", 1, values, reads=True),
        ]
        return [Group("heads", heads, tuple(slices))]

    def resize(self, name: str, width: int) -> None:
        """Note the number of heads."""
        self.num_heads = width
