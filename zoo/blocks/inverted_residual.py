"""The inverted residual of MobileNetV2, and what timm calls the parts of networks made of it."""

import math
import re

from torch import Tensor, nn

from zoo.blocks.conv import ConvNorm
from zoo.blocks.drop import DropPath
from zoo.keys import State, rename


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project without activation (arXiv 1801.04381, fig. 4d, table 1).

    The input is added where its shape is that of the output. With `expansion` 1 there is no
    expanding convolution, unless `hidden` is given.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Step of the depthwise convolution.
        expansion: Channels between over `in_channels`.
        hidden: Channels between, where they are no multiple of `in_channels`.
        kernel_size: Of the depthwise convolution.
        dilation: Of the depthwise convolution.
        act: Class of the activation.
        gate: Applied to the filtered map (squeeze and excitation, say); none leaves it as it is.
        drop_path: Probability of leaving the branch out while training.
    """

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
        act: type[nn.Module] = nn.ReLU6,
        gate: nn.Module | None = None,
        drop_path: float = 0.0,
    ):
        super().__init__()
        expands = hidden is not None or expansion != 1
        hidden = hidden or in_channels * expansion
        self.expand = ConvNorm(in_channels, hidden, act=act) if expands else nn.Identity()
        self.filter = ConvNorm(
            hidden,
            hidden,
            kernel_size=kernel_size,
            stride=stride,
            groups=hidden,
            dilation=dilation,
            act=act,
        )
        self.gate = gate if gate is not None else nn.Identity()
        self.project = ConvNorm(hidden, out_channels)
        self.residual = stride == 1 and in_channels == out_channels
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.gate(self.filter(self.expand(x))))
        return x + self.drop_path(y) if self.residual else y


def init_weights(module: nn.Module) -> None:
    """Draw the weights of a convolution or linear layer as torchvision's MobileNetV2 does."""
    if isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
    elif isinstance(module, nn.Linear):
        # timm's bound of 1 / sqrt(classes) makes large logits of few classes.
        nn.init.normal_(module.weight, std=0.01)
    if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


# In timm's blocks the same names mean other places where there is no expansion.
_TIMM_PARTS = {
    True: {"conv_pw": "expand.conv", "bn1": "expand.norm", "conv_dw": "filter.conv",
           "bn2": "filter.norm", "conv_pwl": "project.conv", "bn3": "project.norm"},
    False: {"conv_dw": "filter.conv", "bn1": "filter.norm", "conv_pw": "project.conv",
            "bn2": "project.norm"},
}  # fmt: skip


def positions(stages: nn.Sequential) -> list[tuple[int, int, bool]]:
    """Return every block of `stages`: stage, index in the stage, whether it expands."""
    return [
        (s, j, isinstance(block.get_submodule("expand"), ConvNorm))
        for s, stage in enumerate(stages)
        for j, block in enumerate(stage.get_submodule("blocks").children())
    ]


def part_rules(old: str, new: str, parts: dict[str, str]) -> list[tuple[str, str]]:
    """Return the rules of `zoo.keys.rename` for the parts of a block called `old` there."""
    return [(rf"{re.escape(old)}\.{re.escape(k)}\.", f"{new}.{part}.") for k, part in parts.items()]


def from_timm(state: State, stages: nn.Sequential) -> State:
    """Rename the parameters of one of timm's EfficientNets without gates to ours.

    Args:
        state: The tensors by timm's names (`conv_stem.weight`, `blocks.0.0.conv_dw.weight` ...).
        stages: Those of the model to be filled, all blocks of them `InvertedResidual`.
    """
    rules = [
        (r"conv_stem\.", "stem.conv."),
        (r"bn1\.", "stem.norm."),
        (r"conv_head\.", "norm.conv."),
        (r"bn2\.", "norm.norm."),
        (r"classifier\.", "head.fc."),
    ]
    for s, j, expands in positions(stages):
        rules += part_rules(f"blocks.{s}.{j}", f"stages.{s}.blocks.{j}", _TIMM_PARTS[expands])
    return rename(state, rules)
