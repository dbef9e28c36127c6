"""PVT v2: PVT with overlapping patches, a convolution in the perceptron, and no position table.

Paper: Wang et al., "PVT v2: Improved Baselines with Pyramid Vision Transformer" (arXiv 2106.13797),
       sizes of table 1, fig. 1 and 2.
Code:  github.com/whai362/PVT @ 57e2dfaa5a46, classification/pvt_v2.py (Apache-2.0).
Here:  feature maps instead of tokens between the stages.
"""

from typing import Any

import torch
from torch import Tensor, nn

from zoo.backbone import Backbone, Stage
from zoo.blocks.drop import drop_path_rates
from zoo.blocks.heads import ClassifierHead
from zoo.blocks.init import init_conv, init_linear
from zoo.blocks.mlp import MixFFN
from zoo.blocks.norm import LayerNorm2d
from zoo.blocks.transformer import SeparateQKVAttention, TransformerBlock
from zoo.errors import BadInput
from zoo.keys import KeyStyle
from zoo.models.pvt import ReducedAttention

HEADS = (1, 2, 5, 8)
MLP_RATIOS = (8, 8, 4, 4)
REDUCTIONS = (8, 4, 2, 1)
STRIDES = (4, 8, 16, 32)
LEAST = 29  # pixels of a side whose first feature map has the 8 positions that are reduced to one


def check_least(x: Tensor, least: int) -> None:
    """Raise `BadInput` for images B C H W with a side of fewer pixels than `least`."""
    if x.shape[2] < least or x.shape[3] < least:
        raise BadInput(
            f"images of {x.shape[2]} x {x.shape[3]} pixels are too small: at least {least} x"
            f" {least} are required"
        )


torch.fx.wrap("check_least")


class OverlappingPatches(nn.Module):
    """A convolution of patches that overlap, then a norm (fig. 1a).

    Args:
        in_channels: Channels of the image or feature map.
        out_channels: Channels of the output.
        stride: Stride; the side of a patch is 2 stride - 1.
        least: Smallest side that the following layers support.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, least: int = 1):
        super().__init__()
        self.least = least
        side = 2 * stride - 1
        self.project = nn.Conv2d(in_channels, out_channels, side, stride, padding=side // 2)
        self.norm = LayerNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        check_least(x, self.least)
        return self.norm(self.project(x))  # B C' H/s W/s


class NormedStage(Stage):
    """A stage with a norm at its end.

    Args:
        blocks: Applied in order.
        downsample: Applied first, or None.
        norm: Applied last.
    """

    def __init__(self, blocks: list[nn.Module], downsample: nn.Module | None, norm: nn.Module):
        super().__init__(blocks, downsample)
        self.norm = norm

    def run(self, x: Tensor) -> Tensor:
        return self.norm(self.run_blocks(self.downsample(x)))  # B C H W


class PVTv2(Backbone):
    """Four stages at strides 4, 8, 16 and 32, each with a norm at its end.

    Args:
        depths: Number of blocks in each stage.
        dims: Channels of each stage.
    """

    least = LEAST

    def __init__(
        self,
        *,
        depths: tuple[int, ...],
        dims: tuple[int, ...] = (64, 128, 320, 512),
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str = "avg",
    ):
        stem = OverlappingPatches(in_chans, dims[0], 4, least=self.least)
        stages = []
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            blocks: list[nn.Module] = [
                TransformerBlock(
                    dims[i],
                    self.mixer(dims[i], i),
                    MixFFN(dims[i], MLP_RATIOS[i] * dims[i]),
                    drop_path=rate,
                    maps=True,
                )
                for rate in rates
            ]
            patches = OverlappingPatches(dims[i - 1], dims[i], 2) if i else None
            stages.append(NormedStage(blocks, patches, LayerNorm2d(dims[i], eps=1e-6)))
        super().__init__(
            stem=stem,
            stages=stages,
            norm=nn.Identity(),
            head=ClassifierHead(dims[-1], num_classes, pool=global_pool, drop_rate=drop_rate),
            channels=dims,
            strides=STRIDES,
            in_chans=in_chans,
        )
        self.apply(init_linear)
        self.apply(init_conv)

    def mixer(self, channels: int, stage: int) -> nn.Module:
        """Return the attention of a block of a stage, on B H W C."""
        if REDUCTIONS[stage] > 1:
            return ReducedAttention(channels, HEADS[stage], REDUCTIONS[stage])
        return SeparateQKVAttention(channels, HEADS[stage])

    def group_matcher(self, coarse: bool = False) -> dict:
        """Return patterns that assign parameters to layers; a stage's norm is its last layer."""
        matcher: Any = super().group_matcher(coarse)
        if not coarse:
            matcher["blocks"] += [(r"^stages\.(\d+)\.norm", (99998,))]
        return matcher


PUBLIC_ROWS = (
    (r"patch_embed1\.proj\.", "stem.project."),
    (r"patch_embed1\.", "stem."),
    (r"patch_embed(\d)\.proj\.", "stages.{1-1}.downsample.project."),
    (r"patch_embed(\d)\.", "stages.{1-1}.downsample."),
    (r"block(\d)\.(\d+)\.attn\.sr\.", r"stages.{1-1}.blocks.\2.mixer.reduce."),
    (r"block(\d)\.(\d+)\.attn\.norm\.", r"stages.{1-1}.blocks.\2.mixer.norm."),
    (r"block4\.(\d+)\.attn\.", r"stages.3.blocks.\1.mixer."),
    (r"block(\d)\.(\d+)\.attn\.", r"stages.{1-1}.blocks.\2.mixer.attention."),
    (r"block(\d)\.(\d+)\.mlp\.dwconv\.dwconv\.", r"stages.{1-1}.blocks.\2.mlp.depthwise."),
    (r"block(\d)\.(\d+)\.", r"stages.{1-1}.blocks.\2."),
    (r"norm(\d)\.", "stages.{1-1}.norm."),
    (r"head\.", "head.fc."),
)

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

# fmt: off
SIZES = {
    "b0": dict(depths=(2, 2,  2, 2), dims=(32, 64, 160, 256)),
    "b1": dict(depths=(2, 2,  2, 2)),
    "b2": dict(depths=(3, 4,  6, 3)),
    "b3": dict(depths=(3, 4, 18, 3)),
    "b4": dict(depths=(3, 8, 27, 3)),
}
# fmt: on
VARIANTS = {f"pvt_v2_{size}": arguments for size, arguments in SIZES.items()}

PVTv2.register_family(VARIANTS, KEY_STYLES)
