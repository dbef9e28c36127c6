"""Convolution, batch norm, activation."""

from collections.abc import Callable

from torch import Tensor, nn

from zoo.blocks.folding import Absorbing

# A class of activations, or a function from the number of channels to a module.
Activation = type[nn.Module] | Callable[[int], nn.Module]


def activation(act: Activation | None, channels: int) -> nn.Module:
    """Return a new activation for feature maps of `channels`; the identity if `act` is None."""
    if act is None:
        return nn.Identity()
    return act() if isinstance(act, type) else act(channels)


def channel_prelu(channels: int) -> nn.PReLU:
    """Return a PReLU with a slope for each channel (arXiv 1502.01852, section 2.1)."""
    return nn.PReLU(channels)


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
        act: Class of the activation, or a function that makes one for a number of channels, such
            as `channel_prelu`; None leaves the block linear.
        eps: Epsilon of the norm.
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
        act: Activation | None = None,
        eps: float = 1e-5,
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
        self.norm = nn.BatchNorm2d(out_channels, eps=eps)
        self.act = activation(act, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))  # B C H/stride W/stride


class NormAct(nn.Module):
    """A batch norm and an activation, for a sum or a concatenation of feature maps.

    Args:
        channels: Channels of the feature map.
        act: As for `ConvNorm`.
        eps: Epsilon of the norm.
    """

    def __init__(self, channels: int, *, act: Activation | None, eps: float = 1e-5):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, eps=eps)
        self.act = activation(act, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(x))  # B C H W
