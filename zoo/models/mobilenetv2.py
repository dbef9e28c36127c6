"""MobileNetV2: inverted residuals with linear bottlenecks.

Paper: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (arXiv 1801.04381),
       table 2; the widened and deepened "d" variants are timm's.
Code:  timm's mobilenetv2_* (Apache-2.0) and torchvision's MobileNetV2 (BSD-3-Clause), which compute
       the same function; both key styles are read.
Here:  padding is symmetric, as in both; TensorFlow's original pads on one side more.
       `output_stride` 8 or 16 turns later strides into dilations, for dense tasks.
"""

import math
from functools import partial

from torch import nn

from zoo.backbone import Backbone, Stage
from zoo.blocks.channels import round_channels
from zoo.blocks.conv import ConvNorm
from zoo.blocks.drop import linear_rates
from zoo.blocks.heads import ClassifierHead
from zoo.blocks.inverted_residual import (
    InvertedResidual,
    from_timm,
    init_weights,
    part_rules,
    positions,
)
from zoo.errors import BadInput
from zoo.keys import KeyStyle, State, rename
from zoo.registry import register

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
        width: Factor of all channel counts.
        depth: Factor of the repeats of all stages but the first and the last.
        fixed_ends: The stem and the last convolution keep the counts of width 1.
        num_classes: Number of logits; 0 leaves the classifier out.
        in_chans: Channels of the image.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0.
        global_pool: `"avg"`, `"max"` or `""`.
        output_stride: Largest stride, 8, 16 or 32; beyond it, dilation takes the place of stride.
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
            raise BadInput(f"output_stride={output_stride}: MobileNetV2 has 8, 16 and 32")
        stem = 32 if fixed_ends else round_channels(32 * width)
        last = 1280 if fixed_ends else max(1280, round_channels(1280 * width))
        repeats = [
            n if i in (0, len(TABLE) - 1) else math.ceil(n * depth)
            for i, (_, _, n, _) in enumerate(TABLE)
        ]
        stages, channels, strides = [], [], []
        before, total, dilation = stem, 2, 1
        rates = linear_rates(drop_path_rate, repeats)
        for (expansion, out, _, stride), stage_rates in zip(TABLE, rates, strict=True):
            out = round_channels(out * width)
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


_TORCHVISION_PARTS = {
    True: {"0.0": "expand.conv", "0.1": "expand.norm", "1.0": "filter.conv", "1.1": "filter.norm",
           "2": "project.conv", "3": "project.norm"},
    False: {"0.0": "filter.conv", "0.1": "filter.norm", "1": "project.conv", "2": "project.norm"},
}  # fmt: skip


def _from_timm(state: State, model: MobileNetV2) -> State:
    return from_timm(state, model.stages)


def _from_torchvision(state: State, model: MobileNetV2) -> State:
    rules = [
        (r"features\.0\.0\.", "stem.conv."),
        (r"features\.0\.1\.", "stem.norm."),
        (r"classifier\.1\.", "head.fc."),
    ]
    position = 0
    for position, (s, j, expands) in enumerate(positions(model.stages), start=1):
        rules += part_rules(
            f"features.{position}.conv", f"stages.{s}.blocks.{j}", _TORCHVISION_PARTS[expands]
        )
    rules += [
        (rf"features\.{position + 1}\.0\.", "norm.conv."),
        (rf"features\.{position + 1}\.1\.", "norm.norm."),
    ]
    return rename(state, rules)


MobileNetV2.key_styles = (
    KeyStyle("timm", "conv_stem.weight", _from_timm),
    KeyStyle("torchvision", "features.0.0.weight", _from_torchvision),
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

for _name, _arguments in VARIANTS.items():
    register(_name, partial(MobileNetV2, **_arguments))
