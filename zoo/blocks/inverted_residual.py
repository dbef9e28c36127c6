"""The inverted residual of MobileNetV2, and its parameter names in timm's models."""

from timm.layers import DropPath
from torch import Tensor, nn

from zoo.blocks.conv import Activation, ConvNorm
from zoo.blocks.init import init_conv
from zoo.blocks.squeeze import SqueezeExcite
from zoo.blocks.widths import Group, hidden_channels


class InvertedResidual(nn.Module):
    """Expand, convolve each channel, project linearly (arXiv 1801.04381, fig. 4d, table 1).

    The input is added if the output has the same shape, or if there is a `shortcut`. With
    `expansion` 1 there is no expanding convolution, unless `hidden` is given.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Stride of the depthwise convolution.
        expansion: Hidden channels divided by `in_channels`.
        hidden: Hidden channels; overrides `expansion`.
        kernel_size: Kernel size of the depthwise convolution.
        dilation: Dilation of the depthwise convolution.
        act: Class of the activation, or a function that makes one for a number of channels.
        gate: Applied after the depthwise convolution, such as squeeze and excitation.
        drop_path: Probability of dropping the branch in training.
        eps: Epsilon of the norms.
        shortcut: Applied to the input before it is added; it returns the shape of the output.
    """

    __jit_unused_properties__ = ["droppable"]  # TorchScript would compile it

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        expansion: int = 6,
        hidden: int | None = None,
        kernel_size: int = 3,
        dilation: int = 1,
        act: Activation = nn.ReLU6,
        gate: nn.Module | None = None,
        drop_path: float = 0.0,
        eps: float = 1e-5,
        shortcut: nn.Module | None = None,
    ):
        super().__init__()
        expands = hidden is not None or expansion != 1
        hidden = hidden or in_channels * expansion
        self.expand: nn.Module = nn.Identity()
        if expands:
            self.expand = ConvNorm(in_channels, hidden, act=act, eps=eps)
        self.depthwise = ConvNorm(
            hidden,
            hidden,
            kernel_size=kernel_size,
            stride=stride,
            groups=hidden,
            dilation=dilation,
            act=act,
            eps=eps,
        )
        self.gate = gate if gate is not None else nn.Identity()
        self.project = ConvNorm(hidden, out_channels, eps=eps)
        self.residual = shortcut is not None or (stride == 1 and in_channels == out_channels)
        self.shortcut = shortcut if shortcut is not None else nn.Identity()
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.gate(self.depthwise(self.expand(x))))  # B C H/stride W/stride
        return self.shortcut(x) + self.drop_path(y) if self.residual else y

    def prunable(self) -> list[Group]:
        """Declare the hidden channels, if they are not those of the input."""
        if isinstance(self.expand, nn.Identity):
            return []
        gates = () if isinstance(self.gate, nn.Identity) else ("gate",)
        if gates and not isinstance(self.gate, SqueezeExcite):
            return []
        made = ("expand", "depthwise", *gates)
        return [hidden_channels(self, made=made, read=("project.conv",))]

    @property
    def droppable(self) -> bool:
        """Whether the block adds a branch to its input, and does nothing else."""
        is_plain = type(self).forward is InvertedResidual.forward
        return is_plain and self.residual and isinstance(self.shortcut, nn.Identity)


def init_weights(module: nn.Module) -> None:
    """Initialise a convolution or linear layer as in torchvision's MobileNetV2."""
    init_conv(module)
    if isinstance(module, nn.Linear):
        # timm's bound of 1 / sqrt(classes) gives large logits if there are few classes.
        nn.init.normal_(module.weight, std=0.01)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


# Keys of timm's EfficientNets without gates; in stage 0, which does not expand, the same names mean
# other layers.
TIMM = (
    (r"conv_stem\.", "stem.conv."),
    (r"bn1\.", "stem.norm."),
    (r"conv_head\.", "norm.conv."),
    (r"bn2\.", "norm.norm."),
    (r"classifier\.", "head.fc."),
    (r"blocks\.0\.(\d+)\.conv_dw\.", r"stages.0.blocks.\1.depthwise.conv."),
    (r"blocks\.0\.(\d+)\.bn1\.", r"stages.0.blocks.\1.depthwise.norm."),
    (r"blocks\.0\.(\d+)\.conv_pw\.", r"stages.0.blocks.\1.project.conv."),
    (r"blocks\.0\.(\d+)\.bn2\.", r"stages.0.blocks.\1.project.norm."),
    (r"blocks\.(\d)\.(\d+)\.conv_pw\.", r"stages.\1.blocks.\2.expand.conv."),
    (r"blocks\.(\d)\.(\d+)\.bn1\.", r"stages.\1.blocks.\2.expand.norm."),
    (r"blocks\.(\d)\.(\d+)\.conv_dw\.", r"stages.\1.blocks.\2.depthwise.conv."),
    (r"blocks\.(\d)\.(\d+)\.bn2\.", r"stages.\1.blocks.\2.depthwise.norm."),
    (r"blocks\.(\d)\.(\d+)\.conv_pwl\.", r"stages.\1.blocks.\2.project.conv."),
    (r"blocks\.(\d)\.(\d+)\.bn3\.", r"stages.\1.blocks.\2.project.norm."),
)
