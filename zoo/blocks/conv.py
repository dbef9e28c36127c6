"""Convolution, batch norm, activation."""

from torch import Tensor, nn

from zoo.blocks.folding import (
    fold_batch_norm,
    is_fixed_batch_norm,
    rebuilt,
    scale_outputs,
)


class ConvNorm(nn.Module):
    """A 2-D convolution, its batch norm and, unless left out, an activation.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Odd; the padding keeps the size (before the stride).
        stride: Step of the convolution.
        groups: Groups of the convolution.
        dilation: Spacing of the taps.
        bias: Whether the convolution has a bias besides that of the norm (some public models do).
        act: Class of the activation; none leaves the block linear.
    """

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
        return self.act(self.norm(self.conv(x)))

    def fused(self) -> "ConvNorm":
        """The norm in the convolution."""
        if not is_fixed_batch_norm(self.norm):
            return self
        return rebuilt(self, conv=fold_batch_norm(self.conv, self.norm), norm=nn.Identity())

    def scaled(self, scale: Tensor) -> "ConvNorm":
        """Return a block that computes `scale * y`; `self` must be fused and without activation."""
        assert isinstance(self.norm, nn.Identity)
        assert isinstance(self.act, nn.Identity)
        return rebuilt(self, conv=scale_outputs(self.conv, scale))
