"""WaveMix: tokens mixed by a Haar wavelet transform, at one size and one width throughout.

Paper: Jeevan et al., "WaveMix: A Resource-efficient Neural Network for Image Analysis"
       (arXiv 2205.14375), fig. 1 and 2; version 1 is "Resource-efficient Token Mixing for Images"
       (arXiv 2203.03689). WaveMix-Lite is the case of one level.
Code:  github.com/pranavphoenix/WaveMix @ ba3d1b425c3e, MIT (wavemix/classification.py,
       SemSegment.py, sisr.py and, for the older versions, Image_Classification/).
Here:  the transform is ours (zoo/ops/wavelet), computed once for all levels, in any precision, on
       any device. Version 1 takes images that are not square. Dropout inside the blocks is
       `drop_rate`, 0 unless given; the authors trained with 0.5. `drop_path_rate` is ours; 0, its
       default, is the public model.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from zoo.backbone import Backbone, Stage
from zoo.blocks.drop import DropPath, linear_rates
from zoo.blocks.folding import (
    fold_batch_norm,
    is_fixed_batch_norm,
    merge_pointwise,
    rebuilt,
)
from zoo.blocks.heads import ClassifierHead
from zoo.blocks.sizes import check_sides, whole_number
from zoo.blocks.wavelet import WaveletBlock, coefficients
from zoo.errors import BadInput
from zoo.keys import KeyStyle, State, rename
from zoo.ops import haar, haar_pyramid
from zoo.registry import register

torch.fx.wrap("check_sides")

STAGES = 4  # levels that pyramids offer; all have one size


class Stem(nn.Module):
    """Convolutions without activation between them; refuses images that blocks cannot halve.

    In patches: two 3x3 convolutions, one over patches that do not overlap, GELU, batch norm. That
    norm stays where it is when the model is fused: an activation stands before it, and what comes
    after, the residual path, carries it through all blocks. Otherwise: two 3x3 convolutions.
    Several convolutions in a row are not merged; the zeros around the inner maps are not those of
    one larger kernel.

    Args:
        in_channels: Channels of the image.
        out_channels: Channels of the map.
        patch_size: Side of a patch; none for the stem without patches.
        stride: Step of each of the two convolutions, without patches.
        levels: How often the blocks halve the map.
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
        return self.layers(x)


class ParallelBlock(nn.Module):
    """Version 1: one MLP for the coefficients of all levels, each then enlarged by its own kernel.

    Args:
        channels: Channels of input and output, a multiple of 4 and of `levels`.
        levels: How often the map is halved.
        drop_rate: Dropout after the activation and at the end of the MLP.
        drop_path: Probability of leaving the branch out while training.
    """

    def __init__(
        self, channels: int, *, levels: int = 4, drop_rate: float = 0.0, drop_path: float = 0.0
    ):
        super().__init__()
        if channels % levels:
            raise BadInput(f"levels={levels}: must divide dim={channels}, which they share")
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
        self.filter = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.norm = nn.BatchNorm2d(channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        pyramid = haar_pyramid(self.reduction(x), self.levels)
        maps: list[Tensor] = []
        for i, up in enumerate(self.ups):
            y = self.drop(self.act(self.fc1(coefficients(pyramid[i]))))
            maps.append(up(self.drop(self.fc2(y))))
        y = self.norm(self.act(self.filter(torch.cat(maps, dim=1))))
        return x + self.drop_path(y)


class ShuffledBlock(nn.Module):
    """Version 3: one level, enlarged by moving channels to positions, then a 3x3 convolution.

    Args:
        channels: Channels of input and output, a multiple of 4.
        levels: 1.
        drop_rate: Dropout after the activation.
        drop_path: Probability of leaving the branch out while training.
    """

    def __init__(
        self, channels: int, *, levels: int = 1, drop_rate: float = 0.0, drop_path: float = 0.0
    ):
        super().__init__()
        if levels != 1:
            raise BadInput(f"levels={levels}: version 3 has blocks of one level")
        self.reduction = nn.Conv2d(channels, channels // 4, 1)
        self.fc1 = nn.Conv2d(channels, 4 * channels, 1)
        self.act = nn.GELU()
        self.drop = nn.Dropout(drop_rate)
        self.shuffle = nn.PixelShuffle(2)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc1(coefficients(haar(self.reduction(x))))
        y = self.norm(self.conv(self.shuffle(self.drop(self.act(y)))))
        return x + self.drop_path(y)

    def fused(self) -> "ShuffledBlock":
        """The norm in the convolution."""
        if not is_fixed_batch_norm(self.norm):
            return self
        return rebuilt(self, conv=fold_batch_norm(self.conv, self.norm), norm=nn.Identity())


BLOCKS = {"stacked": WaveletBlock, "parallel": ParallelBlock, "shuffled": ShuffledBlock}


class UpsamplingHead(nn.Module):
    """Transposed convolutions, each to twice the size, and a 1x1 convolution; none is activated.

    Args:
        num_features: Channels of the map.
        widths: Channels that each transposed convolution gives.
        num_classes: Values of a position; 0 leaves the last convolution out.
    """

    def __init__(self, num_features: int, widths: Sequence[int], num_classes: int):
        super().__init__()
        if not isinstance(widths, Sequence) or isinstance(widths, str) or not widths:
            raise BadInput(f"widths={widths!r}: give the channels of each upsampling, a list")
        outs = [whole_number(width, "widths", 1) for width in widths]
        self.num_features, self.hidden_size = num_features, outs[-1]
        self.up = nn.Sequential(
            *[
                nn.ConvTranspose2d(before, out, 4, stride=2, padding=1)
                for before, out in zip([num_features, *outs], outs, strict=False)
            ]
        )
        self.reset(num_classes)

    def reset(self, num_classes: int, pool: str | None = None) -> None:
        """Replace the 1x1 convolution by a fresh one for `num_classes`."""
        if pool:
            raise BadInput(f"global_pool={pool!r}: a model that draws maps does not pool them")
        self.num_classes = whole_number(num_classes, "num_classes", 0)
        fc = nn.Conv2d(self.hidden_size, num_classes, 1) if num_classes else nn.Identity()
        self.fc = fc.train(self.training)

    def classifiers(self) -> list[str]:
        """Names of the classifying layers."""
        return ["fc"]

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.up(x)
        return x if pre_logits else self.fc(x)

    def fused(self) -> "UpsamplingHead":
        """The last two layers in one, where that is less work.

        It has 16 taps for each channel that is drawn; apart, they are for each of `hidden_size`.
        """
        if not isinstance(self.fc, nn.Conv2d):
            return self
        *before, last = self.up
        assert isinstance(last, nn.ConvTranspose2d)
        middle, drawn = last.out_channels, self.fc.out_channels
        # Multiply-accumulates for each position before the upsampling, which makes four of it.
        if 16 * last.in_channels * drawn >= 16 * last.in_channels * middle + 4 * middle * drawn:
            return self
        head = rebuilt(self, up=nn.Sequential(*before).eval(), fc=merge_pointwise(last, self.fc))
        head.hidden_size = last.in_channels
        return head


def _trunk(
    dim: int,
    depth: int,
    levels: int,
    *,
    patch_size: int | None,
    stride: int,
    block: str,
    in_chans: int,
    drop_rate: float,
    drop_path_rate: float,
) -> dict[str, Any]:
    """Return what all WaveMix models share, as arguments of `Backbone`.

    The blocks are cut into stages of equal length, so that pyramids can take maps of several
    depths.
    """
    for name, value in (("depth", depth), ("levels", levels), ("stride", stride)):
        whole_number(value, name, 1)
    if patch_size is not None and stride != 1:
        raise BadInput(f"stride={stride} has no effect with patch_size={patch_size}; leave one out")
    whole_number(1 if patch_size is None else patch_size, "patch_size", 1)
    if whole_number(dim, "dim", 4) % 4:
        raise BadInput(f"dim={dim}: must be a multiple of 4, the bands of a wavelet level")
    if block not in BLOCKS:
        raise BadInput(f"block={block!r}: there are {', '.join(BLOCKS)}")
    make = partial(BLOCKS[block], dim, levels=levels, drop_rate=drop_rate)
    count = min(STAGES, depth)
    depths = [depth * (i + 1) // count - depth * i // count for i in range(count)]
    stem = Stem(in_chans, dim, patch_size=patch_size, stride=stride, levels=levels)
    return {
        "stem": stem,
        "stages": [
            Stage([make(drop_path=rate) for rate in rates])
            for rates in linear_rates(drop_path_rate, depths)
        ],
        "channels": [dim] * count,
        "strides": [stem.reduction] * count,
        "in_chans": in_chans,
    }


class WaveMix(Backbone):
    """A stem, wavelet blocks, average pooling, a linear classifier.

    Sides of images must be multiples of the stem's reduction times 2 to the power of `levels`.
    The older versions (the public WaveMix_Version1, WaveMix_Version2 and WaveMixV3) are `block=
    "parallel"`, `last_width=1024` and `block="shuffled"`. That last convolution and the classifier
    could be one layer after average pooling; they are not, as the map of `forward_features` would
    be another.

    Args:
        dim: Channels, a multiple of 4.
        depth: Number of blocks.
        levels: How often a block halves its map.
        patch_size: Side of the patches that the stem reads; none for two convolutions.
        stride: Step of each of those two.
        block: `"stacked"`, `"parallel"` or `"shuffled"`.
        last_width: Channels of a 1x1 convolution before the pooling; none for no such convolution.
        num_classes: Number of logits; 0 leaves the classifier out.
        in_chans: Channels of the image.
        drop_rate: Dropout inside the blocks; 0.5 as published.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0.
        global_pool: `"avg"`, `"max"` or `""`.
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
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str = "avg",
    ):
        trunk = _trunk(
            dim,
            depth,
            levels,
            patch_size=patch_size,
            stride=stride,
            block=block,
            in_chans=in_chans,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
        )
        norm, features = nn.Identity(), dim
        if last_width is not None:
            features = whole_number(last_width, "last_width", 1)
            norm = nn.Conv2d(dim, features, 1)
        head = ClassifierHead(features, num_classes, pool=global_pool)
        super().__init__(**trunk, norm=norm, head=head)


class WaveMixMaps(Backbone):
    """The same trunk with a head that draws maps: classes of pixels, or a larger image.

    `forward_features` gives the last map of the trunk; the head makes it `2 ** len(widths)` times
    as large, which is the size of the image for segmentation and twice that for super-resolution.

    Args:
        dim: Channels, a multiple of 4.
        depth: Number of blocks.
        levels: How often a block halves its map.
        widths: Channels after each upsampling.
        patch_size: Side of the patches that the stem reads; none for two convolutions.
        stride: Step of each of those two.
        num_classes: Values of a position: classes, or channels of the larger image; 0 leaves the
            last convolution out.
        in_chans: Channels of the image.
        drop_rate: Dropout inside the blocks; 0.5 as published.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0.
    """

    def __init__(
        self,
        *,
        dim: int,
        depth: int,
        levels: int = 1,
        widths: Sequence[int],
        patch_size: int | None = None,
        stride: int = 1,
        num_classes: int,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ):
        trunk = _trunk(
            dim,
            depth,
            levels,
            patch_size=patch_size,
            stride=stride,
            block="stacked",
            in_chans=in_chans,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
        )
        head = UpsamplingHead(dim, widths, num_classes)
        super().__init__(**trunk, norm=nn.Identity(), head=head)


# Names of the layers in the public blocks -> ours; {i} is the level, from 1, and {k} its place.
_PARTS = {
    WaveletBlock: {
        "feedforward{i}.0": "mlps.{k}.fc1",
        "feedforward{i}.3": "mlps.{k}.fc2",
        "feedforward{i}.4": "mlps.{k}.up",
        "feedforward{i}.5": "mlps.{k}.norm",
    },
    ParallelBlock: {
        "feedforward.0": "fc1",
        "feedforward.3": "fc2",
        "ff{i}": "ups.{j}",
        "depthconv.0": "filter",
        "depthconv.2": "norm",
    },
    ShuffledBlock: {"feedforward.0": "fc1", "feedforward.4": "conv", "feedforward.5": "norm"},
}


def _from_original(state: State, model: Backbone) -> State:
    """Rename; blocks are counted through all stages, MLPs from the deepest level up."""
    rules = [(r"conv\.", "stem.layers."), (r"final\.", "norm."), (r"pool\.2\.", "head.fc.")]
    head = getattr(model, "head", None)  # pyramids have none
    if isinstance(head, UpsamplingHead):  # named after the class, the Cityscapes file, the script
        last = len(head.up)
        rules = [(rf"(?:expand|pool|segment)\.{last}\.", "head.fc."), *rules[:2]]
        rules += [(r"(?:expand|pool|segment)\.(\d+)\.", r"head.up.\1.")]
    position = 0
    for s, stage in enumerate(model.stages):
        for j, block in enumerate(stage.get_submodule("blocks").children()):
            old, new = rf"layers\.{position}\.", f"stages.{s}.blocks.{j}."
            rules += [(old + theirs, new + ours) for theirs, ours in _block_rules(block)]
            rules += [(old, new)]
            position += 1
    return rename(state, rules)


def _block_rules(block: nn.Module) -> list[tuple[str, str]]:
    levels: Any = getattr(block, "levels", 1)
    rules = {}
    for theirs, ours in _PARTS[type(block)].items():
        for level in range(1, levels + 1):
            i = "" if isinstance(block, WaveletBlock) and levels == 1 else level
            old = theirs.format(i=i).replace(".", r"\.") + r"\."
            rules[old] = ours.format(k=levels - level, j=level - 1) + "."
    return list(rules.items())


for _class in (WaveMix, WaveMixMaps):
    _class.key_styles = (
        KeyStyle("pranavphoenix/WaveMix", "layers.0.reduction.weight", _from_original),
    )

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
}
MAPS = {
    "wavemix_seg_192_16_l3_cityscapes":
        dict(dim=192, depth=16, levels=3, patch_size=4, widths=(128, 64), num_classes=20),
    "wavemix_seg_256_16_l4":
        dict(dim=256, depth=16, levels=4, stride=2, widths=(128, 64), num_classes=20),
    "wavemix_sisr_144_4_l1":
        dict(dim=144, depth=4, levels=1, widths=(72,), num_classes=3),
}
# fmt: on

_CLASSES = {"cifar10": 10, "cifar100": 100, "tinyimagenet": 200, "places365": 365, "galaxy10": 10}

for _name, _arguments in VARIANTS.items():
    _classes = _CLASSES.get(_name.rsplit("_", 1)[-1], 1000)
    register(_name, partial(WaveMix, **_arguments, num_classes=_classes))
for _name, _arguments in MAPS.items():
    register(_name, partial(WaveMixMaps, **_arguments))
