"""As-ViT: a vision transformer whose stages were found, and then scaled, without training.

Paper: Chen et al., "Auto-scaling Vision Transformers without Training" (arXiv 2202.11921),
       section 3. Its two scores of untrained networks are in zoo/profiling/training_free.py.
Code:  github.com/VITA-Group/AsViT @ e326ccaf63e0 (MIT). It searches and scales; no trained weights
       are published.
Here:  the variants have a position table, an option of the public code, because only then are
       their parameters those of the paper. Windows are a share of the feature map, so images of
       any multiple of 32 pixels fit; the table is resampled. The public code takes one size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.backbone import Backbone, Stage
from zoo.blocks.drop import drop_path_rates
from zoo.blocks.folding import Absorbing
from zoo.blocks.heads import HiddenHead
from zoo.blocks.init import init_linear
from zoo.blocks.mlp import Mlp
from zoo.blocks.norm import LayerNorm2d
from zoo.blocks.positions import AddPositions, LearnedPositionEmbedding
from zoo.blocks.sizes import check_sides, grid_size
from zoo.blocks.transformer import SelfAttention, TransformerBlock, attend
from zoo.keys import KeyStyle

torch.fx.wrap("check_sides")

EPS = 1e-5
# The stages that were found: windows per side, and expansion of the perceptrons.
SPLITS, MLP_RATIOS = (2, 1, 1, 1), (3, 2, 4, 6)
MOST_CHANNELS = 1024


class OverlappingPatches(nn.Module):
    """A convolution of overlapping patches of 8 pixels, 4 pixels apart.

    Args:
        in_channels: Channels of the image, whose sides must be multiples of 32.
        out_channels: Channels of the feature map.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.project = nn.Conv2d(in_channels, out_channels, 8, 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        check_sides(x, 2, 32)
        return self.project(x)  # B C H/4 W/4


class SplitAttention(SelfAttention):
    """Self-attention in `splits` x `splits` equal windows of B H W C, which do not overlap.

    Args:
        channels: Width of the tokens.
        num_heads: Number of heads.
        splits: Number of windows along each side, which must be divisible by it.
    """

    def __init__(self, channels: int, num_heads: int, splits: int):
        super().__init__(channels, num_heads)
        self.splits = splits

    def forward(self, x: Tensor) -> Tensor:
        n = self.splits
        batch, height, width, channels = x.shape
        if n > 1:
            strips = x.reshape(batch * n, height // n, n, width // n * channels).transpose(1, 2)
            x = strips.reshape(batch * n * n, height // n, width // n, channels)
        q_BNC, k_BNC, v_BNC = self.qkv(x.flatten(1, -2)).chunk(3, dim=-1)
        y = self.proj(attend(q_BNC, k_BNC, v_BNC, self.num_heads, self.scale)).view(x.shape)
        if n > 1:
            strips = y.reshape(batch * n, n, height // n, width // n * channels).transpose(1, 2)
            y = strips.reshape(batch, height, width, channels)
        return y


class PatchMerging(Absorbing):
    """Overlapping patches of 4 x 4 positions, 2 apart: a norm of each, then a linear layer.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
    """

    absorbs_before = {"reduction": "norm"}

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(16 * in_channels, eps=EPS)
        self.reduction = nn.Linear(16 * in_channels, out_channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2] // 2, x.shape[3] // 2
        patches = F.unfold(x, 4, padding=1, stride=2).transpose(1, 2)  # B N 16C
        y = self.reduction(self.norm(patches))
        return y.transpose(1, 2).unflatten(2, (height, width))  # B C' H/2 W/2


class AsViT(Backbone):
    """Four stages of attention at strides 4 to 32; the first attends in four windows.

    Args:
        depths: Number of blocks in each stage.
        hidden: Channels of the first stage; each stage has twice as many, up to 1024.
        num_heads: Heads of the last stage; each stage before has half as many.
        img_size: Image size in pixels that the position table is made for.
    """

    def __init__(
        self,
        *,
        depths: tuple[int, ...],
        hidden: int,
        num_heads: int = 32,
        num_classes: int = 1000,
        in_chans: int = 3,
        img_size: int | tuple[int, int] = 224,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str = "avg",
    ):
        dims = [min(MOST_CHANNELS, hidden * 2**i) for i in range(len(depths))]
        stages = []
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            heads = num_heads // 2 ** (len(depths) - 1 - i)
            blocks = [
                TransformerBlock(
                    dims[i],
                    SplitAttention(dims[i], heads, SPLITS[i]),
                    Mlp(dims[i], MLP_RATIOS[i] * dims[i]),
                    drop_path=rate,
                    eps=EPS,
                    maps=True,
                )
                for rate in rates
            ]
            stages.append(Stage(blocks, PatchMerging(dims[i - 1], dims[i]) if i else None))
        table = LearnedPositionEmbedding(hidden, grid_size(img_size, 4))
        super().__init__(
            stem=nn.Sequential(
                OverlappingPatches(in_chans, hidden),
                LayerNorm2d(hidden, eps=EPS),
                AddPositions(table),
            ),
            stages=stages,
            norm=LayerNorm2d(dims[-1], eps=EPS),
            head=HiddenHead(
                dims[-1],
                num_classes,
                hidden_size=dims[-1],
                act=nn.Tanh,
                pool=global_pool,
                drop_rate=drop_rate,
            ),
            channels=dims,
            strides=(4, 8, 16, 32),
            in_chans=in_chans,
        )
        self.apply(init_linear)


KEY_STYLES = (
    KeyStyle(
        "VITA-Group/AsViT",
        "patch_embed.proj.weight",
        rows=(
            (r"patch_embed\.proj\.", "stem.0.project."),
            (r"patch_embed\.norm\.", "stem.1."),
            (r"absolute_pos_embed$", "stem.2.position.table"),
            (r"layers\.(\d)\.downsample\.", "stages.{1+1}.downsample."),
            (r"layers\.(\d)\.blocks\.(\d+)\.attn\.", r"stages.\1.blocks.\2.mixer."),
            (r"layers\.(\d)\.blocks\.(\d+)\.mlps\.0\.0\.", r"stages.\1.blocks.\2.norm2."),
            (r"layers\.(\d)\.blocks\.(\d+)\.mlps\.0\.1\.", r"stages.\1.blocks.\2.mlp."),
            (r"layers\.(\d)\.", r"stages.\1."),
            (r"head\.0\.", "head.hidden.0."),
            (r"head\.2\.", "head.fc."),
        ),
    ),
)

# fmt: off
VARIANTS = {
    "asvit_small": dict(depths=(3, 1, 4, 2), hidden=88),
    "asvit_base":  dict(depths=(3, 1, 5, 2), hidden=116),
    "asvit_large": dict(depths=(5, 2, 5, 2), hidden=180),
}
# fmt: on

AsViT.register_family(VARIANTS, KEY_STYLES)
