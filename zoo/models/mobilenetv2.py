"""MobileNetV2: inverted residuals with linear bottlenecks.

Paper: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (arXiv 1801.04381),
       table 2; the widened and deepened "d" variants are timm's.
Code:  timm's mobilenetv2_* (Apache-2.0), torchvision's MobileNetV2 (BSD-3-Clause) and
       github.com/d-li14/mobilenetv2.pytorch (Apache-2.0), which compute the same function; all
       three key styles are read.
Here:  padding is symmetric, as in both; the original in TensorFlow pads more on one side.
       `output_stride` 8 or 16 turns later strides into dilations, for dense tasks.
"""

import math
from typing import Any

from timm.layers import make_divisible
from torch import nn

from zoo.backbone import Backbone, Stage
from zoo.blocks.conv import ConvNorm
from zoo.blocks.drop import drop_path_rates
from zoo.blocks.heads import ClassifierHead
from zoo.blocks.inverted_residual import TIMM, InvertedResidual, init_weights
from zoo.errors import BadInput
from zoo.keys import KeyStyle, numbered_blocks, prefixed

# Table 2: expansion, output channels, repeats, stride of the first repeat.
TABLE = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class MobileNetV2(Backbone):
    """Seven stages of inverted residuals between two convolutions.

    Args:
        width: Factor of all numbers of channels.
        depth: Factor of the numbers of repeats, except in the first and the last stage.
        fixed_ends: Whether the stem and the last convolution keep their channels of `width=1`.
        output_stride: Largest stride, 8, 16 or 32; dilation replaces the strides beyond it.
    """

    def __init__(
        self,
        *,
        width: float = 1.0,
        depth: float = 1.0,
        fixed_ends: bool = False,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str = "avg",
        output_stride: int = 32,
    ):
        if output_stride not in (8, 16, 32):
            raise BadInput(f"output_stride={output_stride}: choose 8, 16 or 32")
        stem = 32 if fixed_ends else make_divisible(32 * width)
        last = 1280 if fixed_ends else max(1280, make_divisible(1280 * width))
        repeats = [
            n if i in (0, len(TABLE) - 1) else math.ceil(n * depth)
            for i, (_, _, n, _) in enumerate(TABLE)
        ]
        stages, channels, strides = [], [], []
        before, total, dilation = stem, 2, 1
        rates = drop_path_rates(drop_path_rate, repeats)
        for (expansion, out, _, stride), stage_rates in zip(TABLE, rates, strict=True):
            out = make_divisible(out * width)
            total *= stride
            step, first_dilation = stride, dilation
            if total > output_stride and stride > 1:
                step, dilation = 1, dilation * stride
            blocks = [
                InvertedResidual(
                    out if j else before,
                    out,
                    stride=1 if j else step,
                    expansion=expansion,
                    dilation=dilation if j else first_dilation,
                    drop_path=rate,
                )
                for j, rate in enumerate(stage_rates)
            ]
            stages.append(Stage(blocks))
            channels.append(out)
            strides.append(total)
            before = out
        super().__init__(
            stem=ConvNorm(in_chans, stem, kernel_size=3, stride=2, act=nn.ReLU6),
            stages=stages,
            norm=ConvNorm(before, last, act=nn.ReLU6),
            head=ClassifierHead(last, num_classes, pool=global_pool, drop_rate=drop_rate),
            channels=channels,
            strides=strides,
            in_chans=in_chans,
            output_stride=output_stride,
        )
        self.apply(init_weights)


EXPANDING = (
    (r"0\.0\.", "expand.conv."),
    (r"0\.1\.", "expand.norm."),
    (r"1\.0\.", "depthwise.conv."),
    (r"1\.1\.", "depthwise.norm."),
    (r"2\.", "project.conv."),
    (r"3\.", "project.norm."),
)
NOT_EXPANDING = (
    (r"0\.0\.", "depthwise.conv."),
    (r"0\.1\.", "depthwise.norm."),
    (r"1\.", "project.conv."),
    (r"2\.", "project.norm."),
)


def _torchvision(model: MobileNetV2) -> list[Any]:
    """Return the rows; torchvision numbers stem, blocks and last convolution in one sequence."""
    blocks = numbered_blocks(model)
    rows: list[Any] = [
        (r"features\.0\.0\.", "stem.conv."),
        (r"features\.0\.1\.", "stem.norm."),
        (rf"features\.{len(blocks) + 1}\.0\.", "norm.conv."),
        (rf"features\.{len(blocks) + 1}\.1\.", "norm.norm."),
        (r"classifier\.1\.", "head.fc."),
    ]
    for number, (s, j, block) in enumerate(blocks, start=1):
        parts = EXPANDING if isinstance(block.expand, ConvNorm) else NOT_EXPANDING
        rows += prefixed(rf"features\.{number}\.conv\.", f"stages.{s}.blocks.{j}.", parts)
    return rows


def _d_li14(model: MobileNetV2) -> list[Any]:
    """Return the rows; d-li14 numbers blocks from 1, and every layer of a block in one sequence."""
    rows: list[Any] = [
        (r"features\.0\.0\.", "stem.conv."),
        (r"features\.0\.1\.", "stem.norm."),
        (r"conv\.0\.", "norm.conv."),
        (r"conv\.1\.", "norm.norm."),
        (r"classifier\.", "head.fc."),
    ]
    for number, (s, j, block) in enumerate(numbered_blocks(model), start=1):
        parts = ["expand", "depthwise", "project"]
        parts = parts if isinstance(block.expand, ConvNorm) else parts[1:]
        for place, part in enumerate(parts):  # an activation follows each but the last
            for offset, layer in enumerate(("conv", "norm")):
                rows += prefixed(
                    rf"features\.{number}\.conv\.",
                    f"stages.{s}.blocks.{j}.",
                    [(rf"{3 * place + offset}\.", f"{part}.{layer}.")],
                )
    return rows


KEY_STYLES = (
    KeyStyle("timm", "conv_stem.weight", rows=TIMM),
    KeyStyle("d-li14/mobilenetv2.pytorch", "conv.0.weight", rows=_d_li14),
    KeyStyle("torchvision", "features.0.0.weight", rows=_torchvision),
)

# fmt: off
VARIANTS = {
    "mobilenetv2_035":  dict(width=0.35),
    "mobilenetv2_050":  dict(width=0.50),
    "mobilenetv2_075":  dict(width=0.75),
    "mobilenetv2_100":  dict(width=1.00),
    "mobilenetv2_110d": dict(width=1.10, depth=1.2, fixed_ends=True),
    "mobilenetv2_120d": dict(width=1.20, depth=1.4, fixed_ends=True),
    "mobilenetv2_140":  dict(width=1.40),
}
# fmt: on

MobileNetV2.register_family(VARIANTS, KEY_STYLES)
