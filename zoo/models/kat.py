"""KAT: a vision transformer whose MLPs have learnt rational functions in place of activations.

Paper: Yang and Wang, "Kolmogorov-Arnold Transformer" (arXiv 2409.10594), sections 4.2 to 4.4.
Code:  github.com/Adamdad/kat @ ecb0eb76bf17 (MIT); the rational function is written from its
       formula (the package rational_kat_cu has no licence).
Here:  linear layers are initialised truncated normal (std 0.02), like the MLPs of released runs;
       `weight_init="mimetic"` initialises queries, keys, values and projections as the authors do.
"""

import torch
from torch import Tensor, nn

from zoo.backbone import Backbone, Stage
from zoo.blocks.drop import drop_path_rates
from zoo.blocks.heads import TokenHead
from zoo.blocks.init import init_linear
from zoo.blocks.norm import LayerNorm2d
from zoo.blocks.patches import PatchEmbed, whole_patches
from zoo.blocks.positions import AddPositions, LearnedPositionEmbedding
from zoo.blocks.tokens import ClassToken
from zoo.blocks.transformer import SelfAttention, TransformerBlock
from zoo.blocks.widths import Group, hidden_channels
from zoo.errors import BadInput, unknown_value
from zoo.keys import KeyStyle
from zoo.ops import rational

torch.fx.wrap("rational")

PATCH, GROUPS = 16, 8

# Initial coefficients, numerator and denominator: published facts of the code. "gelu" was fitted
# for another form of the denominator and is not GELU here.
# fmt: off
COEFFICIENTS = {
    "identity": ((0.0, 1.0, 0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0)),
    "swish": (
        (3.054879741161051e-07, 0.5000007853744493, 0.24999783422824703,
         0.05326628273219478, 0.005803034571292244, 0.0002751961022402342),
        (-4.111554955950634e-06, 0.10652899335007572,
         -1.2690007399796238e-06, 0.0005502331264140556),
    ),
    "gelu": (
        (-0.00153969, 0.51692871, 0.44075827, 0.0972553, -0.00884418, -0.00378675),
        (-0.14171056, -0.06481231, -0.0444695, 0.01283776),
    ),
}
# fmt: on


class GroupRational(nn.Module):
    """A learnt rational function with a denominator per group of channels (eq. 11).

    Args:
        like: Initial function: `"identity"`, `"swish"` or `"gelu"`.
    """

    no_decay = ("numerator", "denominator")

    def __init__(self, like: str):
        super().__init__()
        numerator, denominator = COEFFICIENTS[like]
        self.numerator = nn.Parameter(torch.tensor(numerator).repeat(1, 1))
        self.denominator = nn.Parameter(torch.tensor(denominator).repeat(GROUPS, 1))

    def forward(self, x: Tensor) -> Tensor:
        return rational(x, self.numerator, self.denominator)  # as x


class KanMlp(nn.Module):
    """A rational function before each of two linear layers (fig. 2, eq. 13).

    Args:
        channels: Width of input and output.
        hidden: Hidden width.
        like: Initial value of the second function; the first starts as the identity.
    """

    def __init__(self, channels: int, hidden: int, like: str):
        super().__init__()
        self.act1 = GroupRational("identity")
        self.fc1 = nn.Linear(channels, hidden)
        self.act2 = GroupRational(like)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act2(self.fc1(self.act1(x))))  # B N C

    def prunable(self) -> list[Group]:
        """Declare the hidden channels, as many in each group of the rational function."""
        return [hidden_channels(self, made=("fc1",), read=("fc2",), parts=GROUPS)]


class KatBlock(TransformerBlock):
    """A transformer block whose second norm cannot be folded: a rational function reads it."""

    absorbs_before = {"mixer": "norm1"}


class KAT(Backbone):
    """Patches of 16 pixels, a class token, blocks of one size; every block is a feature level.

    Args:
        depth: Number of blocks.
        dim: Width of the tokens, a multiple of 8.
        num_heads: Number of attention heads.
        mlp_ratio: Hidden width of the MLPs divided by `dim`.
        rational_init: Initial value of the second function of each block: `"swish"` or `"gelu"`.
        weight_init: `"mimetic"` (section 4.4), or `""` for truncated normal values throughout.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        depth: int = 12,
        mlp_ratio: int = 4,
        rational_init: str = "swish",
        weight_init: str = "",
        num_classes: int = 1000,
        in_chans: int = 3,
        img_size: int | tuple[int, int] = 224,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str = "token",
    ):
        if rational_init not in COEFFICIENTS:
            raise BadInput(unknown_value("rational_init", rational_init, COEFFICIENTS))
        if weight_init not in ("", "mimetic"):
            raise BadInput(unknown_value("weight_init", weight_init, ("", "mimetic")))
        height, width = whole_patches(img_size, PATCH)
        grid = height // PATCH, width // PATCH
        table = LearnedPositionEmbedding(dim, grid, prefix=1, mode="bicubic", antialias=True)
        blocks = [
            KatBlock(
                dim,
                SelfAttention(dim, num_heads),
                KanMlp(dim, mlp_ratio * dim, rational_init),
                drop_path=rate,
            )
            for rate in drop_path_rates(drop_path_rate, [depth])[0]
        ]
        super().__init__(
            stem=nn.Sequential(
                PatchEmbed(in_chans, dim, PATCH), AddPositions(table, ClassToken(dim, std=1e-6))
            ),
            stages=[Stage([block]) for block in blocks],
            norm=LayerNorm2d(dim, eps=1e-6),
            head=TokenHead(dim, num_classes, pool=global_pool, drop_rate=drop_rate),
            channels=(dim,) * depth,
            strides=(PATCH,) * depth,
            in_chans=in_chans,
            num_prefix_tokens=1,
        )
        self.apply(init_linear)
        if weight_init == "mimetic":
            for block in blocks:
                _init_mimetic(block.get_submodule("mixer"))


@torch.no_grad()
def _init_mimetic(attention: nn.Module) -> None:
    """Start products of weights near multiples of the identity (arXiv 2305.09828, section 3).

    For each head, queries times keys is a low-rank approximation of 0.7 Z + 0.7 I. For all heads,
    values times projection is 0.4 Z - 0.4 I. Z is uniform with variance 1 / channels.
    """
    assert isinstance(attention, SelfAttention)
    channels, heads = attention.proj.in_features, attention.num_heads
    width = channels // heads
    q, k, v = attention.qkv.weight.data.chunk(3)
    for head in range(heads):
        rows = slice(head * width, (head + 1) * width)
        left, right = _square_root(channels, 0.7, 0.7, q)
        q[rows], k[rows] = left[:, :width].T, right[:width]
    left, right = _square_root(channels, 0.4, -0.4, q)
    v.copy_(left)
    attention.proj.weight.copy_(right)


def _square_root(channels: int, noise: float, identity: float, like: Tensor) -> tuple[Tensor, ...]:
    """Return U sqrt(S) and sqrt(S) V^T of a random U S V^T near a multiple of the identity."""
    bound = (3 / channels) ** 0.5
    z = torch.empty(channels, channels, device=like.device).uniform_(-bound, bound)
    u, s, vt = torch.linalg.svd(noise * z + identity * torch.eye(channels, device=like.device))
    return u * s.sqrt(), s.sqrt()[:, None] * vt


KEY_STYLES = (
    KeyStyle(
        "Adamdad/kat",
        "blocks.0.mlp.act1.weight_numerator",
        rows=(
            (r"cls_token$", "stem.1.class_token.token"),
            (r"pos_embed$", "stem.1.position.table"),
            (r"patch_embed\.proj\.", "stem.0.project."),
            (r"blocks\.(\d+)\.attn\.", r"stages.\1.blocks.0.mixer."),
            (r"blocks\.(\d+)\.mlp\.act(\d)\.weight_", r"stages.\1.blocks.0.mlp.act\2."),
            (r"blocks\.(\d+)\.", r"stages.\1.blocks.0."),
            (r"head\.", "head.fc."),
        ),
    ),
)

# fmt: off
VARIANTS = {
    "kat_tiny_patch16_224":  dict(dim=192, num_heads=3),
    "kat_small_patch16_224": dict(dim=384, num_heads=6),
    "kat_base_patch16_224":  dict(dim=768, num_heads=12),
}
# fmt: on

KAT.register_family(VARIANTS, KEY_STYLES)
