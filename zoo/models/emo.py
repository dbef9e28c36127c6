"""EMO (the mobile backbone of ICCV 2023): one inverted residual block, with attention or without.

Paper: Zhang et al., "Rethinking Mobile Block for Efficient Attention-based Models"
       (arXiv 2301.01146), fig. 3 and table 1.
Code:  github.com/zhangzjn/EMO @ 27d9b40fea9c (no licence; written from a description).
Here:  maps are padded to whole windows without a mask, as the public code does: padded pixels take
       part as keys. The size of the windows is no part of the weights: `window_size` is free, and
       the authors' detectors and segmenters use 10 and 16 with the weights of 7.
"""

from functools import partial

from torch import nn

from zoo.backbone import Backbone, Stage
from zoo.blocks.conv import ConvNorm
from zoo.blocks.heads import ClassifierHead
from zoo.blocks.mobile_block import from_public, init_weights, mobile_stages
from zoo.blocks.norm import LayerNorm2d
from zoo.blocks.squeeze import SqueezeExcite
from zoo.keys import KeyStyle, State
from zoo.registry import register

STEM = 24
KERNELS = (3, 3, 5, 5)


class EMO(Backbone):
    """A convolutional stage, then four of mobile blocks, the last two with attention (table 1).

    Args:
        depths: Blocks of the last four stages.
        dims: Channels of the last four stages.
        ratios: Expansion of their blocks; the first of a stage has twice as much.
        head_dims: Channels of a head, stage by stage.
        window_size: Side of the windows of attention.
        num_classes: Number of logits; 0 leaves the classifier out.
        in_chans: Channels of the image.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0.
        global_pool: `"avg"`, `"max"` or `""`.
    """

    def __init__(
        self,
        *,
        depths: tuple[int, ...],
        dims: tuple[int, ...],
        ratios: tuple[float, ...],
        head_dims: tuple[int, ...],
        window_size: int = 7,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str = "avg",
    ):
        mobile = mobile_stages(
            STEM,
            dims,
            depths,
            ratios=ratios,
            head_dims=head_dims,
            kernels=KERNELS,
            window_size=window_size,
            close=False,
            raw_values=True,
            layer_scale=None,
            drop_path_rate=drop_path_rate,
        )
        super().__init__(
            stem=ConvNorm(in_chans, STEM, kernel_size=3, stride=2, bias=True),
            stages=[Stage([_stem_block()]), *map(Stage, mobile)],
            norm=LayerNorm2d(dims[-1]),
            head=ClassifierHead(dims[-1], num_classes, pool=global_pool, drop_rate=drop_rate),
            channels=(STEM, *dims),
            strides=(2, 4, 8, 16, 32),
            in_chans=in_chans,
        )
        self.apply(init_weights)


def _stem_block() -> nn.Sequential:
    """A mobile block without norm, mixer or shortcut, gated before its projection."""
    return nn.Sequential(
        ConvNorm(STEM, STEM, kernel_size=3, groups=STEM, act=nn.SiLU),
        SqueezeExcite(STEM, STEM, act=nn.SiLU),
        nn.Conv2d(STEM, STEM, 1, bias=False),
    )


def _from_original(state: State, model: EMO) -> State:
    stem = [
        (r"stage0\.0\.convs\.0\.0\.", "stem.conv."),
        (r"stage0\.0\.convs\.0\.1\.", "stem.norm."),
        (r"stage0\.1\.conv_local\.", "stages.0.blocks.0.0."),
        (r"stage0\.1\.se\.conv_(\w+)\.", r"stages.0.blocks.0.1.\1."),
        (r"stage0\.1\.proj\.conv\.", "stages.0.blocks.0.2."),
    ]
    return from_public(state, stem)


EMO.key_styles = (KeyStyle("zhangzjn/EMO", "stage0.0.convs.0.0.weight", _from_original),)

_HALVES = (2, 2.5, 3, 3.5)
# fmt: off
VARIANTS = {
    "emo_1m": dict(depths=(2, 2, 8, 3), dims=(32, 48,  80, 168), ratios=_HALVES,
                   head_dims=(16, 16, 20, 21)),
    "emo_2m": dict(depths=(3, 3, 9, 3), dims=(32, 48, 120, 200), ratios=_HALVES,
                   head_dims=(16, 16, 20, 20)),
    "emo_5m": dict(depths=(3, 3, 9, 3), dims=(48, 72, 160, 288), ratios=(2, 3, 4, 4),
                   head_dims=(24, 24, 32, 32)),
    "emo_6m": dict(depths=(3, 3, 9, 3), dims=(48, 72, 160, 320), ratios=(2, 3, 4, 5),
                   head_dims=(16, 24, 20, 32)),
}
# fmt: on

for _name, _arguments in VARIANTS.items():
    register(_name, partial(EMO, **_arguments))
