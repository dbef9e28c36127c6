"""EMOv2: EMO's block with two kinds of windows that share queries, keys and values.

Paper: Zhang et al., "EMOv2: Pushing 5M Vision Model Frontier" (arXiv 2412.06674), fig. 3.
Code:  github.com/zhangzjn/EMOv2 @ 582a96fe63f1 (no licence; written from a description).
Here:  maps are padded to whole windows without a mask, as the public code does. The size of the
       windows is no part of the weights; the names that end in a size only choose it.
       `emo1_*` have far windows alone, as EMO, but project values first: EMO's weights do not fit.
"""

from functools import partial

from torch import nn

from zoo.backbone import Backbone, Stage
from zoo.blocks.conv import ConvNorm
from zoo.blocks.heads import ClassifierHead
from zoo.blocks.mobile_block import from_public, init_weights, mobile_stages
from zoo.blocks.norm import LayerNorm2d
from zoo.keys import KeyStyle, State
from zoo.registry import register


class EMOv2(Backbone):
    """A convolutional stage, then four of mobile blocks, the last two with attention.

    Args:
        depths: Blocks of the last four stages.
        dims: Channels of the last four stages; the stem has half of the first.
        ratios: Expansion of their blocks; the first of a stage has twice as much.
        head_dims: Channels of a head's queries and keys, stage by stage.
        kernels: Sides of the depthwise filters, stage by stage.
        close: Attend in close windows as well as in far ones.
        window_size: Side of the windows of attention.
        num_classes: Number of logits; 0 leaves the classifier out.
        in_chans: Channels of the image.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0.
        global_pool: `"avg"`, `"max"` or `""`.
        layer_scale: Initial layer scale.
    """

    def __init__(
        self,
        *,
        depths: tuple[int, ...],
        dims: tuple[int, ...],
        ratios: tuple[float, ...],
        head_dims: tuple[int, ...],
        kernels: tuple[int, ...] = (5, 5, 5, 5),
        close: bool = True,
        window_size: int = 7,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str = "avg",
        layer_scale: float = 1e-6,
    ):
        stem = dims[0] // 2
        mobile = mobile_stages(
            stem,
            dims,
            depths,
            ratios=ratios,
            head_dims=head_dims,
            kernels=kernels,
            window_size=window_size,
            close=close,
            raw_values=False,
            layer_scale=layer_scale,
            drop_path_rate=drop_path_rate,
        )
        super().__init__(
            stem=ConvNorm(in_chans, stem, kernel_size=3, stride=2, bias=True, act=nn.SiLU),
            stages=[Stage([_stem_block(stem)]), *map(Stage, mobile)],
            norm=LayerNorm2d(dims[-1]),
            head=ClassifierHead(dims[-1], num_classes, pool=global_pool, drop_rate=drop_rate),
            channels=(stem, *dims),
            strides=(2, 4, 8, 16, 32),
            in_chans=in_chans,
        )
        self.apply(init_weights)


def _stem_block(channels: int) -> nn.Sequential:
    """A depthwise convolution and a 1x1 one without norm, bias or activation."""
    return nn.Sequential(
        ConvNorm(channels, channels, kernel_size=3, groups=channels, act=nn.SiLU),
        nn.Conv2d(channels, channels, 1, bias=False),
    )


def _from_original(state: State, model: EMOv2) -> State:
    stem = [
        (r"stage0\.0\.", "stem."),
        (r"stage0\.1\.", "stages.0.blocks.0.0."),
        (r"stage0\.2\.conv\.", "stages.0.blocks.0.1."),
    ]
    return from_public(state, stem)


EMOv2.key_styles = (KeyStyle("zhangzjn/EMOv2", "stage0.0.conv.weight", _from_original),)

_HALVES, _WHOLES = (2, 2.5, 3, 3.5), (2, 3, 4, 4)
# fmt: off
SIZES = {
    "1m":  dict(depths=(2, 2,  8, 3), dims=(32,  48,  80, 180), ratios=_HALVES,
                head_dims=(16, 16, 20, 20)),
    "2m":  dict(depths=(3, 3,  9, 3), dims=(32,  48, 120, 200), ratios=_HALVES,
                head_dims=(16, 16, 20, 20)),
    "5m":  dict(depths=(3, 3,  9, 3), dims=(48,  72, 160, 288), ratios=_WHOLES,
                head_dims=(16, 24, 32, 32)),
    "20m": dict(depths=(3, 3, 13, 3), dims=(64, 128, 320, 448), ratios=_WHOLES,
                head_dims=(16, 32, 32, 32)),
    "50m": dict(depths=(5, 8, 20, 7), dims=(64, 128, 384, 512), ratios=_WHOLES,
                head_dims=(16, 32, 32, 32)),
}
# fmt: on
VARIANTS = {f"emo2_{size}_k5_hybrid": arguments for size, arguments in SIZES.items()}
VARIANTS |= {
    f"emo2_{size}_k5_hybrid_{pixels}": dict(SIZES[size], window_size=8)
    for pixels, sizes in ((256, ("1m", "2m", "5m", "20m")), (512, ("1m", "2m", "5m")))
    for size in sizes
}
VARIANTS |= {
    f"emo1_{size}": dict(SIZES[size], kernels=(3, 3, 5, 5), close=False)
    for size in ("1m", "2m", "5m", "20m")
}

for _name, _arguments in VARIANTS.items():
    register(_name, partial(EMOv2, **_arguments))
