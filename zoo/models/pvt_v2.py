"""PVT v2: PVT with overlapping patches, a convolution in the perceptron, and no position table.

Paper: Wang et al., "PVT v2: Improved Baselines with Pyramid Vision Transformer" (arXiv 2106.13797),
       sizes of table 1, fig. 1 and 2.
Code:  github.com/whai362/PVT @ 57e2dfaa5a46, classification/pvt_v2.py (Apache-2.0).
Here:  feature maps instead of tokens between the stages.
"""

from torch import nn

from zoo.blocks.reduced import ReducedAttention
from zoo.blocks.transformer import SeparateQKVAttention
from zoo.keys import KeyStyle
from zoo.pyramid_backbone import HEADS, PUBLIC_ROWS, SIZES, PyramidBackbone

REDUCTIONS = (8, 4, 2, 1)


class PVTv2(PyramidBackbone):
    """Four stages at strides 4, 8, 16 and 32; keys and values come from smaller feature maps.

    Args:
        depths: Number of blocks in each stage.
        dims: Channels of each stage.
    """

    least = 29  # a side whose first feature map has the 8 positions that are reduced to one

    def mixer(self, channels: int, stage: int) -> nn.Module:
        """Return the attention of a block of a stage, on B H W C."""
        if REDUCTIONS[stage] > 1:
            return ReducedAttention(channels, HEADS[stage], REDUCTIONS[stage])
        return SeparateQKVAttention(channels, HEADS[stage])


KEY_STYLES = (
    KeyStyle("whai362/PVT (v2)", "patch_embed1.proj.weight", rows=PUBLIC_ROWS),
    KeyStyle(
        "timm",
        "patch_embed.proj.weight",
        rows=(
            (r"patch_embed\.proj\.", "stem.project."),
            (r"patch_embed\.", "stem."),
            (r"stages\.(\d)\.downsample\.proj\.", r"stages.\1.downsample.project."),
            (r"stages\.(\d)\.blocks\.(\d+)\.attn\.sr\.", r"stages.\1.blocks.\2.mixer.reduce."),
            (r"stages\.(\d)\.blocks\.(\d+)\.attn\.norm\.", r"stages.\1.blocks.\2.mixer.norm."),
            (r"stages\.3\.blocks\.(\d+)\.attn\.", r"stages.3.blocks.\1.mixer."),
            (r"stages\.(\d)\.blocks\.(\d+)\.attn\.", r"stages.\1.blocks.\2.mixer.attention."),
            (r"stages\.(\d)\.blocks\.(\d+)\.mlp\.dwconv\.", r"stages.\1.blocks.\2.mlp.depthwise."),
            (r"head\.", "head.fc."),
        ),
    ),
)

VARIANTS = {f"pvt_v2_{size}": arguments for size, arguments in SIZES.items()}

PVTv2.register_family(VARIANTS, KEY_STYLES)
