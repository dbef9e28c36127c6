"""EfficientFormer: pooling blocks on feature maps, then attention blocks, at MobileNet speed.

Paper: Li et al., "EfficientFormer: Vision Transformers at MobileNet Speed" (arXiv 2206.01191),
       sizes of table 5 (appendix), blocks of fig. 2 and eq. 3 to 6.
Code:  github.com/snap-research/EfficientFormer @ d01da426243a (Snap Inc. grant in the style of MIT,
       parts Apache-2.0), and timm's efficientformer.py (Apache-2.0); both key styles are read.
Here:  the attention bias is looked up in every forward pass, not cached, and resampled for feature
       maps other than the 7x7 of a 224 px image. Images of any size are supported; the public code
       supports 193 to 224 pixels.
"""

from functools import partial
from typing import Any

import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from zoo.backbone import Backbone, Stage
from zoo.blocks.attention import AttentionBias, BiasedAttention
from zoo.blocks.conv import ConvNorm
from zoo.blocks.drop import drop_path_rates
from zoo.blocks.folding import Absorbing
from zoo.blocks.heads import DistilledHead
from zoo.blocks.init import init_linear
from zoo.blocks.mlp import ConvMlp, Mlp
from zoo.blocks.norm import LayerNorm2d
from zoo.blocks.scale import LayerScale
from zoo.blocks.sizes import grid_size
from zoo.keys import KeyStyle, numbered_blocks, prefixed


class PoolBlock(Absorbing):
    """Average pooling minus identity as token mixer, then a convolutional MLP (eq. 3 and 4).

    `scale1` is not folded: at the border, where fewer pixels are averaged, the mixer is not a
    convolution.

    Args:
        channels: Channels of input and output.
        hidden: Hidden channels of the MLP.
        drop_path: Probability of dropping a branch in training.
        layer_scale: Initial layer scale.
    """

    absorbs_after = {"mlp": "scale2"}
    droppable = True

    def __init__(self, channels: int, hidden: int, *, drop_path: float, layer_scale: float):
        super().__init__()
        self.scale1 = LayerScale(channels, init=layer_scale, spatial=True)
        self.mlp = ConvMlp(channels, hidden, act=nn.GELU, bias=True)
        self.scale2: nn.Module = LayerScale(channels, init=layer_scale, spatial=True)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        mixed = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False) - x
        x = x + self.drop_path(self.scale1(mixed))
        return x + self.drop_path(self.scale2(self.mlp(x)))  # B C H W


class AttentionBlock(Absorbing):
    """Pre-norm attention and MLP over the positions of a feature map (eq. 5 and 6).

    Args:
        channels: Channels of input and output.
        hidden: Hidden width of the MLP.
        grid: Size of the feature map that the attention bias is made for.
        drop_path: Probability of dropping a branch in training.
        layer_scale: Initial layer scale.
    """

    absorbs_before = {"attention": "norm1", "mlp": "norm2"}
    absorbs_after = {"attention": "scale1", "mlp": "scale2"}
    droppable = True

    def __init__(
        self,
        channels: int,
        hidden: int,
        *,
        grid: tuple[int, int],
        drop_path: float,
        layer_scale: float,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attention = BiasedAttention(channels, AttentionBias(8, grid))
        self.scale1: nn.Module = LayerScale(channels, init=layer_scale)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, hidden)
        self.scale2: nn.Module = LayerScale(channels, init=layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        x = x.flatten(2).transpose(1, 2)  # B N C
        x = x + self.drop_path(self.scale1(self.attention(self.norm1(x), height, width)))
        x = x + self.drop_path(self.scale2(self.mlp(self.norm2(x))))
        return x.transpose(1, 2).reshape(batch, channels, height, width)  # B C H W


class EfficientFormer(Backbone):
    """Four stages of pooling blocks; the last blocks of stage 4 attend (fig. 2).

    Args:
        depths: Number of blocks in each stage.
        dims: Channels of each stage.
        num_attention: Number of attention blocks at the end of the last stage.
        layer_scale: Initial layer scale.
    """

    def __init__(
        self,
        *,
        depths: tuple[int, ...],
        dims: tuple[int, ...],
        num_attention: int,
        num_classes: int = 1000,
        in_chans: int = 3,
        img_size: int | tuple[int, int] = 224,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str = "avg",
        layer_scale: float = 1e-5,
    ):
        grid = grid_size(img_size, 32)
        stages = []
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            first_token = depths[i] - num_attention if i == len(depths) - 1 else depths[i]
            blocks = [
                PoolBlock(dims[i], 4 * dims[i], drop_path=rate, layer_scale=layer_scale)
                if j < first_token
                else AttentionBlock(
                    dims[i], 4 * dims[i], grid=grid, drop_path=rate, layer_scale=layer_scale
                )
                for j, rate in enumerate(rates)
            ]
            down = ConvNorm(dims[i - 1], dims[i], kernel_size=3, stride=2, bias=True) if i else None
            stages.append(Stage(blocks, down))
        half = partial(ConvNorm, kernel_size=3, stride=2, bias=True, act=nn.ReLU)
        super().__init__(
            stem=nn.Sequential(half(in_chans, dims[0] // 2), half(dims[0] // 2, dims[0])),
            stages=stages,
            norm=LayerNorm2d(dims[-1]),
            head=DistilledHead(dims[-1], num_classes, pool=global_pool, drop_rate=drop_rate),
            channels=dims,
            strides=(4, 8, 16, 32),
            in_chans=in_chans,
        )
        self.apply(_init)


def _init(module: nn.Module) -> None:
    init_linear(module)
    if isinstance(module, ConvMlp):
        for layer in (module.fc1.conv, module.fc2.conv):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


STEM_AND_HEAD = (
    (r"stem\.(conv|norm)(\d)\.", r"stem.{2-1}.\1."),  # timm
    (r"head_dist\.", "head.fc_dist."),
    (r"patch_embed\.([03])\.", "stem.{1//3}.conv."),  # snap-research
    (r"patch_embed\.([14])\.", "stem.{1//3}.norm."),
    (r"network\.([135])\.proj\.", "stages.{1//2+1}.downsample.conv."),
    (r"network\.([135])\.norm\.", "stages.{1//2+1}.downsample.norm."),
    (r"dist_head\.", "head.fc_dist."),
    (r"head\.", "head.fc."),
)
POOL_BLOCK = (
    (r"(?:ls|layer_scale_)(\d)(?:\.gamma)?$", r"scale\1.gamma"),
    (r"mlp\.fc(\d)\.", r"mlp.fc\1.conv."),
    (r"mlp\.norm(\d)\.", r"mlp.fc\1.norm."),
)
ATTENTION_BLOCK = (
    (r"(?:ls|layer_scale_)(\d)(?:\.gamma)?$", r"scale\1.gamma"),
    (r"token_mixer\.attention_biases$", "attention.bias.table"),
    (r"token_mixer\.attention_bias_idxs$", None),
    (r"token_mixer\.", "attention."),
    ("", ""),
)


def _rows(model: EfficientFormer) -> list[Any]:
    """Return the rows of a key style; both count the flattening before attention as a block."""
    rows: list[Any] = list(STEM_AND_HEAD)
    for s, j, block in numbered_blocks(model):
        attends = isinstance(block, AttentionBlock)
        old = rf"(?:network\.{2 * s}|stages\.{s}\.blocks)\.{j + attends}\."
        parts = ATTENTION_BLOCK if attends else POOL_BLOCK
        rows += prefixed(old, f"stages.{s}.blocks.{j}.", parts)
    return rows


KEY_STYLES = (
    KeyStyle("snap-research/EfficientFormer", "patch_embed.0.weight", rows=_rows),
    KeyStyle("timm", "stem.conv1.weight", rows=_rows),
)

# fmt: off
VARIANTS = {
    "efficientformer_l1": dict(depths=(3, 2,  6, 4), dims=(48,  96, 224, 448), num_attention=1),
    "efficientformer_l3": dict(depths=(4, 4, 12, 6), dims=(64, 128, 320, 512), num_attention=4),
    "efficientformer_l7": dict(depths=(6, 6, 18, 8), dims=(96, 192, 384, 768), num_attention=8),
}
# fmt: on

EfficientFormer.register_family(VARIANTS, KEY_STYLES)
