"""SkipblockNet: MobileNetV3-like stages that also read the first map, through skip blocks.

Paper: Abrahamyan et al., "Bias Loss for Mobile Neural Networks" (arXiv 2107.11170), section 4 and
       table 1; its loss is `train.loss=bias` (zoo/training/losses.py).
Code:  github.com/lusinlu/bias-loss-skipblocknet @ b557bca21509 (no licence; written from a
       description). The paper's XS, S and L cannot be built by it and are left out.
Here:  a skip block pools to the size of the map it is added to; the public code pools to 28 and 14,
       which is the same for images of 217 to 224 pixels and cannot work for others.
"""

import re
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.backbone import Backbone, LinkedStage, Stage
from zoo.blocks.channels import round_channels
from zoo.blocks.conv import ConvNorm
from zoo.blocks.drop import linear_rates
from zoo.blocks.heads import HiddenHead
from zoo.blocks.inverted_residual import InvertedResidual, init_weights
from zoo.blocks.sizes import is_open, is_size
from zoo.blocks.squeeze import SqueezeExcite
from zoo.keys import KeyStyle, State, rename
from zoo.registry import register

# Of each stage its blocks: kernel, expansion, channels, stride, whether squeezed, activation. The
# public code has stages 1 and 2 as one.
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
# Into which stage a skip block leads from stage 0: channels there, expansion, kernel, how much
# smaller the map is there.
SKIPS = {3: (40, 6, 5, 4), 4: (80, 2.3, 3, 8)}
# fmt: on
STEM, LAST, HIDDEN = 16, 960, 1280


def pool_like(x: Tensor, like: Tensor, ratio: int) -> Tensor:
    """The mean of `x` over a grid of cells, as many of them as `like` has positions.

    Args:
        x: The map to pool.
        like: The map whose size the result has.
        ratio: Side of a cell where all are alike: windows of it are what exporters know.
    """
    height, width = like.shape[2], like.shape[3]
    if is_size(x.shape[2], x.shape[3], (ratio * height, ratio * width)):
        return F.avg_pool2d(x, ratio)
    if torch.jit.is_scripting():
        return F.adaptive_avg_pool2d(x, (height, width))
    else:  # a scripted function may hold Python of any kind in the branch that it never takes
        if is_open(height):
            return cells(x, height, 2) @ x @ cells(x, width, 3).transpose(0, 1)
        return F.adaptive_avg_pool2d(x, (height, width))


def cells(x: Tensor, count: int, axis: int) -> Tensor:
    """The matrix, count x side, that takes an axis of `x` to the means of so many cells of it.

    What adaptive pooling does, for programs that leave the size open: exporters know it for one.
    """
    side = x.shape[axis]
    cell = torch.arange(count, device=x.device)[:, None]
    first, last = cell * side // count, ((cell + 1) * side + count - 1) // count
    place = torch.arange(side, device=x.device)
    return ((place >= first) & (place < last)).to(x.dtype) / (last - first)


torch.fx.wrap("pool_like")  # a leaf for symbolic tracing: its branch depends on the size


class SkipBlock(nn.Module):
    """Pool an early map to the size of a late one, then expand, filter, project (paper, fig. 4).

    Args:
        in_channels: Channels of the early map.
        out_channels: Channels of the late one.
        expansion: Channels between over `in_channels`.
        kernel_size: Of the depthwise convolution.
        ratio: Size of the early map over that of the late one.
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
        hidden = round_channels(in_channels * expansion)
        self.expand = ConvNorm(in_channels, hidden, act=nn.ReLU)
        self.filter = ConvNorm(hidden, hidden, kernel_size=kernel_size, groups=hidden, act=nn.ReLU)
        self.project = ConvNorm(hidden, out_channels)

    def forward(self, early: Tensor, late: Tensor) -> Tensor:
        return self.project(self.filter(self.expand(pool_like(early, late, self.ratio))))


class SkipblockNet(Backbone):
    """Six stages of inverted residuals; two of them read the output of the first as well.

    Args:
        num_classes: Number of logits; 0 leaves the classifier out.
        in_chans: Channels of the image.
        drop_rate: Dropout before the classifier; the authors trained with 0.2.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0.
        global_pool: `"avg"`, `"max"` or `""`.
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
        rates = linear_rates(drop_path_rate, [len(rows) for rows in TABLE])
        for i, rows in enumerate(TABLE):
            blocks = []
            for (kernel_size, expansion, out, stride, squeezed, act), rate in zip(
                rows, rates[i], strict=True
            ):
                hidden = round_channels(before * expansion)
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
    return SqueezeExcite(channels, round_channels(channels // 4), gate=nn.Hardsigmoid)


# Positions in the public blocks; those of skip blocks have no place for a gate.
_PARTS = {"0": "expand.conv", "1": "expand.norm", "3": "filter.conv", "4": "filter.norm",
          "6.fc.0": "gate.reduce", "6.fc.2": "gate.expand",
          "7": "project.conv", "8": "project.norm"}  # fmt: skip
_SKIP_PARTS = {**_PARTS, "6": "project.conv", "7": "project.norm"}


def _places() -> dict[str, str]:
    """Public names of blocks -> ours."""
    places = {"base_block.conv": "stages.0.blocks.0"}
    places |= {f"blocks.0.{j}.conv": f"stages.1.blocks.{j}" for j in range(len(TABLE[1]))}
    first = len(TABLE[1])
    places |= {f"blocks.0.{first + j}.conv": f"stages.2.blocks.{j}" for j in range(len(TABLE[2]))}
    for i in (3, 4, 5):
        places |= {
            f"blocks.{i - 2}.{j}.conv": f"stages.{i}.blocks.{j}" for j in range(len(TABLE[i]))
        }
    return places


def _from_original(state: State, model: SkipblockNet) -> State:
    rules = [
        (r"first_layer\.0\.", "stem.conv."),
        (r"first_layer\.1\.", "stem.norm."),
        (r"conv\.0\.", "norm.conv."),
        (r"conv\.1\.", "norm.norm."),
        (r"classifier\.0\.", "head.hidden.0."),
        (r"classifier\.3\.", "head.fc."),
    ]
    for old, new in _places().items():
        rules += [(rf"{re.escape(f'{old}.{k}')}\.", f"{new}.{v}.") for k, v in _PARTS.items()]
    for number, i in enumerate(SKIPS, start=1):
        rules += [
            (rf"skip{number}\.core_block\.{k}\.", f"stages.{i}.link.{v}.")
            for k, v in _SKIP_PARTS.items()
            if "." not in k
        ]
    state = rename(state, rules)
    return {
        key: tensor[..., None, None] if tensor.ndim == 2 and ".gate." in key else tensor
        for key, tensor in state.items()
    }


SkipblockNet.key_styles = (
    KeyStyle("lusinlu/bias-loss-skipblocknet", "first_layer.0.weight", _from_original),
)

VARIANTS = {"skipblocknet_m": {}}

for _name, _arguments in VARIANTS.items():
    register(_name, partial(SkipblockNet, **_arguments))
