"""PVT (v1): a pyramid of transformer stages; keys and values come from smaller feature maps.

Paper: Wang et al., "Pyramid Vision Transformer: A Versatile Backbone for Dense Prediction without
       Convolutions" (arXiv 2102.12122), sizes of table 1, attention of fig. 4 and eq. 1 to 3.
Code:  github.com/whai362/PVT @ 57e2dfaa5a46, classification/pvt.py (Apache-2.0).
Here:  position tables are resampled where the grid differs from theirs; the public code compares
       numbers of tokens; where these agree by chance, it fails or uses a table unchanged.
       Levels are those of the classifier: the last stage attends to its class token, too (the
       public dense code leaves the class token out).
"""

from torch import Tensor, nn

from zoo.backbone import Backbone, Stage
from zoo.blocks.drop import drop_path_rates
from zoo.blocks.heads import TokenHead
from zoo.blocks.init import init_linear
from zoo.blocks.mlp import Mlp
from zoo.blocks.norm import LayerNorm2d
from zoo.blocks.patches import PatchEmbed, whole_patches
from zoo.blocks.positions import AddPositions, LearnedPositionEmbedding
from zoo.blocks.reduced import ReducedAttention
from zoo.blocks.tokens import ClassToken
from zoo.blocks.transformer import SeparateQKVAttention, TransformerBlock
from zoo.keys import KeyStyle

HEADS = (1, 2, 5, 8)
MLP_RATIOS = (8, 8, 4, 4)
REDUCTIONS = (8, 4, 2, 1)
DIMS = (64, 128, 320, 512)


class Embedding(nn.Module):
    """Patches that do not overlap, a norm, and a vector for each position (section 3.2).

    Args:
        in_channels: Channels of the feature map or image.
        out_channels: Channels of the output.
        patch: Side of a patch.
        grid: Size of the output that the position table is made for.
        class_token: Prepend a class token and return B N C; otherwise return B C H W.
        least: Smallest side of an image that the whole model supports.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        patch: int,
        *,
        grid: tuple[int, int],
        class_token: bool = False,
        least: int = 1,
    ):
        super().__init__()
        self.patches = PatchEmbed(in_channels, out_channels, patch, least=least)
        self.norm = LayerNorm2d(out_channels)
        self.positions = AddPositions(
            LearnedPositionEmbedding(out_channels, grid, prefix=int(class_token)),
            ClassToken(out_channels) if class_token else None,
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.positions(self.norm(self.patches(x)))  # B C H/p W/p, or tokens B 1+N C


class PVT(Backbone):
    """Four stages at strides 4, 8, 16 and 32; the last one has a class token (fig. 3).

    Args:
        depths: Number of blocks in each stage.
        dims: Channels of each stage.
        heads: Number of attention heads in each stage.
    """

    def __init__(
        self,
        *,
        depths: tuple[int, ...],
        dims: tuple[int, ...] = DIMS,
        heads: tuple[int, ...] = HEADS,
        num_classes: int = 1000,
        in_chans: int = 3,
        img_size: int | tuple[int, int] = 224,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str = "token",
    ):
        strides, stages, embeddings = (4, 8, 16, 32), [], []
        height, width = whole_patches(img_size, strides[-1])
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            embeddings.append(
                Embedding(
                    dims[i - 1] if i else in_chans,
                    dims[i],
                    2 if i else 4,
                    grid=(height // strides[i], width // strides[i]),
                    class_token=i == 3,
                    least=1 if i else strides[-1],
                )
            )
            blocks = [
                _block(dims[i], heads[i], MLP_RATIOS[i], REDUCTIONS[i], drop_path=rate)
                for rate in rates
            ]
            stages.append(Stage(blocks, embeddings[i] if i else None))
        super().__init__(
            stem=embeddings[0],
            stages=stages,
            norm=LayerNorm2d(dims[-1], eps=1e-6),
            head=TokenHead(dims[-1], num_classes, pool=global_pool, drop_rate=drop_rate),
            channels=dims,
            strides=strides,
            in_chans=in_chans,
            num_prefix_tokens=1,
        )
        self.apply(init_linear)


def _block(
    channels: int, num_heads: int, mlp_ratio: int, reduction: int, *, drop_path: float
) -> TransformerBlock:
    mixer: nn.Module = (
        ReducedAttention(channels, num_heads, reduction)
        if reduction > 1
        else SeparateQKVAttention(channels, num_heads)
    )
    mlp = Mlp(channels, mlp_ratio * channels)
    return TransformerBlock(channels, mixer, mlp, drop_path=drop_path, maps=reduction > 1)


KEY_STYLES = (
    KeyStyle(
        "whai362/PVT",
        "patch_embed1.proj.weight",
        rows=(
            (r"pos_embed1$", "stem.positions.position.table"),
            (r"pos_embed(\d)$", "stages.{1-1}.downsample.positions.position.table"),
            (r"cls_token$", "stages.3.downsample.positions.class_token.token"),
            (r"patch_embed1\.proj\.", "stem.patches.project."),
            (r"patch_embed1\.", "stem."),
            (r"patch_embed(\d)\.proj\.", "stages.{1-1}.downsample.patches.project."),
            (r"patch_embed(\d)\.", "stages.{1-1}.downsample."),
            (r"block(\d)\.(\d+)\.attn\.sr\.", r"stages.{1-1}.blocks.\2.mixer.reduce."),
            (r"block(\d)\.(\d+)\.attn\.norm\.", r"stages.{1-1}.blocks.\2.mixer.norm."),
            (r"block4\.(\d+)\.attn\.", r"stages.3.blocks.\1.mixer."),
            (r"block(\d)\.(\d+)\.attn\.", r"stages.{1-1}.blocks.\2.mixer.attention."),
            (r"block(\d)\.(\d+)\.", r"stages.{1-1}.blocks.\2."),
            (r"head\.", "head.fc."),
        ),
    ),
)

# fmt: off
VARIANTS = {
    "pvt_tiny":    dict(depths=(2,  2,  2, 2)),
    "pvt_small":   dict(depths=(3,  4,  6, 3)),
    "pvt_medium":  dict(depths=(3,  4, 18, 3)),
    "pvt_large":   dict(depths=(3,  8, 27, 3)),
    "pvt_huge_v2": dict(depths=(3, 10, 60, 3), dims=(128, 256, 512, 768), heads=(2, 4, 8, 12)),
}
# fmt: on

PVT.register_family(VARIANTS, KEY_STYLES)
