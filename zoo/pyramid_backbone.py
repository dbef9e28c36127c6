"""The frame of PVT v2 (arXiv 2106.13797), which EcoFormer shares: all but the attention."""

from typing import Any

import torch
from torch import Tensor, nn

from zoo.backbone import Backbone, Stage
from zoo.blocks.drop import drop_path_rates
from zoo.blocks.heads import ClassifierHead
from zoo.blocks.init import init_conv, init_linear
from zoo.blocks.mlp import MixFFN
from zoo.blocks.norm import LayerNorm2d
from zoo.blocks.transformer import TransformerBlock
from zoo.errors import BadInput

HEADS = (1, 2, 5, 8)
MLP_RATIOS = (8, 8, 4, 4)
STRIDES = (4, 8, 16, 32)


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


class PyramidBackbone(Backbone):
    """PVT v2 without its attention: four stages at strides 4 to 32, each with a norm at its end.

    Args:
        depths: Number of blocks in each stage.
        dims: Channels of each stage.
    """

    least = 1  # smallest side of an image

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
        raise NotImplementedError

    def group_matcher(self, coarse: bool = False) -> dict:
        """Return patterns that assign parameters to layers; a stage's norm is its last layer."""
        matcher: Any = super().group_matcher(coarse)
        if not coarse:
            matcher["blocks"] += [(r"^stages\.(\d+)\.norm", (99998,))]
        return matcher


# Names of whai362/PVT, also those of EcoFormer but for its attention.
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

# fmt: off
SIZES = {
    "b0": dict(depths=(2, 2,  2, 2), dims=(32, 64, 160, 256)),
    "b1": dict(depths=(2, 2,  2, 2)),
    "b2": dict(depths=(3, 4,  6, 3)),
    "b3": dict(depths=(3, 4, 18, 3)),
    "b4": dict(depths=(3, 8, 27, 3)),
}
# fmt: on
