"""Selective scans over feature maps: several sequences of pixels, one scan for all of them.

VMamba (arXiv 2401.10166, section 4) calls them SS2D. `DirectionalScan` is the state space with its
projections; models convert feature maps to sequences and back.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.ops import selective_scan

torch.fx.wrap("selective_scan")


class Decay(nn.Module):
    """A = -exp(log): the decay rates of a state space, kept as logarithms.

    Args:
        channels: Number of channels.
        d_state: States per channel.
        ramp: Initialise the rates to 1, 2 ... `d_state`; otherwise all to 1.
    """

    no_decay = ("log",)

    def __init__(self, channels: int, d_state: int, *, ramp: bool):
        super().__init__()
        rates = torch.arange(1.0, d_state + 1) if ramp else torch.ones(d_state)
        self.log = nn.Parameter(rates.log().repeat(channels, 1))

    def forward(self) -> Tensor:
        return -torch.exp(self.log)  # C N

    def fused(self) -> nn.Module:
        """Return the rates as a constant."""
        return ConstantDecay(self.forward().detach())


class ConstantDecay(nn.Module):
    """`Decay` for inference.

    Args:
        rates: A, channels x d_state.
    """

    rates: Tensor

    def __init__(self, rates: Tensor):
        super().__init__()
        self.register_buffer("rates", rates)

    def forward(self) -> Tensor:
        return self.rates  # C N


class DirectionalScan(nn.Module):
    """Selective scans of K sequences, each with its own step, input and output projections.

    The result has at least single precision, because its values are unbounded before the next norm.

    Args:
        channels: Channels of every sequence.
        directions: K, the number of sequences.
        d_state: N, states per channel.
        dt_rank: Width of the low-rank projection of the step sizes.
        init: `"mamba"`: decays 1..N, steps of 1e-3 to 1e-1, as Mamba-1. `"uniform"`: decays 1,
            step weights and biases uniform in [0, 0.1), as VMamba's "v2".
    """

    no_decay = ("skip", "dt_bias")

    def __init__(
        self, channels: int, *, directions: int, d_state: int, dt_rank: int, init: str = "mamba"
    ):
        super().__init__()
        self.dt_rank, self.d_state = dt_rank, d_state
        self.scan_backend = "auto"
        self.x_proj = nn.Parameter(torch.empty(directions, dt_rank + 2 * d_state, channels))
        self.dt_proj = nn.Parameter(torch.empty(directions, channels, dt_rank))
        self.dt_bias = nn.Parameter(torch.empty(directions, channels))
        self.decay = Decay(directions * channels, d_state, ramp=init == "mamba")
        self.skip = nn.Parameter(torch.ones(directions * channels))
        for weight in self.x_proj.data:
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
        if init == "uniform":
            nn.init.uniform_(self.dt_proj, 0, 0.1)
            nn.init.uniform_(self.dt_bias, 0, 0.1)
        else:
            nn.init.uniform_(self.dt_proj, -(dt_rank**-0.5), dt_rank**-0.5)
            init_step_bias(self.dt_bias)

    # B batch, K sequences, D channels, L steps, R dt_rank, N states
    def forward(self, x_BKDL: Tensor) -> Tensor:
        projected = self.x_proj @ x_BKDL
        dt_BKRL, B_BKNL, C_BKNL = projected.split([self.dt_rank, self.d_state, self.d_state], dim=2)
        delta_BKDL = self.dt_proj @ dt_BKRL
        y = selective_scan(
            x_BKDL.flatten(1, 2).to(torch.promote_types(x_BKDL.dtype, torch.float32)),
            delta_BKDL.flatten(1, 2),
            self.decay(),
            B_BKNL,
            C_BKNL,
            self.skip,
            delta_bias=self.dt_bias.flatten(),
            backend=self.scan_backend,
        )
        return y.view_as(x_BKDL)


def init_step_bias(
    bias: Tensor, low: float = 1e-3, high: float = 1e-1, least: float = 1e-4
) -> None:
    """Fill `bias` so that its softplus is log-uniform between `low` and `high` (Mamba-1)."""
    with torch.no_grad():
        step = torch.exp(torch.rand_like(bias) * math.log(high / low) + math.log(low))
        step = step.clamp(min=least)
        bias.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus


def both_ways(x: Tensor) -> Tensor:
    """Convert B D H W to B 2 D L: row by row, forwards and backwards."""
    rows = x.flatten(2)
    return torch.stack([rows, rows.flip(-1)], dim=1)


def merge_both_ways(y: Tensor, height: int, width: int) -> Tensor:
    """Add both directions and convert B 2 D L to B D H W."""
    return (y[:, 0] + y[:, 1].flip(-1)).unflatten(-1, (height, width))


def atrous(x: Tensor) -> Tensor:
    """Convert B D H W to B 4 D L: the pixels in 2x2 interleaved grids (EfficientVMamba).

    Sequences over odd rows run column by column, those over even rows row by row (arXiv 2403.09977,
    section 3.2, and the public code). An odd side is padded with zeros on the right or below.
    """
    x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
    even, odd = x[:, :, 0::2], x[:, :, 1::2]  # rows
    return torch.stack(
        [
            even[..., 0::2].flatten(2),
            odd[..., 0::2].transpose(2, 3).flatten(2),
            even[..., 1::2].flatten(2),
            odd[..., 1::2].transpose(2, 3).flatten(2),
        ],
        dim=1,
    )


def merge_atrous(y: Tensor, height: int, width: int) -> Tensor:
    """Convert B 4 D L to B D H W, as the inverse of `atrous`."""
    h, w = (height + 1) // 2, (width + 1) // 2
    rows = [y[:, 0].unflatten(-1, (h, w)), y[:, 2].unflatten(-1, (h, w))]
    columns = [y[:, k].unflatten(-1, (w, h)).transpose(2, 3) for k in (1, 3)]
    even, odd = torch.stack(rows, -1), torch.stack(columns, -1)  # B D h w 2
    merged = torch.stack([even.flatten(3), odd.flatten(3)], dim=3).flatten(2, 3)  # B D 2h 2w
    return merged[:, :, :height, :width]
