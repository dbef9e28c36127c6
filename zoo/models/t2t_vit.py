"""T2T-ViT: overlapping patches are merged into fewer tokens step by step, then a slim ViT.

Paper: Yuan et al., "Tokens-to-Token ViT: Training Vision Transformers from Scratch on ImageNet"
       (arXiv 2101.11986), fig. 3 and 4, sizes of table 1.
Code:  github.com/yitu-opensource/T2T-ViT @ 0f63dc9558f4 (Clear BSD: no patent grant).
Here:  images of any size (the public code supports squares), with a resampled position table.
       Constants (the table, the random features) are loaded from a checkpoint, not drawn again.
       `qk_scale` of the public factories with `pretrained` is left out: the checkpoints were
       trained and are evaluated without it.
"""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.backbone import Backbone, Stage
from zoo.blocks.drop import drop_path_rates
from zoo.blocks.folding import Absorbing, absorb, scale_queries
from zoo.blocks.heads import TokenHead
from zoo.blocks.mlp import Mlp
from zoo.blocks.norm import LayerNorm2d
from zoo.blocks.patches import check_patch, whole_patches
from zoo.blocks.positions import AddPositions, SinusoidalPositionEmbedding
from zoo.blocks.precision import outside_autocast
from zoo.blocks.tokens import ClassToken, to_map
from zoo.blocks.transformer import SelfAttention, TransformerBlock, attend
from zoo.keys import KeyStyle, State, prefixed

PATCH = 16  # pixels per side of each final token
# Patches of 7 every 4 pixels, padded by 2; then twice 3 every 2, padded by 1: (side + 13) // 16.
MARGIN = 13
TOKEN_DROP = 0.1  # dropout of the performer in training; drop_rate does not change it (public code)


# B batch, N tokens, C features of a token, M random features
def feature_attention(k_BNC: Tensor, q_BNC: Tensor, v_BNC: Tensor, features_MC: Tensor) -> Tensor:
    """Softmax attention estimated by positive random features, in time linear in N -> B N C.

    Performers (arXiv 2009.14794, lemma 1) with the constant that the public code adds to the sum of
    weights. Computes in single precision at least, because the features are exponentials.
    """
    if torch.jit.is_scripting():
        return _feature_attention(k_BNC, q_BNC, v_BNC, features_MC)
    else:
        return outside_autocast(_feature_attention, k_BNC, q_BNC, v_BNC, features_MC)


def _feature_attention(k: Tensor, q: Tensor, v: Tensor, features: Tensor) -> Tensor:
    dtype, wide = v.dtype, torch.promote_types(v.dtype, torch.float32)
    k, q, v, features = k.to(wide), q.to(wide), v.to(wide), features.to(wide)
    k_BNM, q_BNM = _features(k, features), _features(q, features)
    weights_BN1 = q_BNM @ k_BNM.sum(1).unsqueeze(-1)
    # sums / (weights + 1e-8), but the ONNX exporter takes a summand so small for 0.
    sums_BNC = q_BNM @ (k_BNM.transpose(1, 2) @ v)
    return (1e8 * sums_BNC / (1e8 * weights_BN1 + 1)).to(dtype)


def _features(x: Tensor, features: Tensor) -> Tensor:
    half_square = x.square().sum(-1, keepdim=True) / 2
    return torch.exp(x @ features.t() - half_square) / math.sqrt(features.shape[0])


torch.fx.wrap("feature_attention")
torch.fx.wrap("check_patch")
torch.fx.wrap("to_map")


class SoftSplitAttention(Absorbing):
    """Overlapping patches, attention among them, values as the skip path (section 3.1).

    Args:
        in_channels: Channels of the feature map or image.
        channels: Width of the tokens.
        kernel_size: Side of a patch.
        stride: Pixels from one patch to the next.
        performer: Use attention by random features; otherwise softmax.
        least: Smallest side of an image that the whole model supports.
    """

    absorbs_before = {"qkv": "norm"}

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        kernel_size: int,
        stride: int,
        performer: bool,
        least: int = 1,
    ):
        super().__init__()
        self.stride, self.padding, self.least = stride, kernel_size // 2 - (stride == 4), least
        self.performer = performer
        self.side, inputs = kernel_size, in_channels * kernel_size**2
        self.scale = inputs**-0.5  # from the input's width, not the heads' width (public code)
        self.norm = nn.LayerNorm(inputs)
        # The weight of a convolution, but its patches are normalised first.
        self.qkv = nn.Conv2d(in_channels, 3 * channels, kernel_size, bias=performer)
        self.proj = nn.Linear(channels, channels)
        self.drop = nn.Dropout(TOKEN_DROP if performer else 0.0)
        self.register_parameter("features", None)
        if performer:
            count = channels // 2
            draw = nn.init.orthogonal_(torch.empty(count, channels)) * math.sqrt(count)
            self.features = nn.Parameter(draw, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        check_patch(x.shape[2], x.shape[3], self.least)
        height = (x.shape[2] + 2 * self.padding - self.side) // self.stride + 1
        width = (x.shape[3] + 2 * self.padding - self.side) // self.stride + 1
        patches = F.unfold(x, self.side, padding=self.padding, stride=self.stride)
        u_BNI = self.norm(patches.transpose(1, 2))
        parts = F.linear(u_BNI, self.qkv.weight.flatten(1), self.qkv.bias).chunk(3, dim=-1)
        v_BNC, features = parts[2], self.features
        if features is not None:
            y_BNC = feature_attention(parts[0], parts[1], v_BNC, features)  # keys come first
        else:
            y_BNC = attend(parts[0], parts[1], v_BNC, 1, self.scale)
        return to_map(v_BNC + self.drop(self.proj(y_BNC)), height, width)  # B C H W

    def fused(self) -> "SoftSplitAttention":
        """Fold the norm's affine part into `qkv`, and the scale into the queries."""
        fused = absorb(self)
        return fused if self.performer else scale_queries(fused, "qkv", self.proj.in_features)


class ResidualMlp(Absorbing):
    """x + mlp(norm(x)) on a feature map, the second half of a token transformer.

    Args:
        channels: Channels of input, output and hidden layer.
        drop: Dropout of the branch.
    """

    absorbs_before = {"mlp": "norm"}

    def __init__(self, channels: int, drop: float):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, channels)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)  # B H W C
        return (x + self.drop(self.mlp(self.norm(x)))).permute(0, 3, 1, 2)  # B C H W


class T2TViT(Backbone):
    """Two steps of tokens to tokens (strides 4 and 8), a third without attention, and blocks.

    Args:
        depth: Number of blocks.
        dim: Width of the tokens.
        num_heads: Number of attention heads.
        mlp_ratio: Hidden width of the MLPs divided by `dim`.
        performer: Use attention by random features in the first steps; otherwise softmax ("_t").
        token_dim: Width of the tokens in the first steps.
    """

    def __init__(
        self,
        *,
        depth: int,
        dim: int,
        num_heads: int,
        mlp_ratio: int,
        performer: bool = True,
        token_dim: int = 64,
        num_classes: int = 1000,
        in_chans: int = 3,
        img_size: int | tuple[int, int] = 224,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str = "token",
    ):
        height, width = whole_patches(img_size, PATCH)
        grid = _tokens(height), _tokens(width)
        drop = TOKEN_DROP if performer else 0.0
        table = SinusoidalPositionEmbedding(dim, grid, prefix=1, mode="bicubic")
        split = partial(SoftSplitAttention, channels=token_dim, performer=performer)
        project = nn.Conv2d(token_dim, dim, 3, 2, 1)
        blocks = [
            TransformerBlock(
                dim,
                SelfAttention(dim, num_heads, qkv_bias=False),
                Mlp(dim, mlp_ratio * dim),
                drop_path=rate,
                eps=1e-5,
            )
            for rate in drop_path_rates(drop_path_rate, [depth])[0]
        ]
        super().__init__(
            stem=split(in_chans, kernel_size=7, stride=4, least=PATCH),
            stages=[
                Stage([ResidualMlp(token_dim, drop)]),
                Stage([ResidualMlp(token_dim, drop)], split(token_dim, kernel_size=3, stride=2)),
                Stage(blocks, nn.Sequential(project, AddPositions(table, ClassToken(dim)))),
            ],
            norm=LayerNorm2d(dim, eps=1e-5),
            head=TokenHead(dim, num_classes, pool=global_pool, drop_rate=drop_rate),
            channels=(token_dim, token_dim, dim),
            strides=(4, 8, PATCH),
            in_chans=in_chans,
            num_prefix_tokens=1,
            grid_margin=MARGIN,
        )
        self.apply(_init)


def _tokens(side: int) -> int:
    """Return the number of final tokens along a side of `side` pixels."""
    return (side + MARGIN) // PATCH


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):  # filters are linear layers in the public code
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _as_filters(state: State, model: T2TViT) -> State:
    """Reshape the linear layers on patches to k x k filters."""
    sides = {"stem.qkv.weight": 7, "stages.1.downsample.qkv.weight": 3}
    for key, side in (sides | {"stages.2.downsample.0.weight": 3}).items():
        if key in state and state[key].ndim == 2 and state[key].shape[1] % side**2 == 0:
            state[key] = state[key].unflatten(1, (-1, side, side))
    return state


TOKEN_TRANSFORMER = (
    (r"norm2\.", r"blocks.0.norm."),
    (r"mlp\.(?:0|fc1)\.", r"blocks.0.mlp.fc1."),
    (r"mlp\.(?:2|fc2)\.", r"blocks.0.mlp.fc2."),
)
SOFT_SPLIT = (
    (r"w$", "features"),
    (r"norm1\.", "norm."),
    (r"(?:kqv|attn\.qkv)\.", "qkv."),
    (r"(?:attn\.)?proj\.", "proj."),
)
KEY_STYLES = (
    KeyStyle(
        "yitu-opensource/T2T-ViT",
        "tokens_to_token.project.weight",
        rows=(
            *prefixed(r"tokens_to_token\.attention1\.", "stages.0.", TOKEN_TRANSFORMER),
            *prefixed(r"tokens_to_token\.attention2\.", "stages.1.", TOKEN_TRANSFORMER),
            *prefixed(r"tokens_to_token\.attention1\.", "stem.", SOFT_SPLIT),
            *prefixed(r"tokens_to_token\.attention2\.", "stages.1.downsample.", SOFT_SPLIT),
            (r"tokens_to_token\.project\.", "stages.2.downsample.0."),
            (r"cls_token$", "stages.2.downsample.1.class_token.token"),
            (r"pos_embed$", "stages.2.downsample.1.position.table"),
            (r"blocks\.(\d+)\.attn\.", r"stages.2.blocks.\1.mixer."),
            (r"blocks\.(\d+)\.", r"stages.2.blocks.\1."),
            (r"head\.", "head.fc."),
            (r"aux_head\.", None),  # of token-label training
        ),
        tensors=_as_filters,
    ),
)

# fmt: off
SIZES = {
    "7":  dict(depth=7,  dim=256, num_heads=4, mlp_ratio=2),
    "10": dict(depth=10, dim=256, num_heads=4, mlp_ratio=2),
    "12": dict(depth=12, dim=256, num_heads=4, mlp_ratio=2),
    "14": dict(depth=14, dim=384, num_heads=6, mlp_ratio=3),
    "19": dict(depth=19, dim=448, num_heads=7, mlp_ratio=3),
    "24": dict(depth=24, dim=512, num_heads=8, mlp_ratio=3),
}
# fmt: on
VARIANTS = {
    **{f"t2t_vit_{size}": arguments for size, arguments in SIZES.items()},
    "t2t_vit_14_384": SIZES["14"] | dict(img_size=384),
    **{f"t2t_vit_t_{size}": SIZES[size] | dict(performer=False) for size in ("14", "19", "24")},
}

T2TViT.register_family(VARIANTS, KEY_STYLES)
