"""One-shot aggregation: a chain of convolutions whose outputs are joined once, at its end."""

import torch
from torch import Tensor, nn

from zoo.blocks.conv import ConvNorm
from zoo.blocks.drop import DropPath
from zoo.blocks.separable import SeparableConvNorm


class OneShotAggregation(nn.Module):
    """A 1x1 convolution of the input and of every link of a chain (arXiv 1904.09730, fig. 2b).

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        hidden: Channels of each link.
        links: How many 3x3 convolutions the chain has.
        residual: Add the input; it has `out_channels` channels then.
        separable: The links are depthwise separable; a 1x1 convolution narrows the input for them
            where it has another width.
        gate: Applied to the joined map.
        drop_path: Probability of leaving all but the input out while training, if `residual`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        hidden: int,
        links: int,
        residual: bool = False,
        separable: bool = False,
        gate: nn.Module | None = None,
        drop_path: float = 0.0,
    ):
        super().__init__()
        assert not residual or in_channels == out_channels
        narrow = separable and in_channels != hidden
        self.reduce = ConvNorm(in_channels, hidden, act=nn.ReLU) if narrow else nn.Identity()
        kind = SeparableConvNorm if separable else ConvNorm
        first = hidden if separable else in_channels
        self.links = nn.ModuleList(
            kind(hidden if i else first, hidden, kernel_size=3, act=nn.ReLU) for i in range(links)
        )
        self.join = ConvNorm(in_channels + links * hidden, out_channels, act=nn.ReLU)
        self.gate = gate if gate is not None else nn.Identity()
        self.residual = residual
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        parts = [x]
        y = self.reduce(x)
        for link in self.links:
            y = link(y)
            parts.append(y)
        y = self.gate(self.join(torch.cat(parts, dim=1)))
        return x + self.drop_path(y) if self.residual else y
