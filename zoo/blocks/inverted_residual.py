"""The inverted residual of MobileNetV2."""

from torch import Tensor, nn

from zoo.blocks.conv import ConvNorm
from zoo.blocks.drop import DropPath


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project without activation (arXiv 1801.04381, fig. 4d, table 1).

    The input is added where its shape is that of the output. With `expansion` 1 there is no
    expanding convolution.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Step of the depthwise convolution.
        expansion: Channels between over `in_channels`.
        kernel_size: Of the depthwise convolution.
        dilation: Of the depthwise convolution.
        act: Class of the activation.
        drop_path: Probability of leaving the branch out while training.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        expansion: int = 6,
        kernel_size: int = 3,
        dilation: int = 1,
        act: type[nn.Module] = nn.ReLU6,
        drop_path: float = 0.0,
    ):
        super().__init__()
        hidden = in_channels * expansion
        self.expand = ConvNorm(in_channels, hidden, act=act) if expansion != 1 else nn.Identity()
        self.filter = ConvNorm(
            hidden,
            hidden,
            kernel_size=kernel_size,
            stride=stride,
            groups=hidden,
            dilation=dilation,
            act=act,
        )
        self.project = ConvNorm(hidden, out_channels)
        self.residual = stride == 1 and in_channels == out_channels
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.filter(self.expand(x)))
        return x + self.drop_path(y) if self.residual else y
