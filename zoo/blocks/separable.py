"""The depthwise separable convolution."""

from typing import Any

from torch import Tensor, nn

from zoo.blocks import ndim
from zoo.blocks.folding import Absorbing, affine_inputs


class SeparableConv(nn.Module):
    """A depthwise convolution followed directly by a 1x1 convolution (arXiv 1704.04861, fig. 2).

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Kernel size of the depthwise convolution; odd.
        stride: Stride of the depthwise convolution.
        bias: Whether both convolutions have a bias.
        axes: Number of spatial axes.
        dilation: Spacing of the taps of the depthwise convolution.
    """

    output_parts = ("pointwise",)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 3,
        stride: int = 1,
        bias: bool = False,
        axes: int = 2,
        dilation: int = 1,
    ):
        super().__init__()
        self.depthwise = ndim.conv(
            axes,
            in_channels,
            in_channels,
            kernel_size,
            stride=stride,
            groups=in_channels,
            bias=bias,
            dilation=dilation,
        )
        self.pointwise = ndim.conv(axes, in_channels, out_channels, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))  # B C and the spatial axes

    def fused(self) -> nn.Module:
        """Fold a 1x1 depthwise convolution, which is an affine map, into the pointwise one."""
        filters: Any = self.depthwise
        pointwise: Any = self.pointwise
        if any(side != 1 for side in (*filters.kernel_size, *filters.stride)):
            return self
        return affine_inputs(pointwise, filters.weight.flatten(), filters.bias)


class SeparableConvNorm(Absorbing):
    """A separable convolution, one batch norm, and an optional activation.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Kernel size of the depthwise convolution; odd.
        stride: Stride of the depthwise convolution.
        act: Class of the activation; None leaves the block linear.
        dilation: Spacing of the taps of the depthwise convolution.
    """

    absorbs_after = {"conv": "norm"}

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 3,
        stride: int = 1,
        act: type[nn.Module] | None = None,
        dilation: int = 1,
    ):
        super().__init__()
        self.conv = SeparableConv(
            in_channels, out_channels, kernel_size=kernel_size, stride=stride, dilation=dilation
        )
        self.norm = nn.BatchNorm2d(out_channels)
        self.act = act() if act is not None else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))  # B C H/stride W/stride
