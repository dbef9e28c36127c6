"""Channel gates of a single layer: squeeze and excitation without its bottleneck."""

import math

from torch import Tensor, nn


class OneLayerExcite(nn.Module):
    """Weight each channel by a gate, one full layer on the mean of all (eSE, arXiv 1911.06667).

    Args:
        channels: Channels of input and output.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, 1)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.fc(x.mean((2, 3), keepdim=True)))


class NeighbourExcite(nn.Module):
    """Weight each channel by a gate of the means of its neighbours (ECA, arXiv 1910.03151, eq. 9).

    One filter runs along the channels; it is the longer the more of them there are (eq. 12).

    Args:
        channels: Channels of input and output.
    """

    def __init__(self, channels: int):
        super().__init__()
        size = max(3, int(abs(math.log2(channels) + 1) / 2) // 2 * 2 + 1)
        self.conv = nn.Conv1d(1, 1, size, padding=size // 2, bias=False)
        self.gate = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3))[:, None]  # B 1 C
        return x * self.gate(self.conv(means)).transpose(1, 2)[..., None]
