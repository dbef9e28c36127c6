"""Convolution, batch norm, activation."""

from torch import Tensor, nn

from zoo.blocks.folding import Absorbing


class ConvNorm(Absorbing):
    """A 2-D convolution, a batch norm and an optional activation.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Odd; the padding keeps the size (before the stride).
        stride: Stride of the convolution.
        groups: Groups of the convolution.
        dilation: Spacing of the taps.
        bias: Whether the convolution has a bias in addition to that of the norm.
        act: Class of the activation; None leaves the block linear.
    """

    absorbs_after = {"conv": "norm"}
    output_parts = ("conv", "norm", "act")

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        dilation: int = 1,
        bias: bool = False,
        act: type[nn.Module] | None = None,
    ):
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding=dilation * (kernel_size // 2),
            dilation=dilation,
            groups=groups,
            bias=bias,
        )
        self.norm = nn.BatchNorm2d(out_channels)
        self.act = act() if act is not None else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))  # B C H/stride W/stride
