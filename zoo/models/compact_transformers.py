"""Compact transformers: ViT-Lite, CVT and CCT, small enough to be trained on small data sets.

Paper: Hassani et al., "Escaping the Big Data Paradigm with Compact Transformers"
       (arXiv 2104.05704), fig. 2, sections 3.1 to 3.3.
Code:  github.com/SHI-Labs/Compact-Transformers @ cd11f0912749 (Apache-2.0).
Here:  `_sine` of CCT and CVT has the fixed table of its name; the public code, by mistake, makes a
       learnt one. A checkpoint's table is loaded all the same.
"""

from functools import partial

from torch import Tensor, nn

from zoo.backbone import Backbone, Stage
from zoo.blocks.drop import linear_rates
from zoo.blocks.heads import ClassifierHead, SequenceHead, TokenHead
from zoo.blocks.init import init_linear
from zoo.blocks.mlp import Mlp
from zoo.blocks.norm import LayerNorm2d
from zoo.blocks.patches import PatchEmbed, whole_patches
from zoo.blocks.positions import Positions, PositionTable, fit_tables
from zoo.blocks.sizes import grid_size
from zoo.blocks.tokens import ClassToken
from zoo.blocks.transformer import SelfAttention, TransformerBlock
from zoo.keys import KeyStyle, State, rename
from zoo.registry import register


class ConvTokens(nn.Module):
    """Convolution, ReLU, overlapping maximum: a layer of CCT's tokeniser (section 3.3).

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: 3 keeps the size before the maximum halves it, 7 halves it.
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
        return self.pool(self.act(self.project(x)))


class RenormedBlock(TransformerBlock):
    """A transformer block whose second norm stands on the residual path (public code, not fig. 2).

    Its arguments are those of `TransformerBlock`.
    """

    absorbing = (("norm1", "mixer"),)

    def forward(self, x: Tensor) -> Tensor:
        if self.maps:
            x = x.permute(0, 2, 3, 1)
        x = self.norm2(x + self.drop_path(self.mixer(self.norm1(x))))
        x = x + self.drop_path(self.mlp(x))
        return x.permute(0, 3, 1, 2) if self.maps else x


class CompactTransformer(Backbone):
    """Tokens, positions, blocks of one size; every block is a level, and so are the tokens.

    Args:
        depth: Blocks.
        num_heads: Heads of the attention.
        mlp_ratio: Width inside the MLPs over `dim`.
        dim: Width of the tokens.
        kernel_size: Of the tokeniser's convolutions; without `conv_layers` the side of a patch.
        conv_layers: Layers of the convolutional tokeniser; 0 cuts patches.
        class_token: Read the logits off a class token; otherwise off all positions, weighted.
        sine: A fixed table of positions; otherwise a learnt one.
        num_classes: Number of logits; 0 leaves the classifier out.
        in_chans: Channels of the image.
        img_size: Size in pixels that the position table is made for; others are resampled.
        drop_rate: Dropout before the classifier.
        attn_drop_rate: Dropout of attention weights while training.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0.
        global_pool: `"token"` with a class token, else `"attention"`; `"avg"`, `"max"` or `""`.
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
        table = PositionTable(dim, grid, prefix=int(class_token), fixed=sine, std=0.2)
        blocks = [
            RenormedBlock(
                dim,
                SelfAttention(dim, num_heads, qkv_bias=False, attn_drop=attn_drop_rate),
                Mlp(dim, mlp_ratio * dim),
                drop_path=rate,
                eps=1e-5,
                maps=not class_token,
            )
            for rate in linear_rates(drop_path_rate, [depth])[0]
        ]
        positions = Positions(table, ClassToken(dim, std=0) if class_token else None)
        head: type[ClassifierHead] = TokenHead if class_token else SequenceHead
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
    """Return what makes tokens of an image, and its stride."""
    if not layers:
        return nn.Sequential(PatchEmbed(in_chans, dim, kernel_size)), kernel_size
    widths = [in_chans, *[64] * (layers - 1), dim]
    convs = [ConvTokens(widths[i], widths[i + 1], kernel_size) for i in range(layers)]
    return nn.Sequential(*convs), (2 * max(1, kernel_size // 2 - 1)) ** layers


def _init(module: nn.Module) -> None:
    init_linear(module)
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight)


def _from_original(state: State, model: CompactTransformer) -> State:
    if getattr(getattr(model, "head", None), "pool", "attention") != "attention":
        state = {key: value for key, value in state.items() if "attention_pool" not in key}
    state = rename(
        state,
        [
            (r"tokenizer\.conv_layers\.(\d+)\.0\.", r"stem.\1.project."),
            (r"classifier\.class_emb$", "stages.0.blocks.0.class_token.token"),
            (r"classifier\.positional_emb$", "stages.0.blocks.0.position.table"),
            (r"classifier\.attention_pool\.", "head.attention_pool."),
            (r"classifier\.blocks\.(\d+)\.pre_norm\.", partial(_block, part="norm1.")),
            (r"classifier\.blocks\.(\d+)\.norm1\.", partial(_block, part="norm2.")),
            (r"classifier\.blocks\.(\d+)\.self_attn\.", partial(_block, part="mixer.")),
            (r"classifier\.blocks\.(\d+)\.linear1\.", partial(_block, part="mlp.fc1.")),
            (r"classifier\.blocks\.(\d+)\.linear2\.", partial(_block, part="mlp.fc2.")),
            (r"classifier\.norm\.", "norm."),
            (r"classifier\.fc\.", "head.fc."),
        ],
    )
    return fit_tables(state, model)


def _block(fit, part: str) -> str:
    return f"stages.{int(fit[1]) + 1}.blocks.0.{part}"


CompactTransformer.key_styles = (
    KeyStyle("SHI-Labs/Compact-Transformers", "classifier.norm.weight", _from_original),
    KeyStyle("zoo", "stem.0.project.weight", fit_tables),
)

# fmt: off
SIZES = {
    2:  dict(depth=2,  num_heads=2, mlp_ratio=1, dim=128),
    4:  dict(depth=4,  num_heads=2, mlp_ratio=1, dim=128),
    6:  dict(depth=6,  num_heads=4, mlp_ratio=2, dim=256),
    7:  dict(depth=7,  num_heads=4, mlp_ratio=2, dim=256),
    14: dict(depth=14, num_heads=6, mlp_ratio=3, dim=384),
}
# Kind, size, kernel, layers of the tokeniser, pixels, classes by the end of the name.
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

for _name, _arguments in VARIANTS.items():
    register(_name, partial(CompactTransformer, **_arguments))
