"""The Mamba-1 block: a gated selective state space over a sequence of tokens."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.blocks.folding import affine_inputs, rebuilt
from zoo.blocks.selective import DirectionalScan


class Mamba(nn.Module):
    """Mamba (arXiv 2312.00752, fig. 3 and section 3.4): B L C -> B L C, in one direction.

    Args:
        channels: Width of the tokens.
        states: States of an inner channel.
        kernel_size: Steps that the causal convolution sees, the present one included.
        expansion: Inner channels over `channels`.
    """

    def __init__(
        self, channels: int, *, states: int = 16, kernel_size: int = 4, expansion: int = 2
    ):
        super().__init__()
        inner, rank = expansion * channels, math.ceil(channels / 16)
        self.past = kernel_size - 1
        self.in_proj = nn.Linear(channels, 2 * inner, bias=False)
        self.conv = nn.Conv1d(inner, inner, kernel_size, groups=inner)
        self.scan = DirectionalScan(inner, directions=1, states=states, rank=rank)
        self.out_proj = nn.Linear(inner, channels, bias=False)

    # B batch, L steps, C channels, D inner channels
    def forward(self, x_BLC: Tensor) -> Tensor:
        x_BDL, gate_BDL = self.in_proj(x_BLC).transpose(1, 2).chunk(2, dim=1)
        x_BDL = F.silu(self.conv(F.pad(x_BDL, (self.past, 0))))
        y_BDL = self.scan(x_BDL.unsqueeze(1)).squeeze(1) * F.silu(gate_BDL)
        return self.out_proj(y_BDL.transpose(1, 2).to(x_BLC.dtype))

    def after_affine(self, scale: Tensor, shift: Tensor) -> "Mamba":
        """Return a block that computes the same from x as this one from `scale * x + shift`."""
        return rebuilt(self, in_proj=affine_inputs(self.in_proj, scale, shift))
