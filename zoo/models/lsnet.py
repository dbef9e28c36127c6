"""LSNet: look at a large surrounding, aggregate a small one, with kernels made for each pixel.

Paper: Wang et al., "LSNet: See Large, Focus Small" (arXiv 2503.23135), fig. 3 and 4, eq. 4 to 7.
Code:  github.com/THU-MIG/lsnet @ cbe737c92b7c (no licence file; nothing of it is here).
Here:  aggregation is plain PyTorch (the public operator runs on CUDA alone) and exports. Any size:
       the bias table of the attention is resampled where the last map is not 4x4. The dense form,
       which `features_only` gives, resamples the looked-up bias instead, as the public dense code.
"""

import math
import re
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.backbone import Backbone, Stage
from zoo.blocks.attention import OffsetBias, offset_bias, resample_table
from zoo.blocks.conv import ConvNorm
from zoo.blocks.drop import DropPath, linear_rates
from zoo.blocks.folding import add_identity, batch_norm_affine, is_fixed_batch_norm, rebuilt
from zoo.blocks.heads import ClassifierHead, DistilledHead
from zoo.blocks.residual import Residual
from zoo.blocks.scale import ChannelAffine
from zoo.blocks.sizes import grid_size, is_size
from zoo.blocks.squeeze import SqueezeExcite
from zoo.keys import KeyStyle, State, rename
from zoo.ops import aggregate
from zoo.registry import register

torch.fx.wrap("aggregate")

HEADS, KEY_DIM = 4, 16
SHARING = 8  # channels that take one kernel
DENSE_GRID = (14, 14)  # what the tables of the dense form are made for


class RepDepthwise(nn.Module):
    """A 3x3 and a 1x1 filter for each channel, and the channel itself, summed (RepVGG).

    Args:
        channels: Channels of input and output.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.large = ConvNorm(channels, channels, kernel_size=3, groups=channels)
        self.small = ConvNorm(channels, channels, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.large(x) + self.small(x) + x

    def fused(self) -> nn.Module:
        """One 3x3 filter for each channel."""
        large, small = self.large, self.small
        if not isinstance(large.norm, nn.Identity) or not isinstance(small.norm, nn.Identity):
            return self
        weight = large.conv.weight.double() + F.pad(small.conv.weight.double(), [1, 1, 1, 1])
        assert large.conv.bias is not None
        assert small.conv.bias is not None
        bias = large.conv.bias.double() + small.conv.bias.double()
        like = large.conv.weight.dtype
        conv = rebuilt(large.conv, weight=weight.detach().to(like), bias=bias.detach().to(like))
        return add_identity(conv)


class KernelPredictor(nn.Module):
    """What each pixel's kernels are, from a surrounding of 7x7 (large-kernel perception, eq. 5).

    Args:
        channels: Channels of the input.
    """

    def __init__(self, channels: int):
        super().__init__()
        half, count = channels // 2, channels // SHARING
        self.reduce = ConvNorm(channels, half, act=nn.ReLU)
        self.look = ConvNorm(half, half, kernel_size=7, groups=half)
        self.mix = ConvNorm(half, half, act=nn.ReLU)
        self.taps = nn.Conv2d(half, 9 * count, 1)
        self.norm = nn.GroupNorm(count, 9 * count)

    def forward(self, x: Tensor) -> Tensor:
        """B C H W -> B C/8 9 H W."""
        x = self.norm(self.taps(self.mix(self.look(self.reduce(x)))))
        return x.unflatten(1, (-1, 9))


class LSConv(nn.Module):
    """x + norm(aggregate(x, kernels of x)) (fig. 3).

    Args:
        channels: Channels of input and output, a multiple of 8.
    """

    branch_ends = ("norm",)

    def __init__(self, channels: int):
        super().__init__()
        self.predict = KernelPredictor(channels)
        self.norm: nn.Module = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(aggregate(x, self.predict(x)))

    def fused(self) -> "LSConv":
        """The norm as scale and shift: kernels cannot take it, eight channels share each."""
        if not is_fixed_batch_norm(self.norm):
            return self
        dtype = self.predict.taps.weight.dtype
        scale, shift = (values.to(dtype) for values in batch_norm_affine(self.norm))
        return rebuilt(self, norm=ChannelAffine(scale, shift))


class MatrixBias(nn.Module):
    """An offset bias looked up for one map size; for others the matrix itself is resampled.

    Geometrically odd, but what the published dense checkpoints are trained with.

    Args:
        num_heads: Rows of the table.
        grid: Size of the map that the table is made for.
    """

    no_decay = ("table",)

    def __init__(self, num_heads: int, grid: tuple[int, int]):
        super().__init__()
        self.grid = grid
        self.table = nn.Parameter(torch.zeros(num_heads, grid[0] * grid[1]))

    def forward(self, height: int, width: int) -> Tensor:
        matrix = offset_bias(self.table, self.grid, self.grid[0], self.grid[1])
        return resized_matrix(matrix, height * width)

    def fused(self) -> nn.Module:
        """The matrix as a constant."""
        return ConstantMatrixBias(offset_bias(self.table.detach(), self.grid, *self.grid))


class ConstantMatrixBias(nn.Module):
    """`MatrixBias` for inference.

    Args:
        matrix: heads x N x N.
    """

    matrix: Tensor

    def __init__(self, matrix: Tensor):
        super().__init__()
        self.register_buffer("matrix", matrix)

    def forward(self, height: int, width: int) -> Tensor:
        return resized_matrix(self.matrix, height * width)


def resized_matrix(matrix: Tensor, side: int) -> Tensor:
    """heads x N x N -> heads x side x side, as images; of that size already, it stays."""
    if is_size(side, side, (matrix.shape[1], matrix.shape[2])):
        return matrix
    return F.interpolate(matrix[None], [side, side], mode="bicubic", align_corners=False)[0]


torch.fx.wrap("resized_matrix")


def features_last(x: Tensor, num_heads: int) -> Tensor:
    """B C H W -> B heads N D, laid out in this order: kernels for GPUs take no other.

    A map of a single position counts as contiguous in any order, so that `contiguous` would not do.
    """
    heads = x.flatten(2).unflatten(1, (num_heads, -1)).transpose(2, 3)
    return heads.clone(memory_format=torch.contiguous_format)


class Attention(nn.Module):
    """Attention with an offset bias and queries that see their neighbours (LeViT's, fig. 4).

    Args:
        channels: Channels of input and output, a multiple of 4.
        bias: Gives the bias for a map's height and width.
    """

    branch_ends = ("proj.norm",)

    def __init__(self, channels: int, bias: nn.Module):
        super().__init__()
        self.num_heads, self.scale = HEADS, KEY_DIM**-0.5
        self.qkv = ConvNorm(channels, 2 * HEADS * KEY_DIM + channels)
        self.local = ConvNorm(
            HEADS * KEY_DIM, HEADS * KEY_DIM, kernel_size=3, groups=HEADS * KEY_DIM
        )
        self.bias = bias
        self.act = nn.ReLU()
        self.proj = ConvNorm(channels, channels)

    # B batch, H heads, N positions, D features of a head
    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2], x.shape[3]
        keys = self.local.conv.out_channels
        q, k, v = self.qkv(x).split([keys, keys, x.shape[1]], dim=1)
        q_BHND, k_BHND, v_BHND = (
            features_last(map_BCHW, self.num_heads) for map_BCHW in (self.local(q), k, v)
        )
        bias_HNN = self.bias(height, width).to(q_BHND.dtype)
        y_BHND = F.scaled_dot_product_attention(
            q_BHND, k_BHND, v_BHND, attn_mask=bias_HNN[None], scale=self.scale
        )
        y = y_BHND.transpose(2, 3).flatten(1, 2).unflatten(2, (height, width))
        return self.proj(self.act(y))

    def fused(self) -> "Attention":
        """The scale of the queries in their filters."""
        if self.scale == 1.0 or not isinstance(self.local.norm, nn.Identity):
            return self
        factors = torch.full((self.local.conv.out_channels,), self.scale, dtype=torch.float64)
        local = self.local.scaled(factors.to(self.local.conv.weight.device))
        fused = rebuilt(self, local=local)
        fused.scale = 1.0
        return fused


class ConvFfn(nn.Module):
    """Two 1x1 convolutions with norms, a ReLU between; the second norm starts at 0.

    Args:
        channels: Channels of input and output.
    """

    branch_ends = ("project.norm",)

    def __init__(self, channels: int):
        super().__init__()
        self.expand = ConvNorm(channels, 2 * channels, act=nn.ReLU)
        self.project = ConvNorm(2 * channels, channels)
        nn.init.zeros_(self.project.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.expand(x))


class LSBlock(nn.Module):
    """A token mixer, a gate or none, then a perceptron beside the identity.

    Args:
        channels: Channels of input and output.
        mixer: Mixes positions; it contains its identity path.
        gated: Weight channels by squeeze and excitation after it.
        drop_path: Probability of leaving the perceptron out while training.
    """

    def __init__(self, channels: int, mixer: nn.Module, *, gated: bool, drop_path: float):
        super().__init__()
        self.mixer = mixer
        self.se = SqueezeExcite(channels, channels // 4) if gated else nn.Identity()
        self.ffn = ConvFfn(channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.se(self.mixer(x))
        return x + self.drop_path(self.ffn(x))


class LSNet(Backbone):
    """Four stages at strides 8 to 64; every second block looks large, attends in the last stage.

    Args:
        depths: Blocks of each stage.
        dims: Channels of each stage.
        distillation: Have a second classifier for a teacher's labels; logits are their mean.
        dense: The form of the public dense code, whose attention bias is resampled otherwise.
        num_classes: Number of logits; 0 leaves the classifiers out.
        in_chans: Channels of the image.
        img_size: Size in pixels that the bias tables are made for; others are resampled. The dense
            form's are made for maps of 14x14.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last perceptron; it grows linearly from 0.
        global_pool: `"avg"`, `"max"` or `""`.
    """

    def __init__(
        self,
        *,
        depths: tuple[int, ...],
        dims: tuple[int, ...],
        distillation: bool = False,
        dense: bool = False,
        num_classes: int = 1000,
        in_chans: int = 3,
        img_size: int | tuple[int, int] = 224,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str = "avg",
    ):
        grid, stages = grid_size(img_size, 64), []
        for i, rates in enumerate(linear_rates(drop_path_rate, depths)):
            make = partial(_block, dims[i], attends=i == 3, grid=grid, dense=dense)
            blocks = [make(j, drop_path=rate) for j, rate in enumerate(rates)]
            stages.append(Stage(blocks, _downsample(dims[i - 1], dims[i]) if i else None))
        half = partial(ConvNorm, kernel_size=3, stride=2)
        quarter, act = dims[0] // 4, nn.ReLU
        head = DistilledHead if distillation else ClassifierHead
        super().__init__(
            stem=nn.Sequential(
                half(in_chans, quarter, act=act),
                half(quarter, 2 * quarter, act=act),
                half(2 * quarter, dims[0]),
            ),
            stages=stages,
            norm=nn.Identity(),
            head=head(dims[-1], num_classes, pool=global_pool, drop_rate=drop_rate, norm="batch"),
            channels=dims,
            strides=(8, 16, 32, 64),
            in_chans=in_chans,
        )
        self.apply(_init)


def _downsample(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        ConvNorm(in_channels, in_channels, kernel_size=3, stride=2, groups=in_channels),
        ConvNorm(in_channels, out_channels),
    )


def _block(
    channels: int,
    index: int,
    *,
    attends: bool,
    grid: tuple[int, int],
    dense: bool,
    drop_path: float,
) -> LSBlock:
    if index % 2 == 0:
        return LSBlock(channels, RepDepthwise(channels), gated=True, drop_path=drop_path)
    if not attends:
        return LSBlock(channels, LSConv(channels), gated=False, drop_path=drop_path)
    bias = MatrixBias(HEADS, DENSE_GRID) if dense else OffsetBias(HEADS, grid, align_corners=False)
    attention = Attention(channels, bias)
    nn.init.zeros_(attention.proj.norm.weight)
    return LSBlock(channels, Residual(attention), gated=False, drop_path=drop_path)


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


# Parts of a block, by the names of the public code; the first that fits is taken.
PARTS = (
    ("mixer.lkp.cv1.", "mixer.predict.reduce."),
    ("mixer.lkp.cv2.", "mixer.predict.look."),
    ("mixer.lkp.cv3.", "mixer.predict.mix."),
    ("mixer.lkp.cv4.", "mixer.predict.taps."),
    ("mixer.lkp.", "mixer.predict."),
    ("mixer.conv.", "mixer.large."),
    ("mixer.conv1.", "mixer.small."),
    ("mixer.m.dw.", "mixer.inner.local."),
    ("mixer.m.proj.1.", "mixer.inner.proj."),
    ("mixer.m.attention_biases", "mixer.inner.bias.table"),
    ("mixer.m.", "mixer.inner."),
    ("se.fc1.", "se.reduce."),
    ("se.fc2.", "se.expand."),
    ("ffn.m.pw1.", "ffn.expand."),
    ("ffn.m.pw2.", "ffn.project."),
    ("", ""),
)


def _from_original(state: State, model: LSNet) -> State:
    def part(new: str, fit: re.Match) -> str:
        stage, index = int(fit[1]) - 1, int(fit[2])
        if stage and index < 2:
            return f"stages.{stage}.downsample.{index}.{new}"
        return f"stages.{stage}.blocks.{index - 2 if stage else index}.{new}"

    state = {key: value for key, value in state.items() if not key.endswith("attention_bias_idxs")}
    state = rename(
        state,
        [
            (r"patch_embed\.([024])\.", lambda fit: f"stem.{int(fit[1]) // 2}."),
            *((rf"blocks(\d)\.(\d+)\.{re.escape(old)}", partial(part, new)) for old, new in PARTS),
            (r"head(|_dist)\.bn\.", r"head.fc\1.norm."),
            (r"head(|_dist)\.l\.", r"head.fc\1.linear."),
        ],
    )
    state = rename(state, [(r"(.*\.)c\.", r"\1conv."), (r"(.*\.)bn\.", r"\1norm.")])
    return _resampled(state, model)


def _resampled(state: State, model: LSNet) -> State:
    """Fit tables learnt for another map size to those of `model`; also for our own keys."""
    for name, module in model.named_modules():
        key = f"{name}.table"
        if isinstance(module, OffsetBias | MatrixBias) and key in state:
            places = state[key].shape[1]
            if math.isqrt(places) ** 2 == places:
                state[key] = resample_table(state[key], module.grid, align_corners=False)
    return state


LSNet.key_styles = (
    KeyStyle("THU-MIG/lsnet", "patch_embed.0.c.weight", _from_original),
    KeyStyle("zoo", "stem.0.conv.weight", _resampled),
)

# fmt: off
SIZES = {
    "t": dict(depths=(0, 2, 8, 10), dims=(64,  128, 256, 384)),
    "s": dict(depths=(1, 2, 8, 10), dims=(96,  192, 320, 448)),
    "b": dict(depths=(4, 6, 8, 10), dims=(128, 256, 384, 512)),
}
# fmt: on
VARIANTS = {
    **{f"lsnet_{size}": arguments for size, arguments in SIZES.items()},
    **{f"lsnet_{size}_distill": SIZES[size] | dict(distillation=True) for size in SIZES},
}

for _name, _arguments in VARIANTS.items():
    register(_name, partial(LSNet, **_arguments))
