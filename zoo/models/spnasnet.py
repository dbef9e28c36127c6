"""Single-Path NAS: inverted residuals whose kernels and widths were searched for the Pixel 1.

Paper: Stamoulis et al., "Single-Path NAS: Designing Hardware-Efficient ConvNets in less than
       4 Hours" (arXiv 1904.02877).
Code:  timm's spnasnet_100 (Apache-2.0). The authors' github.com/dstamoulis/single-path-nas
       @ 21c1f3e9c790 (Apache-2.0) searches and trains in TensorFlow; the result is not included.
Here:  the network that timm trained. Its stage 4 has 5x5 filters at expansion 3, which the decoder
       of the authors' search cannot express. Padding is symmetric and the norms have
       epsilon 1e-5, as in timm; TensorFlow pads more on one side and uses 1e-3.
"""

from torch import nn

from zoo.backbone import Backbone, Stage
from zoo.blocks.conv import ConvNorm
from zoo.blocks.drop import drop_path_rates
from zoo.blocks.heads import ClassifierHead
from zoo.blocks.inverted_residual import TIMM, InvertedResidual, init_weights
from zoo.keys import KeyStyle

# Output channels and stride of a stage; expansion and kernel of its first block and of the others.
# fmt: off
TABLE = (
    ( 16, 1, (1, 3), ()),
    ( 24, 2, (3, 3), ((3, 3),) * 2),
    ( 40, 2, (6, 5), ((3, 3),) * 3),
    ( 80, 2, (6, 5), ((3, 3),) * 3),
    ( 96, 1, (6, 5), ((3, 5),) * 3),
    (192, 2, (6, 5), ((6, 5),) * 3),
    (320, 1, (6, 3), ()),
)
# fmt: on
STEM, LAST = 32, 1280


class SinglePathNet(Backbone):
    """Seven stages of inverted residuals between two convolutions."""

    def __init__(
        self,
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str = "avg",
    ):
        stages, strides, before = [], [], STEM
        rates = drop_path_rates(drop_path_rate, [1 + len(others) for *_, others in TABLE])
        for (out, stride, first, others), stage_rates in zip(TABLE, rates, strict=True):
            blocks = [
                InvertedResidual(
                    out if j else before,
                    out,
                    stride=1 if j else stride,
                    expansion=expansion,
                    kernel_size=kernel_size,
                    act=nn.ReLU,
                    drop_path=rate,
                )
                for j, ((expansion, kernel_size), rate) in enumerate(
                    zip((first, *others), stage_rates, strict=True)
                )
            ]
            stages.append(Stage(blocks))
            strides.append(stride * (strides[-1] if strides else 2))
            before = out
        super().__init__(
            stem=ConvNorm(in_chans, STEM, kernel_size=3, stride=2, act=nn.ReLU),
            stages=stages,
            norm=ConvNorm(before, LAST, act=nn.ReLU),
            head=ClassifierHead(LAST, num_classes, pool=global_pool, drop_rate=drop_rate),
            channels=[out for out, *_ in TABLE],
            strides=strides,
            in_chans=in_chans,
        )
        self.apply(init_weights)


KEY_STYLES = (KeyStyle("timm", "conv_stem.weight", rows=TIMM),)
VARIANTS = {"spnasnet_100": {}}

SinglePathNet.register_family(VARIANTS, KEY_STYLES)
