"""Tables of positions: a vector for each place of a grid, added to the tokens."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.blocks.sizes import is_open, is_size
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
    """Return a table of positions for a grid of another size, read as an image.

    Entries before those of the grid (of a class token) keep their values.

    Args:
        table: 1 x (entries before + grid height * grid width) x C.
        grid: Height and width that the table was made for.
        height: Height of the grid at hand.
        width: Width of the grid at hand.
        mode: `"bilinear"` or `"bicubic"`, corners of pixels aligned (not their centres).
        antialias: Blur before making the table smaller.

    Returns:
        1 x (entries before + height * width) x C.
    """
    if is_size(height, width, grid):
        return table
    before = table.shape[1] - grid[0] * grid[1]
    image = table[:, before:].transpose(1, 2).unflatten(2, (grid[0], grid[1]))
    image = image.to(torch.promote_types(table.dtype, torch.float32))  # half has no resampling
    image = _resized(image, height, width, mode, antialias)
    places = image.flatten(2).transpose(1, 2).to(table.dtype)
    return torch.cat([table[:, :before], places], dim=1)


def _resized(image: Tensor, height: int, width: int, mode: str, antialias: bool) -> Tensor:
    if torch.jit.is_scripting():
        return F.interpolate(
            image, [height, width], mode=mode, align_corners=False, antialias=antialias
        )
    else:  # a scripted function may hold Python of any kind in the branch that it never takes
        if antialias and is_open(height):
            rows, columns = (blur(image, n, mode, axis) for n, axis in ((height, 2), (width, 3)))
            return rows @ image @ columns.transpose(0, 1)
        return F.interpolate(
            image, [height, width], mode=mode, align_corners=False, antialias=antialias
        )


def blur(image: Tensor, count: int, mode: str, axis: int) -> Tensor:
    """The matrix, count x side, that resamples an axis of `image` with antialiasing.

    What `F.interpolate` does (Pillow's filters: a triangle, or Keys' cubic with a = -0.5, stretched
    by how much smaller the image gets), for programs that leave the size open: some runtimes know
    it without the blur.
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


torch.fx.wrap("resampled_table")  # a leaf for symbolic tracing: its branch depends on the size


def sinusoid(positions: int, channels: int) -> Tensor:
    """Sines and cosines of geometric wavelengths (arXiv 1706.03762, section 3.5).

    Returns:
        1 x positions x channels; channel 2i is sin(p / 10000^(2i/C)), channel 2i+1 its cosine.
    """
    pair = torch.arange(channels, dtype=torch.float64) // 2
    position = torch.arange(positions, dtype=torch.float64)
    angle = position[:, None] / 10000 ** (2 * pair / channels)
    odd = torch.arange(channels) % 2 == 1
    return torch.where(odd, angle.cos(), angle.sin()).to(torch.get_default_dtype())[None]


class PositionTable(nn.Module):
    """A table of positions for a grid, resampled for grids of other sizes.

    Args:
        channels: Width of the tokens.
        grid: Size of the grid that the table is made for.
        prefix: Entries before those of the grid, for a class token.
        fixed: Sines and cosines that are not trained; otherwise learnt.
        std: Spread of the initial values of a learnt table.
        mode: `"bilinear"` or `"bicubic"` resampling.
        antialias: Blur before making the table smaller.
    """

    no_decay = ("table",)

    def __init__(
        self,
        channels: int,
        grid: tuple[int, int],
        *,
        prefix: int = 0,
        fixed: bool = False,
        std: float = 0.02,
        mode: str = "bilinear",
        antialias: bool = False,
    ):
        super().__init__()
        self.grid, self.mode, self.antialias = grid, mode, antialias
        entries = prefix + grid[0] * grid[1]
        if fixed:
            self.table = nn.Parameter(sinusoid(entries, channels), requires_grad=False)
        else:
            self.table = nn.Parameter(torch.empty(1, entries, channels))
            nn.init.trunc_normal_(self.table, std=std)

    def forward(self, height: int, width: int) -> Tensor:
        """Return 1 x (prefix + height * width) x C."""
        return resampled_table(self.table, self.grid, height, width, self.mode, self.antialias)


def fit_tables(state: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
    """Resample the tables of `state`, learnt on square grids of another size, to those of `model`.

    Tables that cannot be of a square grid stay as they are.
    """
    state = dict(state)
    for name, module in model.named_modules():
        key = f"{name}.table"
        if not isinstance(module, PositionTable) or key not in state:
            continue
        prefix = module.table.shape[1] - module.grid[0] * module.grid[1]
        places = state[key].shape[1] - prefix
        side = math.isqrt(max(places, 0))
        if state[key].shape != module.table.shape and side * side == places:
            state[key] = resampled_table(
                state[key], (side, side), *module.grid, module.mode, module.antialias
            )
    return state


class Positions(nn.Module):
    """Add a table of positions to a map, after putting a class token in front if there is one.

    Args:
        table: The table; with a class token it has an entry for it (`prefix=1`).
        class_token: Put in front of the tokens; the output is B 1+N C then, otherwise B C H W.
    """

    def __init__(self, table: PositionTable, class_token: nn.Module | None = None):
        super().__init__()
        self.position = table
        self.class_token = class_token if class_token is not None else nn.Identity()
        self.gives_tokens = class_token is not None

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2], x.shape[3]
        x = self.class_token(to_tokens(x)) + self.position(height, width)
        return x if self.gives_tokens else to_map(x, height, width)
