"""Compact transformers: ViT-Lite, CVT and CCT, small enough to be trained on small data sets.

Paper: Hassani et al., "Escaping the Big Data Paradigm with Compact Transformers"
       (arXiv 2104.05704), fig. 2, sections 3.1 to 3.3.
Code:  github.com/SHI-Labs/Compact-Transformers @ cd11f0912749 (Apache-2.0).
Here:  `_sine` variants of CCT and CVT have a fixed position table, as their name states; the public
       code makes it learnt by mistake. The table of a checkpoint is loaded in either case.
"""

from torch import Tensor, nn

from zoo.backbone import Backbone, Stage
from zoo.blocks.drop import drop_path_rates
from zoo.blocks.heads import POOLS, ClassifierHead, TokenHead, pool_map
from zoo.blocks.init import init_linear
from zoo.blocks.mlp import Mlp
from zoo.blocks.norm import LayerNorm2d
from zoo.blocks.patches import PatchEmbed, whole_patches
from zoo.blocks.positions import (
    AddPositions,
    LearnedPositionEmbedding,
    PositionEmbedding,
    SinusoidalPositionEmbedding,
)
from zoo.blocks.sizes import grid_size
from zoo.blocks.tokens import ClassToken
from zoo.blocks.transformer import SelfAttention, TransformerBlock
from zoo.keys import KeyStyle, State


class ConvTokens(nn.Module):
    """Convolution, ReLU and overlapping max pooling: a layer of CCT's tokeniser (section 3.3).

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Kernel size of the convolution: 3 with stride 1, or 7 with stride 2.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int):
        super().__init__()
        half = kernel_size // 2
        self.project = nn.Conv2d(
            in_channels, out_channels, kernel_size, max(1, half - 1), padding=half, bias=False
        )
        self.act = nn.ReLU()
        self.pool = nn.MaxPool2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.act(self.project(x)))  # B C H/stride W/stride


class SeqPoolHead(ClassifierHead):
    """A classifier on a weighted mean of all positions (SeqPool, section 3.2).

    With `"attention"`, the weights are the softmax over positions of a linear layer's output.
    """

    pools = ("attention", *POOLS)

    def _make_classifiers(self) -> None:
        super()._make_classifiers()
        learnt = self.pool == "attention"
        if not learnt:
            self.attention_pool: nn.Module = nn.Identity()
        elif not isinstance(getattr(self, "attention_pool", None), nn.Linear):
            self.attention_pool = nn.Linear(self.num_features, 1).train(self.training)

    def pooled(self, x: Tensor) -> Tensor:
        """Pool B C H W to B C; without pooling, return the feature map unchanged."""
        if self.pool != "attention":
            return self.drop(pool_map(x, self.pool))
        x_BNC = x.flatten(2).transpose(1, 2)
        weights_B1N = self.attention_pool(x_BNC).transpose(1, 2).softmax(dim=-1)
        return self.drop((weights_B1N @ x_BNC).squeeze(1))


class RenormedBlock(TransformerBlock):
    """A transformer block whose second norm is on the residual path (public code, not fig. 2).

    Its arguments are those of `TransformerBlock`.
    """

    absorbs_before = {"mixer": "norm1"}
    droppable = False

    def forward(self, x: Tensor) -> Tensor:
        if self.maps:
            x = x.permute(0, 2, 3, 1)  # B H W C
        x = self.norm2(x + self.drop_path(self.mixer(self.norm1(x))))
        x = x + self.drop_path(self.mlp(x))
        return x.permute(0, 3, 1, 2) if self.maps else x  # as the input


class CompactTransformer(Backbone):
    """Tokens, positions and blocks of one size; the tokens and every block are feature levels.

    Args:
        depth: Number of blocks.
        num_heads: Number of attention heads.
        mlp_ratio: Hidden width of the MLPs divided by `dim`.
        dim: Width of the tokens.
        kernel_size: Kernel size of the tokeniser; without `conv_layers`, the side of a patch.
        conv_layers: Number of layers of the convolutional tokeniser; 0 cuts patches instead.
        class_token: Classify a class token; otherwise, classify a weighted mean of all positions.
        sine: Use a fixed position table; otherwise, a learnt one.
        attn_drop_rate: Dropout of attention weights while training.
        global_pool: `"avg"`, `"max"`, `""`, with a class token `"token"`, else `"attention"`.
    """

    def __init__(
        self,
        *,
        depth: int,
        num_heads: int,
        mlp_ratio: int,
        dim: int,
        kernel_size: int,
        conv_layers: int = 0,
        class_token: bool = False,
        sine: bool = False,
        num_classes: int = 1000,
        in_chans: int = 3,
        img_size: int | tuple[int, int] = 32,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.1,
        drop_path_rate: float = 0.0,
        global_pool: str | None = None,
    ):
        stem, stride = _tokeniser(in_chans, dim, kernel_size, conv_layers)
        if conv_layers:
            grid = grid_size(img_size, stride)
        else:
            height, width = whole_patches(img_size, stride)
            grid = height // stride, width // stride
        prefix = int(class_token)
        table: PositionEmbedding = (
            SinusoidalPositionEmbedding(dim, grid, prefix=prefix)
            if sine
            else LearnedPositionEmbedding(dim, grid, prefix=prefix, std=0.2)
        )
        blocks = [
            RenormedBlock(
                dim,
                SelfAttention(dim, num_heads, qkv_bias=False, attn_drop=attn_drop_rate),
                Mlp(dim, mlp_ratio * dim),
                drop_path=rate,
                eps=1e-5,
                maps=not class_token,
            )
            for rate in drop_path_rates(drop_path_rate, [depth])[0]
        ]
        positions = AddPositions(table, ClassToken(dim, std=0) if class_token else None)
        head: type[ClassifierHead] = TokenHead if class_token else SeqPoolHead
        pool = head.pools[0] if global_pool is None else global_pool
        super().__init__(
            stem=stem,
            stages=[Stage([part]) for part in (positions, *blocks)],
            norm=LayerNorm2d(dim, eps=1e-5),
            head=head(dim, num_classes, pool=pool, drop_rate=drop_rate),
            channels=(dim,) * (1 + depth),
            strides=(stride,) * (1 + depth),
            in_chans=in_chans,
            num_prefix_tokens=int(class_token),
        )
        self.apply(_init)


def _tokeniser(in_chans: int, dim: int, kernel_size: int, layers: int) -> tuple[nn.Sequential, int]:
    """Return the module that converts an image to tokens, and its stride."""
    if not layers:
        return nn.Sequential(PatchEmbed(in_chans, dim, kernel_size)), kernel_size
    widths = [in_chans, *[64] * (layers - 1), dim]
    convs = [ConvTokens(widths[i], widths[i + 1], kernel_size) for i in range(layers)]
    return nn.Sequential(*convs), (2 * max(1, kernel_size // 2 - 1)) ** layers


def _init(module: nn.Module) -> None:
    init_linear(module)
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight)


def _without_pool(state: State, model: CompactTransformer) -> State:
    """Drop the layer that weights positions if the model pools in another way."""
    if getattr(getattr(model, "head", None), "pool", "attention") == "attention":
        return state
    return {key: value for key, value in state.items() if "attention_pool" not in key}


KEY_STYLES = (
    KeyStyle(
        "SHI-Labs/Compact-Transformers",
        "classifier.norm.weight",
        rows=(
            (r"tokenizer\.conv_layers\.(\d+)\.0\.", r"stem.\1.project."),
            (r"classifier\.class_emb$", "stages.0.blocks.0.class_token.token"),
            (r"classifier\.positional_emb$", "stages.0.blocks.0.position.table"),
            (r"classifier\.attention_pool\.", "head.attention_pool."),
            (r"classifier\.blocks\.(\d+)\.pre_norm\.", "stages.{1+1}.blocks.0.norm1."),
            (r"classifier\.blocks\.(\d+)\.norm1\.", "stages.{1+1}.blocks.0.norm2."),
            (r"classifier\.blocks\.(\d+)\.self_attn\.", "stages.{1+1}.blocks.0.mixer."),
            (r"classifier\.blocks\.(\d+)\.linear(\d)\.", r"stages.{1+1}.blocks.0.mlp.fc\2."),
            (r"classifier\.norm\.", "norm."),
            (r"classifier\.fc\.", "head.fc."),
        ),
        tensors=_without_pool,
    ),
)

# fmt: off
SIZES = {
    2:  dict(depth=2,  num_heads=2, mlp_ratio=1, dim=128),
    4:  dict(depth=4,  num_heads=2, mlp_ratio=1, dim=128),
    6:  dict(depth=6,  num_heads=4, mlp_ratio=2, dim=256),
    7:  dict(depth=7,  num_heads=4, mlp_ratio=2, dim=256),
    14: dict(depth=14, num_heads=6, mlp_ratio=3, dim=384),
}
# Size, kernel, layers of the tokeniser, pixels, and the classes by the end of the name.
CONV = (
    (2,  3, 2, 32,  {"": 10, "_sine": 10}),
    (4,  3, 2, 32,  {"": 10, "_sine": 10}),
    (6,  3, 1, 32,  {"": 10, "_sine": 10}),
    (6,  3, 2, 32,  {"": 10, "_sine": 10}),
    (7,  3, 1, 32,  {"": 10, "_sine": 10, "_c100": 100, "_sine_c100": 100}),
    (7,  3, 2, 32,  {"": 10, "_sine": 10}),
    (7,  7, 2, 224, {"": 102, "_sine": 102}),
    (14, 7, 2, 224, {"": 1000}),
    (14, 7, 2, 384, {"": 1000, "_fl": 102}),
)
# fmt: on


def _variants() -> dict[str, dict]:
    found = {}
    for size, kernel, layers, pixels, ends in CONV:
        tokens = dict(kernel_size=kernel, conv_layers=layers, img_size=pixels)
        for end, classes in ends.items():
            name = f"cct_{size}_{kernel}x{layers}_{pixels}{end}"
            found[name] = SIZES[size] | tokens | dict(sine="_sine" in end, num_classes=classes)
    for kind in ("vit", "cvt"):
        tokens = dict(kernel_size=4, class_token=kind == "vit", num_classes=10)
        for size in (2, 4, 6, 7):
            for end in ("", "_sine"):
                found[f"{kind}_{size}_4_32{end}"] = SIZES[size] | tokens | dict(sine=bool(end))
    return found


VARIANTS = _variants()

CompactTransformer.register_family(VARIANTS, KEY_STYLES)
