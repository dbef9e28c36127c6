"""SReT: a small pyramid of transformer blocks that run twice and attend inside slices.

Paper: Shen et al., "Sliced Recursive Transformer" (arXiv 2111.05297), fig. 2 to 4, table 3.
Code:  github.com/szq0214/SReT @ af6db0ae4138 (MIT; parts from PiT, Apache-2.0).
Here:  a block that is applied twice is stored once; a checkpoint may use both of its names. The
       public code draws a permutation of the tokens at every call; in evaluation ours is fixed.
       Stochastic depth grows to the given rate at the last block.
"""

from functools import partial

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from zoo.backbone import Backbone, Stage
from zoo.blocks.conv import ConvNorm
from zoo.blocks.drop import drop_path_rates
from zoo.blocks.folding import Absorbing
from zoo.blocks.heads import ClassifierHead
from zoo.blocks.mlp import Mlp
from zoo.blocks.positions import AddPositions, LearnedPositionEmbedding
from zoo.blocks.sizes import check_sides, grid_size
from zoo.blocks.tokens import to_map, to_tokens
from zoo.blocks.transformer import SelfAttention
from zoo.keys import KeyStyle, State, prefixed
from zoo.ops import fixed_permutation

BLOCKS = (2, 5, 3)  # distinct blocks of each stage
PIXELS = 8  # pixels per side of each token of the first stage

torch.fx.wrap("check_sides")
torch.fx.wrap("to_map")


def sliced(x: Tensor, slices: int) -> Tensor:
    """Cut the tokens into consecutive slices: B N C -> B*G N/G C."""
    return x.unflatten(1, (slices, -1)).flatten(0, 1) if slices > 1 else x


def shuffled(count: int, training: bool, device: torch.device) -> Tensor:
    """Return a permutation of `count` tokens: random in training, otherwise fixed."""
    if training:
        return torch.randperm(count, device=device)
    return fixed_permutation(count).to(device)


def order_of(x: Tensor, training: bool) -> tuple[Tensor, Tensor]:
    """Return a permutation for the tokens of x, B N C, and its inverse."""
    order = shuffled(x.shape[1], training, x.device)
    places = torch.arange(x.shape[1], device=x.device)
    return order, torch.zeros_like(order).scatter(0, order, places)


torch.fx.wrap("order_of")


class Scalar(nn.Module):
    """Multiply by one learnt number that starts at 1."""

    no_decay = ("weight",)

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight  # as x

    def factors(self) -> Tensor:
        """Return the factors, for the previous layer to absorb (zoo/blocks/folding.py)."""
        return self.weight


class SharedBlock(Absorbing):
    """Attention inside slices and an MLP; learnt scalars weight both summands (fig. 3).

    Args:
        channels: Width of the tokens.
        hidden: Hidden width of the MLP.
        num_heads: Number of attention heads.
        drop_path: Probability of dropping a branch in training.
    """

    absorbs_before = {"attention": "norm1", "mlp": "norm2"}
    absorbs_after = {"attention": "scale1", "mlp": "scale2"}

    def __init__(self, channels: int, hidden: int, *, num_heads: int, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.attention = SelfAttention(channels, num_heads)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = Mlp(channels, hidden)
        self.keep1, self.keep2 = Scalar(), Scalar()
        self.scale1: nn.Module = Scalar()
        self.scale2: nn.Module = Scalar()
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, slices: int, shuffle: bool) -> Tensor:
        y = self.norm1(x)  # B N C
        if shuffle:
            order, back = order_of(y, self.training)
            y = self.attention(sliced(y[:, order], slices)).view(x.shape)[:, back]
        else:
            y = self.attention(sliced(y, slices)).view(x.shape)
        x = self.keep1(x) + self.scale1(self.drop_path(y))
        return self.keep2(x) + self.scale2(self.drop_path(self.mlp(self.norm2(x))))  # B N C


class Projection(Absorbing):
    """A perceptron after each pass ("non-linear projection layer", section 3.3).

    Args:
        channels: Width of the tokens.
        hidden: Hidden width.
    """

    absorbs_before = {"mlp": "norm"}
    absorbs_after = {"mlp": "scale"}

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = Mlp(channels, hidden)
        self.keep, self.scale = Scalar(), Scalar()

    def forward(self, x: Tensor) -> Tensor:
        return self.keep(x) + self.scale(self.mlp(self.norm(x)))  # B N C


class Recursion(nn.Module):
    """A block, a projection, the same block, another projection (eq. 3): B C H W -> B C H W.

    Args:
        channels: Channels of input and output.
        hidden: Hidden width of the block's MLP.
        np_hidden: Hidden width of the projections.
        num_heads: Number of attention heads.
        slices: Number of slices in the first and the second pass; the second shuffles tokens.
        drop_path: Probability of dropping a branch in training.
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        np_hidden: int,
        *,
        num_heads: int,
        slices: tuple[int, int],
        drop_path: float,
    ):
        super().__init__()
        self.slices = slices
        self.block = SharedBlock(channels, hidden, num_heads=num_heads, drop_path=drop_path)
        self.project1 = Projection(channels, np_hidden)
        self.project2 = Projection(channels, np_hidden)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2], x.shape[3]
        x = self.project1(self.block(to_tokens(x), self.slices[0], False))  # B N C
        x = self.project2(self.block(x, self.slices[1], self.slices[1] > 1))
        return to_map(x, height, width)  # B C H W


class Stem(nn.Module):
    """Three convolutions of stride 2, then a position embedding.

    Args:
        channels: Channels of the feature map.
        grid: Size of the feature map that the position table is made for.
        multiple: Every side of an image must be a multiple of it.
    """

    def __init__(self, in_chans: int, channels: int, *, grid: tuple[int, int], multiple: int):
        super().__init__()
        self.multiple = multiple
        conv = partial(ConvNorm, kernel_size=3, stride=2, bias=True, act=nn.ReLU)
        widths = (in_chans, channels // 2, channels, channels)
        self.convs = nn.Sequential(*(conv(widths[i], widths[i + 1]) for i in range(3)))
        self.positions = AddPositions(LearnedPositionEmbedding(channels, grid, mode="bicubic"))

    def forward(self, x: Tensor) -> Tensor:
        if self.multiple > 1:
            check_sides(x, 2, self.multiple)
        return self.positions(self.convs(x))  # B C H/8 W/8


class SReT(Backbone):
    """Three stages at strides 8, 16 and 32 (fig. 4, table 2).

    Args:
        heads: Number of attention heads in each stage.
        head_dim: Width of a head.
        mlp_ratio: Hidden width of the MLPs divided by that of the tokens.
        np_ratio: Hidden width of the projections divided by that of the tokens.
        slices1: Number of slices in each stage, for the first pass of a block.
        slices2: Number of slices for the second pass, whose tokens are shuffled.
        multiple: Every side of an image must be a multiple of it, for slices of equal length.
    """

    def __init__(
        self,
        *,
        heads: tuple[int, ...],
        head_dim: int,
        mlp_ratio: float,
        np_ratio: float = 1.0,
        slices1: tuple[int, ...] = (1, 1, 1),
        slices2: tuple[int, ...] = (1, 1, 1),
        multiple: int = 1,
        num_classes: int = 1000,
        in_chans: int = 3,
        img_size: int | tuple[int, int] = 224,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str = "avg",
    ):
        dims, stages = tuple(head_dim * count for count in heads), []
        for i, rates in enumerate(drop_path_rates(drop_path_rate, BLOCKS)):
            blocks = [
                Recursion(
                    dims[i],
                    int(dims[i] * mlp_ratio),
                    int(dims[i] * np_ratio),
                    num_heads=heads[i],
                    slices=(slices1[i], slices2[i]),
                    drop_path=rate,
                )
                for rate in rates
            ]
            before = dims[i - 1]
            down = nn.Conv2d(before, dims[i], 3, 2, 1, groups=before) if i else None
            stages.append(Stage(blocks, down))
        super().__init__(
            stem=Stem(in_chans, dims[0], grid=grid_size(img_size, PIXELS), multiple=multiple),
            stages=stages,
            norm=nn.Identity(),
            head=ClassifierHead(
                dims[-1],
                num_classes,
                pool=global_pool,
                drop_rate=drop_rate,
                norm="layer",
                norm_eps=1e-6,
            ),
            channels=dims,
            strides=(PIXELS, 16, 32),
            in_chans=in_chans,
        )


def _as_tokens(state: State, model: SReT) -> State:
    """Convert the public position table, 1 C H W, to tokens."""
    key = "stem.positions.position.table"
    if key in state and state[key].ndim == 4:
        state[key] = state[key].flatten(2).transpose(1, 2)
    return state


# Of four public modules in a row the first and the third are one block, each before a projection.
BLOCK = (
    (r"attn\.", "attention."),
    (r"coefficient1\.bias$", "keep1.weight"),
    (r"coefficient2\.bias$", "scale1.weight"),
    (r"coefficient3\.bias$", "keep2.weight"),
    (r"coefficient4\.bias$", "scale2.weight"),
    ("", ""),
)
PROJECTION = (
    (r"norm1\.", "norm."),
    (r"coefficient1\.bias$", "keep.weight"),
    (r"coefficient2\.bias$", "scale.weight"),
    ("", ""),
)
OLD, NEW = r"transformers\.(\d)\.blocks", r"stages.\1.blocks.{2//4}."
KEY_STYLES = (
    KeyStyle(
        "szq0214/SReT",
        "patch_embed.conv1.weight",
        rows=(
            (r"pos_embed$", "stem.positions.position.table"),
            (r"patch_embed\.conv(\d)\.", "stem.convs.{1-1}.conv."),
            (r"patch_embed\.bn(\d)\.", "stem.convs.{1-1}.norm."),
            *prefixed(OLD + r"\.(\d*[02468])\.", NEW + "block.", BLOCK),
            *prefixed(OLD + r"\.(\d*[13579])\.", NEW + "project{2//2%2+1}.", PROJECTION),
            (r"pools\.(\d)\.conv\.", "stages.{1+1}.downsample."),
            (r"norm\.", "head.fc.norm."),
            (r"head\.(weight|bias)$", r"head.fc.linear.\1"),
        ),
        tensors=_as_tokens,
    ),
)

# fmt: off
_T  = dict(heads=(2, 4, 8),  head_dim=32, mlp_ratio=3.6)
_LT = dict(heads=(2, 4, 8),  head_dim=32, mlp_ratio=4.0)
_S  = dict(heads=(3, 6, 12), head_dim=42, mlp_ratio=3.0, np_ratio=2.0)
_SLICES = dict(slices1=(8, 4, 1), slices2=(2, 1, 1), multiple=32)
VARIANTS = {
    "sret_t": _T | _SLICES,
    "sret_t_wo_slice": _T,
    "sret_t_wo_slice_384": _T | dict(img_size=384),
    "sret_lt": _LT | _SLICES,
    "sret_lt_16_14_1": _LT | dict(slices1=(16, 14, 1), multiple=224),
    "sret_lt_wo_slice": _LT,
    "sret_s": _S | _SLICES,
    "sret_s_wo_slice": _S,
    "sret_s_wo_slice_384": _S | dict(img_size=384),
    "sret_s_wo_slice_512": _S | dict(img_size=512),
}
# fmt: on

SReT.register_family(VARIANTS, KEY_STYLES)
