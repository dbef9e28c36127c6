"""LightM-UNet: a U-Net whose encoder consists of Mamba layers, in two or three dimensions.

Paper: Liao et al., "LightM-UNet: Mamba Assists in Lightweight UNet for Medical Image Segmentation"
       (arXiv 2403.05246), fig. 1 and 2.
Code:  github.com/MrBlankness/LightM-UNet @ 6b72e27ba70c, Apache-2.0
       (lightm-unet/nnunetv2/nets/LightMUNet.py).
Here:  as in the code, not the paper: one scan row by row instead of a VSS module with four, and
       5.01 M parameters instead of 1.09 M. Neither MONAI nor a CUDA extension is needed.
       `drop_path_rate` is an addition; its default, 0, is the public model.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from zoo.backbone import Stage
from zoo.blocks import ndim
from zoo.blocks.drop import drop_path_rates
from zoo.blocks.folding import Absorbing
from zoo.blocks.heads import DenseHead
from zoo.blocks.scale import LayerScale
from zoo.blocks.selective import DirectionalScan
from zoo.blocks.separable import SeparableConv
from zoo.blocks.sizes import check_sides, whole_number
from zoo.blocks.widths import SIMD, Group, Slice, positions, rows
from zoo.dense_backbone import DenseBackbone
from zoo.errors import BadInput
from zoo.keys import KeyStyle

torch.fx.wrap("check_sides")

GROUPS = 8  # number of groups of every group norm


class Stem(nn.Module):
    """A separable convolution and dropout; refuses images that the model cannot halve evenly.

    Args:
        in_channels: Channels of the image.
        out_channels: Channels of the feature map, which has the size of the image.
        drop_rate: Probability of dropping a channel.
        axes: Number of spatial axes of the image.
        multiple: Every side of an image must be a multiple of it.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, drop_rate: float, axes: int, multiple: int
    ):
        super().__init__()
        self.axes, self.multiple = axes, multiple
        self.conv = SeparableConv(in_channels, out_channels, axes=axes)
        self.drop = ndim.channel_dropout(axes, drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        check_sides(x, self.axes, self.multiple)
        return self.drop(self.conv(x))  # B C H W (or D H W)


class Mamba(nn.Module):
    """Mamba (arXiv 2312.00752, fig. 3 and section 3.4): B L C -> B L C, in one direction.

    Args:
        channels: Width of the tokens.
        d_state: States per inner channel.
        kernel_size: Steps of the causal convolution, including the current one.
        expansion: Inner channels divided by `channels`.
    """

    input_layers, output_parts = ("in_proj",), ("out_proj",)

    def __init__(
        self, channels: int, *, d_state: int = 16, kernel_size: int = 4, expansion: int = 2
    ):
        super().__init__()
        inner, dt_rank = expansion * channels, math.ceil(channels / 16)
        self.past = kernel_size - 1
        self.in_proj = nn.Linear(channels, 2 * inner, bias=False)
        self.conv = nn.Conv1d(inner, inner, kernel_size, groups=inner)
        self.scan = DirectionalScan(inner, directions=1, d_state=d_state, dt_rank=dt_rank)
        self.out_proj = nn.Linear(inner, channels, bias=False)

    # B batch, L steps, C channels, D inner channels
    def forward(self, x_BLC: Tensor) -> Tensor:
        x_BDL, gate_BDL = self.in_proj(x_BLC).transpose(1, 2).chunk(2, dim=1)
        x_BDL = F.silu(self.conv(F.pad(x_BDL, (self.past, 0))))
        y_BDL = self.scan(x_BDL.unsqueeze(1)).squeeze(1) * F.silu(gate_BDL)
        return self.out_proj(y_BDL.transpose(1, 2).to(x_BLC.dtype))

    def prunable(self) -> list[Group]:
        """Declare the inner channels."""
        inner = self.out_proj.in_features
        table = (positions(1, inner),)
        slices = [
            *rows(self.in_proj, "in_proj", (positions(2, inner),)),
            *rows(self.conv, "conv", table),
            Slice("scan.x_proj", 2, table, reads=True),
            *(Slice(f"scan.{name}", 1, table) for name in ("dt_proj", "dt_bias")),
            *rows(self.scan, "scan", table),
            Slice("out_proj.weight", 1, table, reads=True),
        ]
        return [Group("hidden", inner, tuple(slices), SIMD)]


class MambaLayer(Absorbing):
    """Mamba over the positions of a feature map in row-major order, then a projection (fig. 2).

    The same norm, with the same weights, is applied before and after the Mamba block; the residual
    adds the tokens before the norm, times a learnt factor.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
    """

    absorbs_before = {"mamba": "norm", "proj": "norm"}

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(in_channels)
        self.mamba = Mamba(in_channels)
        self.scale = LayerScale(1, init=1.0)
        self.proj = nn.Linear(in_channels, out_channels)

    # B batch, C channels, L positions
    def forward(self, x: Tensor) -> Tensor:
        x_BLC = x.flatten(2).transpose(1, 2)
        y_BLC = self.mamba(self.norm(x_BLC)) + self.scale(x_BLC)
        return self.proj(self.norm(y_BLC)).transpose(1, 2).unflatten(2, x.shape[2:])


class EncoderBlock(nn.Module):
    """Norm, activation and Mamba layer, twice, with a residual (the public ResMambaBlock).

    Args:
        channels: Channels of input and output.
        drop_path: Probability of dropping the branch in training.
    """

    def __init__(self, channels: int, *, drop_path: float = 0.0):
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, channels)
        self.mixer1 = MambaLayer(channels, channels)
        self.norm2 = nn.GroupNorm(GROUPS, channels)
        self.mixer2 = MambaLayer(channels, channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.mixer1(F.relu(self.norm1(x)))
        y = self.mixer2(F.relu(self.norm2(y)))
        return x + self.drop_path(y)  # B C H W


class DecoderBlock(nn.Module):
    """A separable convolution with a scaled residual, then a norm (the public ResUpBlock).

    Args:
        channels: Channels of input and output.
        axes: Number of spatial axes.
    """

    def __init__(self, channels: int, *, axes: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, channels)
        self.conv = SeparableConv(channels, channels, axes=axes)
        self.scale = LayerScale(1, init=1.0, spatial=True)
        self.norm2 = nn.GroupNorm(GROUPS, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(F.relu(self.norm1(x))) + self.scale(x)
        return F.relu(self.norm2(y))  # B C H W


class DecoderStage(nn.Module):
    """Halve the channels, double the size, add the encoder's feature map, apply blocks.

    Args:
        in_channels: Channels of the smaller feature map.
        depth: Number of blocks.
        axes: Number of spatial axes.
    """

    def __init__(self, in_channels: int, depth: int, *, axes: int):
        super().__init__()
        channels = in_channels // 2
        self.reduce = ndim.conv(axes, in_channels, channels, bias=False)
        self.resize = ndim.upsample(axes, 2)
        self.blocks = nn.Sequential(*[DecoderBlock(channels, axes=axes) for _ in range(depth)])

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.blocks(self.resize(self.reduce(x)) + skip)  # B C/2 2H 2W


class MapHead(DenseHead):
    """Logits for each position: norm, activation, separable 1x1 convolution with biases.

    Args:
        num_features: Channels of the feature map.
        num_classes: Logits per position; 0 leaves the convolution out.
        axes: Number of spatial axes.
    """

    def __init__(self, num_features: int, num_classes: int, *, axes: int):
        super().__init__()
        self.num_features, self.axes = num_features, axes
        self.norm = nn.GroupNorm(GROUPS, num_features)
        self.reset(num_classes)

    def make_classifier(self) -> nn.Module:
        return SeparableConv(
            self.num_features, self.num_classes, kernel_size=1, bias=True, axes=self.axes
        )

    def classifiers(self) -> list[str]:
        """Return the names of the classifier layers."""
        return ["fc.pointwise" if isinstance(self.fc, SeparableConv) else "fc"]

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = F.relu(self.norm(x))  # B C H W
        return x if pre_logits else self.fc(x)


class LightMUNet(DenseBackbone):
    """An encoder of Mamba layers and a decoder of separable convolutions, with added skips.

    Sides of images must be multiples of 2 to the power of the number of decoder stages, 8 by
    default. `forward_features` returns the decoder's feature map at the size of the image; the
    levels of `features_only` and `forward_intermediates` are those of the encoder.

    Args:
        spatial_dims: 2 for images, 3 for volumes (B C D H W).
        init_filters: Channels of the first level, a multiple of 8; each level has twice as many.
        blocks_down: Number of encoder blocks in each level.
        blocks_up: Number of decoder blocks in each level but the deepest, from deep to shallow.
        num_classes: Logits per position; 0 leaves the last convolution out.
        drop_rate: Dropout of whole channels after the stem.
        drop_path_rate: Stochastic depth of the last encoder block; it grows linearly from 0.
    """

    def __init__(
        self,
        *,
        spatial_dims: int = 2,
        init_filters: int = 32,
        blocks_down: Sequence[int] = (1, 2, 2, 4),
        blocks_up: Sequence[int] = (1, 1, 1),
        num_classes: int = 2,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ):
        axes = ndim.check_axes(spatial_dims)
        depths, depths_up = _check_depths(blocks_down, blocks_up)
        if whole_number(init_filters, "init_filters", GROUPS) % GROUPS:
            raise BadInput(f"init_filters={init_filters}: must be a multiple of {GROUPS}")
        dims = [init_filters * 2**i for i in range(len(depths))]
        stages = []
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            blocks = [EncoderBlock(dims[i], drop_path=rate) for rate in rates]
            stages.append(Stage(blocks, _downsample(dims[i - 1], axes) if i else None))
        multiple = 2 ** len(depths_up)
        super().__init__(
            stem=Stem(in_chans, init_filters, drop_rate=drop_rate, axes=axes, multiple=multiple),
            stages=stages,
            norm=nn.Identity(),
            head=MapHead(init_filters, num_classes, axes=axes),
            channels=dims,
            strides=[2**i for i in range(len(dims))],
            in_chans=in_chans,
        )
        self.decoder = nn.ModuleList(
            DecoderStage(width, depth, axes=axes)
            for width, depth in zip(dims[:0:-1], depths_up, strict=True)
        )

    def decode(self, maps: list[Tensor], image: Tensor) -> Tensor:
        """Decode the encoder's feature maps, from the smallest to the size of the image."""
        x = maps[-1]
        for i, stage in enumerate(self.decoder):
            x = stage(x, maps[len(maps) - 2 - i])
        return x


def _check_depths(
    blocks_down: Sequence[int], blocks_up: Sequence[int]
) -> tuple[list[int], list[int]]:
    for name, depths in (("blocks_down", blocks_down), ("blocks_up", blocks_up)):
        if not isinstance(depths, Sequence) or isinstance(depths, str) or not depths:
            raise BadInput(
                f"{name}={depths!r}: give a list with the number of blocks in each level"
            )
        for depth in depths:
            whole_number(depth, name, 1)
    if len(blocks_up) != len(blocks_down) - 1:
        raise BadInput(
            f"blocks_up={list(blocks_up)!r}: give {len(blocks_down) - 1} numbers, one fewer than "
            "blocks_down has"
        )
    return list(blocks_down), list(blocks_up)


def _downsample(channels: int, axes: int) -> nn.Module:
    """Return layers that double the channels, then halve the size."""
    mixer = MambaLayer(channels, 2 * channels)
    return nn.Sequential(OrderedDict(mixer=mixer, pool=ndim.max_pool(axes, 2)))


KEY_STYLES = (
    KeyStyle(
        "MrBlankness/LightM-UNet",
        "convInit.0.conv.weight",
        rows=(
            (r"convInit\.0\.conv\.", "stem.conv.depthwise."),
            (r"convInit\.1\.conv\.", "stem.conv.pointwise."),
            (r"down_layers\.(\d+)\.0\.0\.", r"stages.\1.downsample.mixer."),
            (r"down_layers\.(\d+)\.(\d+)\.conv(\d)\.", r"stages.\1.blocks.{2-1}.mixer\3."),
            (r"down_layers\.(\d+)\.(\d+)\.", r"stages.\1.blocks.{2-1}."),
            (r"up_samples\.(\d+)\.0\.conv\.", r"decoder.\1.reduce."),
            (r"up_layers\.(\d+)\.(\d+)\.", r"decoder.\1.blocks.\2."),
            (r"conv_final\.0\.", "head.norm."),
            (r"conv_final\.2\.0\.conv\.", "head.fc.depthwise."),
            (r"conv_final\.2\.1\.conv\.", "head.fc.pointwise."),
        ),
        inside=(
            (r"\.skip_scale$", ".scale.gamma"),
            (r"\.mamba\.conv1d\.", ".mamba.conv."),
            (r"\.mamba\.x_proj\.weight$", ".mamba.scan.x_proj"),
            (r"\.mamba\.dt_proj\.weight$", ".mamba.scan.dt_proj"),
            (r"\.mamba\.dt_proj\.bias$", ".mamba.scan.dt_bias"),
            (r"\.mamba\.A_log$", ".mamba.scan.decay.log"),
            (r"\.mamba\.D$", ".mamba.scan.skip"),
            (r"\.conv\.0\.conv\.", ".conv.depthwise."),
            (r"\.conv\.1\.conv\.", ".conv.pointwise."),
        ),
    ),
)

# fmt: off
VARIANTS = {
    "lightm_unet_2d":   dict(spatial_dims=2, init_filters=32, in_chans=3, num_classes=2),
    "lightm_unet_3d":   dict(spatial_dims=3, init_filters=32, in_chans=1, num_classes=3),
    "lightm_unet_3d_8": dict(spatial_dims=3, init_filters=8,  in_chans=1, num_classes=2),
}
# fmt: on

LightMUNet.register_family(VARIANTS, KEY_STYLES)
