"""Layer scale."""

import torch
from torch import Tensor, nn


class LayerScale(nn.Module):
    """Multiply each channel by a learnt factor that starts small (CaiT, arXiv 2103.17239, eq. 7).

    Args:
        channels: Number of channels.
        init: Initial value of every factor.
        spatial: Whether channels are axis 1, as in B C H W; otherwise they are the last axis.
    """

    def __init__(self, channels: int, *, init: float = 1e-5, spatial: bool = False):
        super().__init__()
        self.spatial = spatial
        self.gamma = nn.Parameter(torch.full((channels,), init))

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.gamma[:, None, None] if self.spatial else self.gamma)  # as x

    def factors(self) -> Tensor:
        """Return the factors, for the previous layer to absorb (zoo/blocks/folding.py)."""
        return self.gamma


class ChannelAffine(nn.Module):
    """Compute scale * x + shift for each channel of B C H W (a fixed batch norm).

    Args:
        scale: One factor per channel.
        shift: One summand per channel.
    """

    def __init__(self, scale: Tensor, shift: Tensor):
        super().__init__()
        self.scale = nn.Parameter(scale.detach())
        self.shift = nn.Parameter(shift.detach())

    def forward(self, x: Tensor) -> Tensor:
        shift, scale = self.shift[:, None, None], self.scale[:, None, None]  # C 1 1
        return torch.addcmul(shift, x, scale)  # B C H W
