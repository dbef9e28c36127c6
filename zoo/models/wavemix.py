"""WaveMix: tokens mixed by a Haar wavelet transform, at one size and one width throughout.

Paper: Jeevan et al., "WaveMix: A Resource-efficient Neural Network for Image Analysis"
       (arXiv 2205.14375), fig. 1 and 2; version 1 is "Resource-efficient Token Mixing for Images"
       (arXiv 2203.03689). WaveMix-Lite is the case of one level.
Code:  github.com/pranavphoenix/WaveMix @ ba3d1b425c3e, MIT (wavemix/classification.py,
       SemSegment.py, sisr.py and, for the older versions, Image_Classification/).
Here:  the transform is ours (zoo/ops/wavelet), computed once for all levels, in any precision, on
       any device. Version 1 supports images that are not square. `drop_rate` is the dropout inside
       the blocks; the authors trained with 0.5.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from zoo.backbone import Backbone, Stage
from zoo.blocks.drop import drop_path_rates
from zoo.blocks.folding import Absorbing
from zoo.blocks.heads import ClassifierHead, UpsamplingHead
from zoo.blocks.sizes import check_sides, whole_number
from zoo.blocks.widths import Group, hidden_channels
from zoo.errors import BadInput, unknown_value
from zoo.keys import KeyStyle, numbered_blocks, prefixed
from zoo.ops import haar, haar_pyramid

torch.fx.wrap("check_sides")

STAGES = 4  # levels of the feature pyramid, all of one size


def coefficients(bands: Tensor) -> Tensor:
    """Reorder B C 4 h w to B 4C h w: LL of all channels, then LH, HL, HH channel by channel."""
    return torch.cat([bands[:, :, 0], bands[:, :, 1:].flatten(1, 2)], dim=1)


class Stem(nn.Module):
    """Convolutions without activation between them; refuses images that blocks cannot halve.

    With patches: two 3x3 convolutions, one over patches that do not overlap, GELU, batch norm. That
    norm cannot be folded: it follows an activation, and the residual path carries its output.
    Otherwise: two 3x3 convolutions. They are not merged into one, as the inner feature map is
    padded with zeros.

    Args:
        in_channels: Channels of the image.
        out_channels: Channels of the feature map.
        patch_size: Side of a patch; None for the stem without patches.
        stride: Stride of each of the two convolutions without patches.
        levels: Number of times that the blocks halve the feature map.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        patch_size: int | None,
        stride: int,
        levels: int,
    ):
        super().__init__()
        half = out_channels // 2
        if patch_size is None:
            layers = [
                nn.Conv2d(in_channels, half, 3, stride, padding=1),
                nn.Conv2d(half, out_channels, 3, stride, padding=1),
            ]
        else:
            layers = [
                nn.Conv2d(in_channels, half // 2, 3, padding=1),
                nn.Conv2d(half // 2, half, 3, padding=1),
                nn.Conv2d(half, out_channels, patch_size, patch_size),
                nn.GELU(),
                nn.BatchNorm2d(out_channels),
            ]
        self.layers = nn.Sequential(*layers)
        self.reduction = patch_size or stride**2
        self.multiple = self.reduction * 2**levels

    def forward(self, x: Tensor) -> Tensor:
        check_sides(x, 2, self.multiple)
        return self.layers(x)  # B C H/reduction W/reduction


class UpsamplingMlp(Absorbing):
    """Two 1x1 convolutions, then a transposed convolution to twice the size, and its norm.

    The second and the third layer are linear, but not merged: the kernel would grow, and the bias
    between them is not constant at the border.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        channels: Channels that are upsampled.
        hidden: Hidden channels.
        drop_rate: Dropout after the activation.
    """

    absorbs_after = {"up": "norm"}

    def __init__(
        self, in_channels: int, out_channels: int, *, channels: int, hidden: int, drop_rate: float
    ):
        super().__init__()
        self.fc1 = nn.Conv2d(in_channels, hidden, 1)
        self.act = nn.GELU()
        self.drop = nn.Dropout(drop_rate)
        self.fc2 = nn.Conv2d(hidden, channels, 1)
        self.up = nn.ConvTranspose2d(channels, out_channels, 4, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc2(self.drop(self.act(self.fc1(x))))  # B channels H W
        return self.norm(self.up(x))  # B C 2H 2W

    def prunable(self) -> list[Group]:
        """Declare the hidden channels."""
        return [hidden_channels(self, made=("fc1",), read=("fc2",))]


class WaveletBlock(nn.Module):
    """Haar coefficients of a quarter of the channels, mixed and upsampled from level to level.

    Both sides of the feature map must be multiples of 2 to the power of `levels`.

    Args:
        channels: Channels of input and output, a multiple of 4.
        levels: Number of times that the feature map is halved.
        drop_rate: Dropout inside the perceptrons.
        drop_path: Probability of dropping the branch in training.
    """

    def __init__(
        self, channels: int, *, levels: int = 1, drop_rate: float = 0.0, drop_path: float = 0.0
    ):
        super().__init__()
        self.levels = levels
        self.reduction = nn.Conv2d(channels, channels // 4, 1)
        self.mlps = nn.ModuleList(
            UpsamplingMlp(
                channels if level == levels else channels + channels // 2,
                channels if level == 1 else channels // 2,
                channels=channels,
                hidden=2 * channels,
                drop_rate=drop_rate,
            )
            for level in range(levels, 0, -1)
        )
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        pyramid = haar_pyramid(self.reduction(x), self.levels)  # B C/4 4 H/2^k W/2^k each
        below: list[Tensor] = []  # the output of the deeper level
        for i, mlp in enumerate(self.mlps):
            wave = coefficients(pyramid[self.levels - 1 - i])
            below = [mlp(torch.cat([wave] + below, dim=1))]
        return x + self.drop_path(below[0])  # B C H W


class ParallelBlock(nn.Module):
    """Version 1: one MLP for the coefficients of all levels, each then upsampled by its own kernel.

    Args:
        channels: Channels of input and output, a multiple of 4 and of `levels`.
        levels, drop_rate, drop_path: As for `WaveletBlock`.
    """

    def __init__(
        self, channels: int, *, levels: int = 4, drop_rate: float = 0.0, drop_path: float = 0.0
    ):
        super().__init__()
        if channels % levels:
            raise BadInput(f"dim={channels} is not divisible by levels={levels}")
        self.levels = levels
        self.reduction = nn.Conv2d(channels, channels // 4, 1)
        self.fc1 = nn.Conv2d(channels, 2 * channels, 1)
        self.act = nn.GELU()
        self.drop = nn.Dropout(drop_rate)
        self.fc2 = nn.Conv2d(2 * channels, channels, 1)
        self.ups = nn.ModuleList(
            nn.ConvTranspose2d(channels, channels // levels, 2**i + 2, stride=2**i, padding=1)
            for i in range(1, levels + 1)
        )
        self.depthwise = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.norm = nn.BatchNorm2d(channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        pyramid = haar_pyramid(self.reduction(x), self.levels)  # B C/4 4 H/2^k W/2^k each
        maps: list[Tensor] = []  # B C/levels H W each
        for i, up in enumerate(self.ups):
            y = self.drop(self.act(self.fc1(coefficients(pyramid[i]))))
            maps.append(up(self.drop(self.fc2(y))))
        y = self.norm(self.act(self.depthwise(torch.cat(maps, dim=1))))
        return x + self.drop_path(y)  # B C H W


class ShuffledBlock(Absorbing):
    """Version 3: one level, upsampled by moving channels to positions, then a 3x3 convolution.

    Args:
        channels: Channels of input and output, a multiple of 4.
        levels, drop_rate, drop_path: As for `WaveletBlock`; there is one level.
    """

    absorbs_after = {"conv": "norm"}

    def __init__(
        self, channels: int, *, levels: int = 1, drop_rate: float = 0.0, drop_path: float = 0.0
    ):
        super().__init__()
        if levels != 1:
            raise BadInput(f"levels={levels}: blocks of version 3 have one level")
        self.reduction = nn.Conv2d(channels, channels // 4, 1)
        self.fc1 = nn.Conv2d(channels, 4 * channels, 1)
        self.act = nn.GELU()
        self.drop = nn.Dropout(drop_rate)
        self.shuffle = nn.PixelShuffle(2)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc1(coefficients(haar(self.reduction(x))))  # B 4C H/2 W/2
        y = self.norm(self.conv(self.shuffle(self.drop(self.act(y)))))
        return x + self.drop_path(y)  # B C H W


BLOCKS: dict[str, Any] = {
    "stacked": WaveletBlock,
    "parallel": ParallelBlock,
    "shuffled": ShuffledBlock,
}


class WaveMix(Backbone):
    """A stem, wavelet blocks, and a head for classification or dense prediction.

    Sides of images must be multiples of the stem's reduction times 2 to the power of `levels`. The
    older versions (the public WaveMix_Version1, WaveMix_Version2 and WaveMixV3) have `block=
    "parallel"`, `last_width=1024` and `block="shuffled"`. The convolution of `last_width` is not
    merged with the classifier, as it is part of `forward_features`.

    Args:
        dim: Channels, a multiple of 4.
        depth: Number of blocks, cut into stages of equal length for the feature pyramid.
        levels: Number of times that a block halves its feature map.
        patch_size: Side of the patches that the stem reads; None for two convolutions.
        stride: Stride of each of these two convolutions.
        block: `"stacked"`, `"parallel"` or `"shuffled"`.
        last_width: Channels of a 1x1 convolution before the head; None leaves it out.
        widths: For dense prediction, the channels after each upsampling of the head. The output is
            `2 ** len(widths)` times as large as the feature map, with `num_classes` channels.
        global_pool: `"avg"` (the default), `"max"` or `""`; not for dense prediction.
    """

    def __init__(
        self,
        *,
        dim: int,
        depth: int,
        levels: int = 1,
        patch_size: int | None = None,
        stride: int = 1,
        block: str = "stacked",
        last_width: int | None = None,
        widths: Sequence[int] | None = None,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str | None = None,
    ):
        for name, value in (("depth", depth), ("levels", levels), ("stride", stride)):
            whole_number(value, name, 1)
        if patch_size is not None and stride != 1:
            raise BadInput(
                f"stride={stride} has no effect with patch_size={patch_size}; leave one out"
            )
        whole_number(1 if patch_size is None else patch_size, "patch_size", 1)
        if whole_number(dim, "dim", 4) % 4:
            raise BadInput(f"dim={dim}: must be a multiple of 4, the bands of a wavelet level")
        if block not in BLOCKS:
            raise BadInput(unknown_value("block", block, BLOCKS))
        count = min(STAGES, depth)
        depths = [depth * (i + 1) // count - depth * i // count for i in range(count)]
        stem = Stem(in_chans, dim, patch_size=patch_size, stride=stride, levels=levels)
        make = partial(BLOCKS[block], dim, levels=levels, drop_rate=drop_rate)
        rates = drop_path_rates(drop_path_rate, depths)
        stages = [Stage([make(drop_path=rate) for rate in stage]) for stage in rates]
        norm, features = nn.Identity(), dim
        if last_width is not None:
            features = whole_number(last_width, "last_width", 1)
            norm = nn.Conv2d(dim, features, 1)
        head: nn.Module
        if widths is None:
            pool = "avg" if global_pool is None else global_pool
            head = ClassifierHead(features, num_classes, pool=pool)
        elif global_pool is None:
            head = UpsamplingHead(features, widths, num_classes)
        else:
            raise BadInput(
                f"global_pool={global_pool!r}: dense prediction has no pooling; leave it out"
            )
        super().__init__(
            stem=stem,
            stages=stages,
            norm=norm,
            head=head,
            channels=[dim] * count,
            strides=[stem.reduction] * count,
            in_chans=in_chans,
        )


PARALLEL = (
    (r"feedforward\.0\.", "fc1."),
    (r"feedforward\.3\.", "fc2."),
    (r"ff(?P<level>\d)\.", "ups.{level-1}."),
    (r"depthconv\.0\.", "depthwise."),
    (r"depthconv\.2\.", "norm."),
    ("", ""),
)
SHUFFLED = (
    (r"feedforward\.0\.", "fc1."),
    (r"feedforward\.4\.", "conv."),
    (r"feedforward\.5\.", "norm."),
    ("", ""),
)
STACKED = ((r"0\.", "fc1."), (r"3\.", "fc2."), (r"4\.", "up."), (r"5\.", "norm."))
STEM = ((r"conv\.", "stem.layers."), (r"final\.", "norm."))


def _rows(model: WaveMix) -> list[Any]:
    """Return the rows; blocks are counted through all stages, perceptrons from the top level."""
    rows: list[Any] = [*STEM, (r"pool\.2\.", "head.fc.")]
    head = getattr(model, "head", None)  # missing in feature extractors
    if isinstance(head, UpsamplingHead):  # three public names of one head
        name, last = r"(?:expand|pool|segment)", len(head.up)
        rows = [*STEM, (rf"{name}\.{last}\.", "head.fc."), (rf"{name}\.(\d+)\.", r"head.up.\1.")]
    for number, (s, j, block) in enumerate(numbered_blocks(model)):
        old, new = rf"layers\.{number}\.", f"stages.{s}.blocks.{j}."
        if isinstance(block, WaveletBlock):
            for level in range(1, block.levels + 1):
                mlp = rf"feedforward{level if block.levels > 1 else ''}\."
                rows += prefixed(old + mlp, f"{new}mlps.{block.levels - level}.", STACKED)
            rows += [(old, new)]
        else:
            rows += prefixed(old, new, PARALLEL if isinstance(block, ParallelBlock) else SHUFFLED)
    return rows


KEY_STYLES = (KeyStyle("pranavphoenix/WaveMix", "layers.0.reduction.weight", rows=_rows),)

# fmt: off
VARIANTS = {
    "wavemix_192_16_l3": dict(dim=192, depth=16, levels=3, patch_size=4),
    "wavemix_192_16_l1": dict(dim=192, depth=16, levels=1, patch_size=4),
    "wavemix_256_16_l3": dict(dim=256, depth=16, levels=3, patch_size=4),
    "wavemix_256_16_l4": dict(dim=256, depth=16, levels=4, stride=2),
    "wavemix_144_7_l1_cifar10":       dict(dim=144, depth=7,  levels=1),
    "wavemix_320_8_l1_cifar10":       dict(dim=320, depth=8,  levels=1),
    "wavemix_256_8_l1_cifar100":      dict(dim=256, depth=8,  levels=1),
    "wavemix_256_10_l1_cifar100":     dict(dim=256, depth=10, levels=1),
    "wavemix_256_12_l1_tinyimagenet": dict(dim=256, depth=12, levels=1),
    "wavemix_192_16_l3_tinyimagenet": dict(dim=192, depth=16, levels=3, patch_size=4),
    "wavemix_256_12_l2_places365":    dict(dim=256, depth=12, levels=2, patch_size=8),
    "wavemix_192_16_l1_galaxy10":     dict(dim=192, depth=16, levels=1, patch_size=4),
    "wavemix_192_16_l3_galaxy10":     dict(dim=192, depth=16, levels=3, patch_size=4),
    "wavemix_v1_256_7":  dict(dim=256, depth=7,  levels=4, block="parallel"),
    "wavemix_v2_240_12": dict(dim=240, depth=12, levels=3, patch_size=4, last_width=1024),
    "wavemix_v3_144_16": dict(dim=144, depth=16, levels=1, patch_size=4, block="shuffled"),
    "wavemix_seg_192_16_l3_cityscapes":
        dict(dim=192, depth=16, levels=3, patch_size=4, widths=(128, 64), num_classes=20),
    "wavemix_seg_256_16_l4":
        dict(dim=256, depth=16, levels=4, stride=2, widths=(128, 64), num_classes=20),
    "wavemix_sisr_144_4_l1":
        dict(dim=144, depth=4, levels=1, widths=(72,), num_classes=3),
}
# fmt: on
CLASSES = {"cifar10": 10, "cifar100": 100, "tinyimagenet": 200, "places365": 365, "galaxy10": 10}
for _name, _arguments in VARIANTS.items():
    _arguments.setdefault("num_classes", CLASSES.get(_name.rsplit("_", 1)[-1], 1000))

WaveMix.register_family(VARIANTS, KEY_STYLES)
