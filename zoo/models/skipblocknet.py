"""SkipblockNet: MobileNetV3-like stages that also read the first feature map, by skip blocks.

Paper: Abrahamyan et al., "Bias Loss for Mobile Neural Networks" (arXiv 2107.11170), section 4 and
       table 1; its loss is `train.loss=bias` (zoo/training/losses.py).
Code:  github.com/lusinlu/bias-loss-skipblocknet @ b557bca21509 (no licence; written from a
       description). The paper's XS, S and L cannot be built with it and are left out.
Here:  a skip block pools to the size of its target; the public code pools to 28 and 14,
       which is the same for images of 217 to 224 pixels and fails for others.
"""

import torch
import torch.nn.functional as F
from timm.layers import make_divisible
from torch import Tensor, nn

from zoo.backbone import Backbone, LinkedStage, Stage
from zoo.blocks.conv import ConvNorm
from zoo.blocks.drop import drop_path_rates
from zoo.blocks.heads import HiddenHead
from zoo.blocks.inverted_residual import InvertedResidual, init_weights
from zoo.blocks.sizes import is_dynamic, is_size
from zoo.blocks.squeeze import SqueezeExcite
from zoo.blocks.widths import Group, hidden_channels
from zoo.keys import KeyStyle, prefixed

# The blocks of each stage: kernel, expansion, channels, stride, squeeze and excitation, activation.
# Stages 1 and 2 are one stage in the public code.
_R, _H = nn.ReLU, nn.Hardswish
# fmt: off
TABLE = (
    ((3, 1, 16, 1, False, _H),),
    ((3, 4, 24, 2, False, _R), (3, 3, 24, 1, False, _R)),
    ((5, 3, 40, 2, True, _R), (5, 3, 40, 1, True, _R), (5, 6, 40, 1, True, _H)),
    ((3, 6, 80, 2, False, _H), (3, 2.5, 80, 1, False, _H), (3, 2.3, 80, 1, False, _H),
     (3, 2.3, 80, 1, False, _H)),
    ((3, 6, 112, 1, True, _H), (3, 6, 112, 1, True, _H)),
    ((5, 6, 160, 2, True, _H), (5, 6, 160, 1, True, _H), (5, 6, 160, 1, True, _H)),
)
# Target stages of the skip blocks from stage 0: channels, expansion, kernel, reduction.
SKIPS = {3: (40, 6, 5, 4), 4: (80, 2.3, 3, 8)}
# fmt: on
STEM, LAST, HIDDEN = 16, 960, 1280


def pool_like(x: Tensor, like: Tensor, ratio: int) -> Tensor:
    """Average `x` over a grid of cells, one for each position of `like`.

    Args:
        x: The feature map to pool.
        like: A feature map of the size of the result.
        ratio: Side of a cell if all cells are equal, which ordinary average pooling computes.
    """
    height, width = like.shape[2], like.shape[3]
    if is_size(x.shape[2], x.shape[3], (ratio * height, ratio * width)):
        return F.avg_pool2d(x, ratio)
    if torch.jit.is_scripting():
        return F.adaptive_avg_pool2d(x, (height, width))
    else:
        if is_dynamic(height):
            return cells(x, height, 2) @ x @ cells(x, width, 3).transpose(0, 1)
        return F.adaptive_avg_pool2d(x, (height, width))


def cells(x: Tensor, count: int, axis: int) -> Tensor:
    """Return the matrix, count x side, that pools an axis of `x` to `count` cells.

    It replaces adaptive pooling in programs of dynamic size: exporters support static sizes only.
    """
    side = x.shape[axis]
    cell = torch.arange(count, device=x.device)[:, None]
    first, last = cell * side // count, ((cell + 1) * side + count - 1) // count
    place = torch.arange(side, device=x.device)
    return ((place >= first) & (place < last)).to(x.dtype) / (last - first)


torch.fx.wrap("pool_like")


class SkipBlock(nn.Module):
    """Pool an early feature map to the size of a late one, then an inverted bottleneck (fig. 4).

    Args:
        in_channels: Channels of the early feature map.
        out_channels: Channels of the late feature map.
        expansion: Hidden channels divided by `in_channels`.
        kernel_size: Kernel size of the depthwise convolution.
        ratio: Size of the early feature map divided by that of the late one.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        expansion: float,
        kernel_size: int,
        ratio: int,
    ):
        super().__init__()
        self.ratio = ratio
        hidden = make_divisible(in_channels * expansion)
        self.expand = ConvNorm(in_channels, hidden, act=nn.ReLU)
        self.depthwise = ConvNorm(
            hidden, hidden, kernel_size=kernel_size, groups=hidden, act=nn.ReLU
        )
        self.project = ConvNorm(hidden, out_channels)

    def forward(self, early: Tensor, late: Tensor) -> Tensor:
        x = pool_like(early, late, self.ratio)  # B C and the size of late
        return self.project(self.depthwise(self.expand(x)))

    def prunable(self) -> list[Group]:
        """Declare the hidden channels."""
        return [hidden_channels(self, made=("expand", "depthwise"), read=("project.conv",))]


class SkipblockNet(Backbone):
    """Six stages of inverted residuals; two of them read the output of the first as well.

    The authors trained with `drop_rate=0.2`.
    """

    def __init__(
        self,
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str = "avg",
    ):
        stages, strides, channels, before = [], [], [], STEM
        rates = drop_path_rates(drop_path_rate, [len(rows) for rows in TABLE])
        for i, rows in enumerate(TABLE):
            blocks = []
            for (kernel_size, expansion, out, stride, squeezed, act), rate in zip(
                rows, rates[i], strict=True
            ):
                hidden = make_divisible(before * expansion)
                blocks.append(
                    InvertedResidual(
                        before,
                        out,
                        stride=stride,
                        hidden=hidden,
                        kernel_size=kernel_size,
                        act=act,
                        gate=_squeeze(hidden) if squeezed else None,
                        drop_path=rate,
                    )
                )
                before = out
            if i in SKIPS:
                late, expansion, kernel_size, ratio = SKIPS[i]
                skip = SkipBlock(
                    STEM, late, expansion=expansion, kernel_size=kernel_size, ratio=ratio
                )
                stages.append(LinkedStage(blocks, source=0, link=skip))
            else:
                stages.append(Stage(blocks))
            channels.append(before)
            strides.append(rows[0][3] * (strides[-1] if strides else 2))
        super().__init__(
            stem=ConvNorm(in_chans, STEM, kernel_size=3, stride=2, act=nn.Hardswish),
            stages=stages,
            norm=ConvNorm(before, LAST, act=nn.Hardswish),
            head=HiddenHead(
                LAST, num_classes, hidden_size=HIDDEN, pool=global_pool, drop_rate=drop_rate
            ),
            channels=channels,
            strides=strides,
            in_chans=in_chans,
        )
        self.apply(init_weights)


def _squeeze(channels: int) -> SqueezeExcite:
    return SqueezeExcite(channels, make_divisible(channels // 4), gate=nn.Hardsigmoid)


BLOCK = (
    (r"0\.", "expand.conv."),
    (r"1\.", "expand.norm."),
    (r"3\.", "depthwise.conv."),
    (r"4\.", "depthwise.norm."),
    (r"6\.fc\.0\.", "gate.reduce."),
    (r"6\.fc\.2\.", "gate.expand."),
    (r"7\.", "project.conv."),
    (r"8\.", "project.norm."),
)
SKIP_BLOCK = (*BLOCK[:4], (r"6\.", "project.conv."), (r"7\.", "project.norm."))
KEY_STYLES = (
    KeyStyle(
        "lusinlu/bias-loss-skipblocknet",
        "first_layer.0.weight",
        rows=(
            (r"first_layer\.0\.", "stem.conv."),
            (r"first_layer\.1\.", "stem.norm."),
            (r"conv\.0\.", "norm.conv."),
            (r"conv\.1\.", "norm.norm."),
            (r"classifier\.0\.", "head.hidden.0."),
            (r"classifier\.3\.", "head.fc."),
            *prefixed(r"base_block\.conv\.", "stages.0.blocks.0.", BLOCK),
            *prefixed(r"blocks\.0\.([01])\.conv\.", r"stages.1.blocks.\1.", BLOCK),
            *prefixed(r"blocks\.0\.(\d)\.conv\.", "stages.2.blocks.{1-2}.", BLOCK),
            *prefixed(r"blocks\.(\d)\.(\d)\.conv\.", r"stages.{1+2}.blocks.\2.", BLOCK),
            *prefixed(r"skip(\d)\.core_block\.", "stages.{1+2}.link.", SKIP_BLOCK),
        ),
    ),
)

VARIANTS = {"skipblocknet_m": {}}

SkipblockNet.register_family(VARIANTS, KEY_STYLES)
