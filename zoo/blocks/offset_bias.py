"""Attention bias by the signed offset of two positions, from a table made for one image size.

Source: Tang et al., "ElasticViT" (arXiv 2303.09730), github.com/microsoft/Moonlit, folder
        ElasticViT. Smaller feature maps use the middle of the table; for larger ones it is
        stretched.
"""

import torch
from torch import Tensor, nn

from zoo.blocks.sizes import is_dynamic, is_size


def offset_bias(table: Tensor, side: int, height: int, width: int) -> Tensor:
    """Look up the bias between all pairs of positions by their signed offset.

    Args:
        table: (2 side - 1)^2 x heads.
        side: Largest side of a feature map that the table has offsets for. A longer side gets
            values between those of the table, by linear interpolation.
        height: Height of the feature map.
        width: Width of the feature map.

    Returns:
        heads x N x N with N = height * width, positions row by row.
    """
    image = table.transpose(0, 1).unflatten(1, (2 * side - 1, 2 * side - 1))
    if not _has_offsets(side, height, width):
        rows, columns = _stretch(image, side, height), _stretch(image, side, width)
        image = rows @ image @ columns.transpose(0, 1)  # heads 2H-1 2W-1
    middle_row, middle_column = image.shape[1] // 2, image.shape[2] // 2
    y = torch.arange(height, device=table.device)
    x = torch.arange(width, device=table.device)
    dy = (y[:, None] - y + middle_row)[:, None, :, None]  # y 1 y' 1
    dx = (x[:, None] - x + middle_column)[None, :, None, :]  # 1 x 1 x'
    index = (dy * image.shape[2] + dx).flatten()
    return image.flatten(1)[:, index].view(-1, height * width, height * width)


def _has_offsets(side: int, height: int, width: int) -> bool:
    if torch.jit.is_scripting():
        return height <= side and width <= side
    else:
        if is_dynamic(height) or is_dynamic(width):
            return False
        return height <= side and width <= side


def _stretch(image: Tensor, side: int, count: int) -> Tensor:
    """Return the matrix 2 count - 1 x 2 side - 1 that interpolates the offsets of one axis.

    Up to `side` positions, it selects offsets; for more, the largest offsets coincide.
    """
    ratio = ((side - 1) * image.new_ones(()) / (count - 1)).clamp(max=1.0)
    offset = torch.arange(2 * count - 1, device=image.device, dtype=image.dtype) - (count - 1)
    known = torch.arange(2 * side - 1, device=image.device, dtype=image.dtype) - (side - 1)
    return (1 - (offset[:, None] * ratio - known).abs()).clamp(min=0.0)


def cached_bias(bias: Tensor, table: Tensor, side: int, height: int, width: int, grid: list[int]):
    """Return `bias` if the feature map has the size of `grid`, else look it up."""
    if is_size(height, width, (grid[0], grid[1])):
        return bias
    return offset_bias(table, side, height, width)


torch.fx.wrap("offset_bias")
torch.fx.wrap("cached_bias")


class OffsetBias(nn.Module):
    """The learnt table of `offset_bias`.

    Args:
        num_heads: Number of attention heads.
        side: Largest side of a feature map that the table is made for.
        grid: Usual size of the feature map; when fused, the bias of this size is a constant.
    """

    no_decay = ("table",)

    def __init__(self, num_heads: int, side: int, grid: tuple[int, int]):
        super().__init__()
        self.side, self.grid = side, grid
        self.table = nn.Parameter(torch.zeros((2 * side - 1) ** 2, num_heads))

    def forward(self, height: int, width: int) -> Tensor:
        return offset_bias(self.table, self.side, height, width)  # heads N N

    def fused(self) -> nn.Module:
        """Return a module that stores the bias of the usual size."""
        return ConstantOffsetBias(self.table.detach(), self.side, self.grid)


class ConstantOffsetBias(nn.Module):
    """`OffsetBias` for inference.

    Args:
        table: As for `offset_bias`.
        side: As for `offset_bias`.
        grid: Size of the feature map whose bias is stored.
    """

    def __init__(self, table: Tensor, side: int, grid: tuple[int, int]):
        super().__init__()
        self.side, self.grid = side, list(grid)
        self.table: Tensor
        self.bias: Tensor
        self.register_buffer("table", table.clone())
        self.register_buffer("bias", offset_bias(table, side, *grid))

    def forward(self, height: int, width: int) -> Tensor:
        return cached_bias(self.bias, self.table, self.side, height, width, self.grid)
