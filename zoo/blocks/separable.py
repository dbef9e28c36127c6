"""The depthwise separable convolution."""

from typing import Any

from torch import Tensor, nn

from zoo.blocks import ndim
from zoo.blocks.folding import affine_inputs


class SeparableConv(nn.Module):
    """One filter a channel, then a 1x1 convolution, nothing between (arXiv 1704.04861, fig. 2).

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Of the filters; odd.
        bias: Whether both convolutions have a bias.
        axes: Spatial axes of the maps.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 3,
        bias: bool = False,
        axes: int = 2,
    ):
        super().__init__()
        self.depthwise = ndim.conv(
            axes, in_channels, in_channels, kernel_size, groups=in_channels, bias=bias
        )
        self.pointwise = ndim.conv(axes, in_channels, out_channels, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))

    def fused(self) -> nn.Module:
        """Where the filters are 1x1, they scale and shift channels: one 1x1 convolution."""
        filters: Any = self.depthwise
        pointwise: Any = self.pointwise
        if any(side != 1 for side in filters.kernel_size):
            return self
        return affine_inputs(pointwise, filters.weight.flatten(), filters.bias)
