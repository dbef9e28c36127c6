"""Perceptrons along two axes of an image: inside of blocks, and among the cells of a grid.

MAXIM (arXiv 2201.02973, section 3). Feature maps are B H W C; sides must be multiples of the size
of a block.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.blocks.folding import Absorbing
from zoo.blocks.widths import Group, hidden_channels

EPS = 1e-6  # of every layer norm


# B batch, N groups, M positions that are mixed, C channels
def to_blocks(x: Tensor, size: int) -> Tensor:
    """Cut B H W C into blocks of size x size: B N M C, M being the positions of a block."""
    b, h, w, c = x.shape
    x = x.view(b, h // size, size, w // size, size, c)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(b, -1, size * size, c)


def from_blocks(x: Tensor, size: int, height: int, width: int) -> Tensor:
    """Undo `to_blocks`."""
    b, c = x.shape[0], x.shape[3]
    x = x.view(b, height // size, width // size, size, size, c)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(b, height, width, c)


def to_grid(x: Tensor, size: int) -> Tensor:
    """Cut B H W C into size x size cells: B N M C, M being the cells, N positions in a cell."""
    b, h, w, c = x.shape
    x = x.view(b, size, h // size, size, w // size, c)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(b, -1, size * size, c)


def from_grid(x: Tensor, size: int, height: int, width: int) -> Tensor:
    """Undo `to_grid`."""
    b, c = x.shape[0], x.shape[3]
    x = x.view(b, height // size, width // size, size, size, c)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(b, height, width, c)


def mix_positions(layer: nn.Module, x_BNMC: Tensor) -> Tensor:
    """Apply a linear layer along M."""
    return layer(x_BNMC.transpose(2, 3)).transpose(2, 3)


def gelu(x: Tensor) -> Tensor:
    """Return the GELU in the approximation with tanh."""
    return F.gelu(x, approximate="tanh")


class SpatialGating(nn.Module):
    """A gated perceptron that mixes positions of blocks, or cells of a grid (gMLP, fig. 3).

    Args:
        channels: Channels of input and output.
        size: Side of a block, and of the grid.
        grid: Mix the cells of a grid instead of the positions of blocks.
    """

    def __init__(self, channels: int, size: int, *, grid: bool):
        super().__init__()
        self.size, self.grid = size, grid
        self.norm = nn.LayerNorm(channels, eps=EPS)
        self.expand = nn.Linear(channels, 2 * channels)
        self.gate_norm = nn.LayerNorm(channels, eps=EPS)
        self.spatial = nn.Linear(size * size, size * size)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1], x.shape[2]
        x_BNMC = to_grid(x, self.size) if self.grid else to_blocks(x, self.size)
        u, v = gelu(self.expand(self.norm(x_BNMC))).chunk(2, dim=-1)
        gate = mix_positions(self.spatial, self.gate_norm(v)) + 1
        y = x_BNMC + self.proj(u * gate)
        if self.grid:
            return from_grid(y, self.size, height, width)
        return from_blocks(y, self.size, height, width)  # B H W C


class MultiAxisMlp(Absorbing):
    """Half of the channels through the grid, half through blocks, with a shortcut (fig. 3).

    Args:
        channels: Channels of input and output.
        size: Side of a block, and of the grid.
    """

    absorbs_before = {"expand": "norm"}

    def __init__(self, channels: int, size: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=EPS)
        self.expand = nn.Linear(channels, 2 * channels)
        self.grid = SpatialGating(channels, size, grid=True)
        self.block = SpatialGating(channels, size, grid=False)
        self.proj = nn.Linear(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        u, v = gelu(self.expand(self.norm(x))).chunk(2, dim=-1)
        return x + self.proj(torch.cat([self.grid(u), self.block(v)], dim=-1))  # B H W C


class GatingWeights(Absorbing):
    """Weights for another feature map, from two axes (fig. 4).

    Args:
        channels: Channels of input and output.
        size: Side of a block, and of the grid.
    """

    absorbs_before = {"expand": "norm"}

    def __init__(self, channels: int, size: int):
        super().__init__()
        self.size = size
        self.norm = nn.LayerNorm(channels, eps=EPS)
        self.expand = nn.Linear(channels, 2 * channels)
        self.grid = nn.Linear(size * size, size * size)
        self.block = nn.Linear(size * size, size * size)
        self.proj = nn.Linear(2 * channels, channels)
        nn.init.ones_(self.grid.bias)
        nn.init.ones_(self.block.bias)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1], x.shape[2]
        u, v = gelu(self.expand(self.norm(x))).chunk(2, dim=-1)
        u = from_grid(mix_positions(self.grid, to_grid(u, self.size)), self.size, height, width)
        v = mix_positions(self.block, to_blocks(v, self.size))
        v = from_blocks(v, self.size, height, width)
        return self.proj(torch.cat([u, v], dim=-1))  # B H W C


class ChannelAttention(nn.Module):
    """Weight each channel of B H W C by a gate on the means of all channels.

    Args:
        channels: Channels of input and output.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.reduce = nn.Linear(channels, channels // 4)
        self.expand = nn.Linear(channels // 4, channels)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((1, 2), keepdim=True)
        return x * self.expand(F.relu(self.reduce(means))).sigmoid()  # B H W C


def spatial(conv: nn.Module, x: Tensor) -> Tensor:
    """Apply a convolution to B H W C."""
    return conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ConvAttention(nn.Module):
    """x + gate(conv(leaky(conv(norm(x))))), on B H W C.

    Args:
        channels: Channels of input and output.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=EPS)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.attention = ChannelAttention(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(spatial(self.conv1, self.norm(x)), 0.2)
        return x + self.attention(spatial(self.conv2, y))  # B H W C


class DenseAttention(Absorbing):
    """x + gate(fc(gelu(fc(norm(x))))), on B H W C.

    Args:
        channels: Channels of input and output.
    """

    absorbs_before = {"fc1": "norm"}

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=EPS)
        self.fc1 = nn.Linear(channels, channels)
        self.fc2 = nn.Linear(channels, channels)
        self.attention = ChannelAttention(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attention(self.fc2(gelu(self.fc1(self.norm(x)))))  # B H W C

    def prunable(self) -> list[Group]:
        """Declare the hidden channels."""
        return [hidden_channels(self, made=("fc1",), read=("fc2",))]


class CrossGating(nn.Module):
    """Two feature maps gate each other (fig. 4); both are B H W C.

    Args:
        in_channels: Channels of the first.
        gate_channels: Channels of the second.
        channels: Channels of both outputs.
        size: Side of a block, and of the grid.
        up: Double the size of the second first.
    """

    def __init__(self, in_channels: int, gate_channels: int, channels: int, size: int, *, up: bool):
        super().__init__()
        self.up: nn.Module = nn.Identity()
        if up:
            self.up = nn.ConvTranspose2d(gate_channels, channels, 2, 2)
            gate_channels = channels
        self.conv_x, self.conv_y = (
            nn.Linear(in_channels, channels),
            nn.Linear(gate_channels, channels),
        )
        for name in ("x", "y"):
            setattr(self, f"norm_{name}", nn.LayerNorm(channels, eps=EPS))
            setattr(self, f"expand_{name}", nn.Linear(channels, channels))
            setattr(self, f"gating_{name}", GatingWeights(channels, size))
            setattr(self, f"proj_{name}", nn.Linear(channels, channels))

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x, y = self.conv_x(x), self.conv_y(spatial(self.up, y))
        first, second = x, y
        x = gelu(self.expand_x(self.norm_x(x)))  # type: ignore[operator]
        y = gelu(self.expand_y(self.norm_y(y)))  # type: ignore[operator]
        gates_x, gates_y = self.gating_x(x), self.gating_y(y)  # type: ignore[operator]
        y = self.proj_y(y * gates_x) + second  # type: ignore[operator]
        x = self.proj_x(x * gates_y) + y + first  # type: ignore[operator]
        return x, y  # B H W C, both


# Names of parameters in the public code of MAXIM, and here.
MLP_NAMES = (
    (r"LayerNorm_in\.", "norm."),
    (r"in_project\.", "expand."),
    (r"out_project\.", "proj."),
    (r"GridGmlpLayer\.GridGatingUnit\.intermediate_layernorm\.", "grid.gate_norm."),
    (r"GridGmlpLayer\.GridGatingUnit\.Dense_0\.", "grid.spatial."),
    (r"GridGmlpLayer\.LayerNorm\.", "grid.norm."),
    (r"GridGmlpLayer\.in_project\.", "grid.expand."),
    (r"GridGmlpLayer\.out_project\.", "grid.proj."),
    (r"BlockGmlpLayer\.BlockGatingUnit\.intermediate_layernorm\.", "block.gate_norm."),
    (r"BlockGmlpLayer\.BlockGatingUnit\.Dense_0\.", "block.spatial."),
    (r"BlockGmlpLayer\.LayerNorm\.", "block.norm."),
    (r"BlockGmlpLayer\.in_project\.", "block.expand."),
    (r"BlockGmlpLayer\.out_project\.", "block.proj."),
)
ATTENTION_NAMES = (
    (r"LayerNorm\.", "norm."),
    (r"channel_mixing\.Dense_0\.", "fc1."),
    (r"channel_mixing\.Dense_1\.", "fc2."),
    (r"channel_attention\.Conv_0\.", "attention.reduce."),
    (r"channel_attention\.Conv_1\.", "attention.expand."),
)
GATING_NAMES = (
    (r"ConvTranspose_0\.", "up."),
    (r"Conv_0\.", "conv_x."),
    (r"Conv_1\.", "conv_y."),
    *((rf"LayerNorm_{n}\.", f"norm_{n}.") for n in "xy"),
    *((rf"in_project_{n}\.", f"expand_{n}.") for n in "xy"),
    *((rf"out_project_{n}\.", f"proj_{n}.") for n in "xy"),
    *(
        (rf"SplitHeadMultiAxisGating_{n}\.{old}\.", f"gating_{n}.{new}.")
        for n in "xy"
        for old, new in (
            ("LayerNorm_in", "norm"),
            ("in_project", "expand"),
            ("Dense_0", "grid"),
            ("Dense_1", "block"),
            ("out_project", "proj"),
        )
    ),
)
