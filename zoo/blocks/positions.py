"""Position embeddings: a vector for each position of a grid, added to the tokens."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.blocks.sizes import is_dynamic, is_size
from zoo.blocks.tokens import to_map, to_tokens

torch.fx.wrap("to_map")


def resampled_table(
    table: Tensor,
    grid: tuple[int, int],
    height: int,
    width: int,
    mode: str = "bilinear",
    antialias: bool = False,
) -> Tensor:
    """Resample a position table, as an image, for a grid of another size.

    Entries before those of the grid (of a class token) keep their values.

    Args:
        table: 1 x (entries before + grid height * grid width) x C.
        grid: Height and width that the table was made for.
        height: Height of the new grid.
        width: Width of the new grid.
        mode: `"bilinear"` or `"bicubic"`; the corners of pixels are aligned, not their centres.
        antialias: Blur before shrinking the table.

    Returns:
        1 x (entries before + height * width) x C.
    """
    if is_size(height, width, grid):
        return table
    before = table.shape[1] - grid[0] * grid[1]
    image = table[:, before:].transpose(1, 2).unflatten(2, (grid[0], grid[1]))
    image = image.to(torch.promote_types(table.dtype, torch.float32))  # float16 cannot be resampled
    image = _resized(image, height, width, mode, antialias)
    places = image.flatten(2).transpose(1, 2).to(table.dtype)
    return torch.cat([table[:, :before], places], dim=1)


def _resized(image: Tensor, height: int, width: int, mode: str, antialias: bool) -> Tensor:
    if torch.jit.is_scripting():
        return F.interpolate(
            image, [height, width], mode=mode, align_corners=False, antialias=antialias
        )
    else:
        if antialias and is_dynamic(height):
            rows, columns = (blur(image, n, mode, axis) for n, axis in ((height, 2), (width, 3)))
            return rows @ image @ columns.transpose(0, 1)
        return F.interpolate(
            image, [height, width], mode=mode, align_corners=False, antialias=antialias
        )


def blur(image: Tensor, count: int, mode: str, axis: int) -> Tensor:
    """Return the matrix, count x side, that resamples an axis of `image` with antialiasing.

    It does what `F.interpolate` does (Pillow's filters: a triangle, or Keys' cubic with a = -0.5,
    stretched by the shrinking factor), for programs of dynamic size: some runtimes lack the blur.
    """
    side = image.shape[axis]
    ratio = side * image.new_ones(()) / count
    centre = (torch.arange(count, device=image.device, dtype=image.dtype) + 0.5) * ratio
    place = torch.arange(side, device=image.device, dtype=image.dtype) + 0.5
    d = (place - centre[:, None]).abs() / ratio.clamp(min=1.0)
    if mode == "bilinear":
        weight = (1 - d).clamp(min=0.0)
    else:
        near, far = (1.5 * d - 2.5) * d * d + 1, ((2.5 - 0.5 * d) * d - 4) * d + 2
        weight = torch.where(d < 1, near, far * (d < 2))
    return weight / weight.sum(1, keepdim=True)


torch.fx.wrap("resampled_table")


def sinusoid(positions: int, channels: int) -> Tensor:
    """Return sines and cosines of geometrically spaced wavelengths (arXiv 1706.03762, section 3.5).

    Returns:
        1 x positions x channels; channel 2i is sin(p / 10000^(2i/C)), channel 2i+1 its cosine.
    """
    pair = torch.arange(channels, dtype=torch.float64) // 2
    position = torch.arange(positions, dtype=torch.float64)
    angle = position[:, None] / 10000 ** (2 * pair / channels)
    odd = torch.arange(channels) % 2 == 1
    return torch.where(odd, angle.cos(), angle.sin()).to(torch.get_default_dtype())[None]


class PositionEmbedding(nn.Module):
    """A position table for a grid, resampled for grids of other sizes.

    Args:
        table: 1 x (prefix + grid height * grid width) x C.
        grid: Size of the grid that the table is made for.
        mode: `"bilinear"` or `"bicubic"` resampling.
        antialias: Blur before shrinking the table.
    """

    no_decay = ("table",)

    def __init__(
        self, table: nn.Parameter, grid: tuple[int, int], mode: str, antialias: bool = False
    ):
        super().__init__()
        self.grid, self.mode, self.antialias = grid, mode, antialias
        self.table = table

    def forward(self, height: int, width: int) -> Tensor:
        return resampled_table(  # 1 (prefix + height * width) C
            self.table, self.grid, height, width, self.mode, self.antialias
        )

    def fit_table(self, table: Tensor) -> Tensor:
        """Resample a table learnt on a square grid of another size; any other stays as it is."""
        prefix = self.table.shape[1] - self.grid[0] * self.grid[1]
        places = table.shape[1] - prefix
        side = math.isqrt(max(places, 0))
        if table.shape == self.table.shape or side * side != places:
            return table
        return resampled_table(table, (side, side), *self.grid, self.mode, self.antialias)


class LearnedPositionEmbedding(PositionEmbedding):
    """A learnt position table.

    Args:
        channels: Width of the tokens.
        grid: Size of the grid that the table is made for.
        prefix: Entries before those of the grid, for a class token.
        std: Standard deviation of the initial values.
        mode: `"bilinear"` or `"bicubic"` resampling.
        antialias: Blur before shrinking the table.
    """

    def __init__(
        self,
        channels: int,
        grid: tuple[int, int],
        *,
        prefix: int = 0,
        std: float = 0.02,
        mode: str = "bilinear",
        antialias: bool = False,
    ):
        table = torch.empty(1, prefix + grid[0] * grid[1], channels)
        nn.init.trunc_normal_(table, std=std)
        super().__init__(nn.Parameter(table), grid, mode, antialias)


class SinusoidalPositionEmbedding(PositionEmbedding):
    """A fixed position table of sines and cosines.

    Args:
        channels: Width of the tokens.
        grid: Size of the grid that the table is made for.
        prefix: Entries before those of the grid, for a class token.
        mode: `"bilinear"` or `"bicubic"` resampling.
    """

    def __init__(
        self, channels: int, grid: tuple[int, int], *, prefix: int = 0, mode: str = "bilinear"
    ):
        table = sinusoid(prefix + grid[0] * grid[1], channels)
        super().__init__(nn.Parameter(table, requires_grad=False), grid, mode)


class AddPositions(nn.Module):
    """Add a position embedding to a feature map, after a class token if there is one.

    Args:
        embedding: The position embedding; with a class token, it has an entry for it (`prefix=1`).
        class_token: Put in front of the tokens; the output is then B 1+N C, otherwise B C H W.
    """

    def __init__(self, embedding: PositionEmbedding, class_token: nn.Module | None = None):
        super().__init__()
        self.position = embedding
        self.class_token = class_token if class_token is not None else nn.Identity()
        self.gives_tokens = class_token is not None

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2], x.shape[3]
        x = self.class_token(to_tokens(x)) + self.position(height, width)  # B (1+)N C
        return x if self.gives_tokens else to_map(x, height, width)
