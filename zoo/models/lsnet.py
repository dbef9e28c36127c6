"""LSNet: perceive a large neighbourhood, aggregate a small one, with a kernel per pixel.

Paper: Wang et al., "LSNet: See Large, Focus Small" (arXiv 2503.23135), fig. 3 and 4, eq. 4 to 7.
Code:  github.com/THU-MIG/lsnet @ cbe737c92b7c (no licence file; nothing of it is here).
Here:  aggregation is plain PyTorch (the public operator requires CUDA) and exports. Any size: the
       attention bias is resampled if the last feature map is not 4x4. The dense form, used by
       `features_only`, resamples the looked-up bias instead, as the public dense code does.
"""

from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from zoo.backbone import Backbone, Stage
from zoo.blocks.attention import AttentionBias, attention_bias
from zoo.blocks.conv import ConvNorm
from zoo.blocks.drop import drop_path_rates
from zoo.blocks.folding import (
    add_identity,
    batch_norm_affine,
    is_fixed_batch_norm,
    rebuilt,
    scale_queries,
)
from zoo.blocks.heads import ClassifierHead, DistilledHead
from zoo.blocks.mlp import ConvMlp
from zoo.blocks.residual import Residual
from zoo.blocks.scale import ChannelAffine
from zoo.blocks.sizes import grid_size, is_size
from zoo.blocks.squeeze import SqueezeExcite
from zoo.keys import KeyStyle, prefixed
from zoo.ops import aggregate

torch.fx.wrap("aggregate")

HEADS, KEY_DIM = 4, 16
SHARING = 8  # channels that share a kernel
DENSE_GRID = (14, 14)  # grid of the bias tables of the dense form


class RepDepthwise(nn.Module):
    """The sum of a 3x3 and a 1x1 depthwise convolution and the identity (RepVGG).

    Args:
        channels: Channels of input and output.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.large = ConvNorm(channels, channels, kernel_size=3, groups=channels)
        self.small = ConvNorm(channels, channels, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.large(x) + self.small(x) + x  # B C H W

    def fused(self) -> nn.Module:
        """Return one 3x3 depthwise convolution."""
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
    """Large-kernel perception: predict the kernels of each pixel from a 7x7 neighbourhood (eq. 5).

    Args:
        channels: Channels of the input.
    """

    def __init__(self, channels: int):
        super().__init__()
        half, count = channels // 2, channels // SHARING
        self.reduce = ConvNorm(channels, half, act=nn.ReLU)
        self.depthwise = ConvNorm(half, half, kernel_size=7, groups=half)
        self.pointwise = ConvNorm(half, half, act=nn.ReLU)
        self.kernels = nn.Conv2d(half, 9 * count, 1)
        self.norm = nn.GroupNorm(count, 9 * count)

    def forward(self, x: Tensor) -> Tensor:
        """Map B C H W to kernels B C/8 9 H W."""
        x = self.pointwise(self.depthwise(self.reduce(x)))  # B C/2 H W
        return self.norm(self.kernels(x)).unflatten(1, (-1, 9))


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
        return x + self.norm(aggregate(x, self.predict(x)))  # B C H W

    def fused(self) -> "LSConv":
        """Replace the norm by scale and shift; a kernel for eight channels cannot absorb it."""
        if not is_fixed_batch_norm(self.norm):
            return self
        dtype = self.predict.kernels.weight.dtype
        scale, shift = (values.to(dtype) for values in batch_norm_affine(self.norm))
        return rebuilt(self, norm=ChannelAffine(scale, shift))


class MatrixBias(AttentionBias):
    """An attention bias looked up for one size; for others the matrix itself is resampled.

    This is geometrically wrong, but the published dense checkpoints were trained with it.
    """

    def forward(self, height: int, width: int) -> Tensor:
        matrix = attention_bias(self.table, self.grid, self.grid[0], self.grid[1])  # heads N N
        return resized_matrix(matrix, height * width)

    def fused(self) -> nn.Module:
        """Return the matrix as a constant."""
        return ConstantMatrixBias(attention_bias(self.table.detach(), self.grid, *self.grid))


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
        return resized_matrix(self.matrix, height * width)  # heads N N


def resized_matrix(matrix: Tensor, side: int) -> Tensor:
    """Resample heads x N x N to heads x side x side, as images, unless it has that size."""
    if is_size(side, side, (matrix.shape[1], matrix.shape[2])):
        return matrix
    return F.interpolate(matrix[None], [side, side], mode="bicubic", align_corners=False)[0]


torch.fx.wrap("resized_matrix")


def features_last(x: Tensor, num_heads: int) -> Tensor:
    """Rearrange B C H W to B heads N D, contiguous, as GPU kernels require.

    `contiguous()` is not enough: a feature map of one position is contiguous in any order.
    """
    heads = x.flatten(2).unflatten(1, (num_heads, -1)).transpose(2, 3)
    return heads.clone(memory_format=torch.contiguous_format)


class Attention(nn.Module):
    """Attention with an attention bias and locally convolved queries (LeViT's, fig. 4).

    Args:
        channels: Channels of input and output, a multiple of 4.
        bias: Returns the bias for the height and width of a feature map.
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
        y = y_BHND.transpose(2, 3).flatten(1, 2).unflatten(2, (height, width))  # B C H W
        return self.proj(self.act(y))

    def fused(self) -> "Attention":
        """Fold the scale of the products into the queries."""
        return scale_queries(self, "local", HEADS * KEY_DIM)


class LSBlock(nn.Module):
    """A token mixer, an optional gate, then a residual perceptron.

    Args:
        channels: Channels of input and output.
        mixer: Mixes positions; includes its identity path.
        gated: Apply squeeze and excitation after the mixer.
        drop_path: Probability of dropping the perceptron in training.
    """

    branch_ends = ("ffn.fc2.norm",)

    def __init__(self, channels: int, mixer: nn.Module, *, gated: bool, drop_path: float):
        super().__init__()
        self.mixer = mixer
        self.se = SqueezeExcite(channels, channels // 4) if gated else nn.Identity()
        self.ffn = ConvMlp(channels, 2 * channels)
        nn.init.zeros_(self.ffn.fc2.norm.weight)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.se(self.mixer(x))
        return x + self.drop_path(self.ffn(x))  # B C H W


class LSNet(Backbone):
    """Four stages at strides 8 to 64; every second block is an LSConv, or attention in stage 4.

    Args:
        depths: Number of blocks in each stage.
        dims: Channels of each stage.
        distillation: Add a second classifier for a teacher's labels; the output is their mean.
        dense: Build the form of the public code for dense prediction, which resamples the
            attention bias differently.
        img_size: Image size in pixels that the bias tables are made for; for others they are
            resampled. Tables of the dense form are made for feature maps of 14x14.
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
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
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
    kind, size = (MatrixBias, DENSE_GRID) if dense else (AttentionBias, grid)
    bias = kind(HEADS, size, align_corners=False)
    attention = Attention(channels, bias)
    nn.init.zeros_(attention.proj.norm.weight)
    return LSBlock(channels, Residual(attention), gated=False, drop_path=drop_path)


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


PARTS = (
    (r"mixer\.lkp\.cv1\.", "mixer.predict.reduce."),
    (r"mixer\.lkp\.cv2\.", "mixer.predict.depthwise."),
    (r"mixer\.lkp\.cv3\.", "mixer.predict.pointwise."),
    (r"mixer\.lkp\.cv4\.", "mixer.predict.kernels."),
    (r"mixer\.lkp\.", "mixer.predict."),
    (r"mixer\.conv\.", "mixer.large."),
    (r"mixer\.conv1\.", "mixer.small."),
    (r"mixer\.m\.dw\.", "mixer.inner.local."),
    (r"mixer\.m\.proj\.1\.", "mixer.inner.proj."),
    (r"mixer\.m\.attention_biases$", "mixer.inner.bias.table"),
    (r"mixer\.m\.attention_bias_idxs$", None),
    (r"mixer\.m\.", "mixer.inner."),
    (r"se\.fc1\.", "se.reduce."),
    (r"se\.fc2\.", "se.expand."),
    (r"ffn\.m\.pw(?P<n>\d)\.", r"ffn.fc\g<n>."),
    ("", ""),
)
KEY_STYLES = (
    KeyStyle(
        "THU-MIG/lsnet",
        "patch_embed.0.c.weight",
        rows=(
            (r"patch_embed\.([024])\.", "stem.{1//2}."),
            *prefixed(r"blocks1\.(?P<j>\d+)\.", r"stages.0.blocks.\g<j>.", PARTS),
            # Later stages start with the two layers that downsample.
            (r"blocks(\d)\.([01])\.", r"stages.{1-1}.downsample.\2."),
            *prefixed(r"blocks(?P<s>\d)\.(?P<j>\d+)\.", "stages.{s-1}.blocks.{j-2}.", PARTS),
            (r"head(|_dist)\.bn\.", r"head.fc\1.norm."),
            (r"head(|_dist)\.l\.", r"head.fc\1.linear."),
        ),
        inside=((r"\.c\.", ".conv."), (r"\.bn\.", ".norm.")),
    ),
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

LSNet.register_family(VARIANTS, KEY_STYLES)
