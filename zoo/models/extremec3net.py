"""ExtremeC3Net: portrait segmentation with 38 thousand parameters.

Paper: Park et al., "ExtremeC3Net: Extreme Lightweight Portrait Segmentation Networks using Advanced
       C3-modules" (arXiv 1908.03093), fig. 2 and 3.
Code:  github.com/clovaai/ext_portrait_segmentation @ 9bc1bada1cb7 (MIT).
Here:  as in the code. The last convolution mixes channels only, so fusing puts it before the
       enlargement, where there are a quarter of the positions.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo.backbone import JoinedStage, Stage
from zoo.blocks.conv import ConvNorm, NormAct, channel_prelu
from zoo.blocks.folding import Absorbing, rebuilt
from zoo.blocks.heads import DenseHead
from zoo.blocks.sizes import check_sides
from zoo.dense_backbone import DenseBackbone
from zoo.keys import KeyStyle

torch.fx.wrap("check_sides")

EPS = 1e-3  # of the batch norms outside of `DilatedBranch`
MULTIPLE = 4


class Stem(nn.Module):
    """A 3x3 convolution of stride 2, and behind its channels the image at half of its size.

    Args:
        in_channels: Channels of the image.
        out_channels: Channels of the convolution.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.multiple = MULTIPLE
        self.conv = ConvNorm(
            in_channels, out_channels, kernel_size=3, stride=2, act=channel_prelu, eps=EPS
        )

    def forward(self, x: Tensor) -> Tensor:
        check_sides(x, 2, self.multiple)
        return torch.cat([self.conv(x), F.avg_pool2d(x, 2)], dim=1)  # B C+3 H/2 W/2


class DilatedBranch(Absorbing):
    """Depthwise convolutions that look far, then a 1x1 convolution (C3 block, fig. 2).

    With the dilation 1 there is one depthwise convolution. Otherwise a column and a row of
    2 d - 1 positions come before it, so that the dilated one skips nothing.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        dilation: Spacing d of the taps of the depthwise 3x3 convolution.
    """

    absorbs_after = {"column": "norm1", "row": "norm2"}

    def __init__(self, in_channels: int, out_channels: int, dilation: int):
        super().__init__()
        n, d = in_channels, dilation
        self.column: nn.Module = nn.Identity()
        self.norm1: nn.Module = nn.Identity()
        self.act: nn.Module = nn.Identity()
        self.row: nn.Module = nn.Identity()
        self.norm2: nn.Module = nn.Identity()
        if d > 1:
            self.column = nn.Conv2d(n, n, (2 * d - 1, 1), padding=(d - 1, 0), groups=n, bias=False)
            self.norm1 = nn.BatchNorm2d(n)
            self.act = channel_prelu(n)
            self.row = nn.Conv2d(n, n, (1, 2 * d - 1), padding=(0, d - 1), groups=n, bias=False)
            self.norm2 = nn.BatchNorm2d(n)
        self.dilated = nn.Conv2d(n, n, 3, padding=d, dilation=d, groups=n, bias=False)
        self.pointwise = nn.Conv2d(n, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.row(self.act(self.norm1(self.column(x))))
        return self.pointwise(self.dilated(self.norm2(x)))  # B C' H W


class DilatedModule(nn.Module):
    """Reduce the channels, apply three `DilatedBranch`es, join them (advanced C3 module, fig. 3).

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        dilations: Of the three branches.
        stride: 2: a 3x3 convolution of stride 2 reduces the channels; 1: a 1x1 convolution.
        adds: Whether the input is added.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        dilations: Sequence[int] = (2, 4, 8),
        *,
        stride: int = 1,
        adds: bool = False,
    ):
        super().__init__()
        n = out_channels // 3
        side = 3 if stride == 2 else 1
        self.adds = adds
        self.reduce = nn.Conv2d(in_channels, n, side, stride, padding=side // 2, bias=False)
        self.branch1 = DilatedBranch(n, out_channels - 2 * n, dilations[0])
        self.branch2 = DilatedBranch(n, n, dilations[1])
        self.branch3 = DilatedBranch(n, n, dilations[2])
        self.norm = nn.BatchNorm2d(out_channels, eps=EPS)
        self.act = channel_prelu(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.reduce(x)
        y = torch.cat([self.branch1(y), self.branch2(y), self.branch3(y)], dim=1)
        return self.act(self.norm(x + y if self.adds else y))  # B C' H/s W/s


class ImageStage(Stage):
    """The first stage: its output has the channels of its blocks, of `downsample`, and the image.

    Args:
        blocks: Applied in order.
        downsample: Halves the size.
        image_channels: Channels of the image, the last ones of the input.
    """

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module, image_channels: int):
        super().__init__(blocks, downsample)
        self.image_channels = image_channels

    def run(self, x: Tensor) -> Tensor:
        image = F.avg_pool2d(x[:, x.shape[1] - self.image_channels :], 2)
        first = self.downsample(x)
        return torch.cat([self.run_blocks(first), first, image], dim=1)  # B C H/2 W/2


class FineBranch(nn.Module):
    """Add the deepest feature map, at twice its size, to a branch that reads the image.

    Args:
        in_channels: Channels of the image.
        deep: Channels of the deepest feature map.
        channels: Channels of the output.
    """

    def __init__(self, in_channels: int, deep: int, channels: int):
        super().__init__()
        self.coarse = ConvNorm(deep, channels)
        self.conv = nn.Conv2d(in_channels, channels, 3, 2, padding=1, bias=False)
        self.block = DilatedModule(channels, channels, adds=True)
        self.join = NormAct(channels, act=channel_prelu, eps=EPS)

    def forward(self, image: Tensor, deep: Tensor) -> Tensor:
        coarse = double(self.coarse(deep))
        return self.join(coarse + self.block(self.conv(image)))  # B C H/2 W/2


def double(x: Tensor) -> Tensor:
    """Enlarge B C H W to B C 2H 2W, bilinearly, with corners aligned."""
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)


class PixelHead(DenseHead):
    """Logits at twice the size: a 1x1 convolution without bias of the enlarged feature map.

    Args:
        num_features: Channels of the feature map.
        num_classes: Logits for each position; 0 leaves the convolution out.
    """

    def __init__(self, num_features: int, num_classes: int):
        super().__init__()
        self.num_features, self.resize_last = num_features, False
        self.reset(num_classes)

    def make_classifier(self) -> nn.Module:
        return nn.Conv2d(self.num_features, self.num_classes, 1, bias=False)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        if self.resize_last:
            return double(x if pre_logits else self.fc(x))
        x = double(x)  # B C 2H 2W
        return x if pre_logits else self.fc(x)

    def fused(self) -> "PixelHead":
        """Mix the channels before the enlargement, which does the same to each of them."""
        head = rebuilt(self)
        head.resize_last = self.num_classes <= self.num_features
        return head


class ExtremeC3Net(DenseBackbone):
    """Two stages at stride 4, and a fine branch at stride 2.

    Sides of images must be multiples of 4.

    Args:
        dims: Channels of the stem, of the two stages, and of the fine branch.
        depths: Number of modules after the first one of each stage.
        num_classes: Classes, 1 for a mask of logits greater than 0; 0 leaves the last layer out.
    """

    def __init__(
        self,
        *,
        dims: tuple[int, int, int, int] = (24, 48, 56, 24),
        depths: tuple[int, int] = (1, 5),
        num_classes: int = 1,
        in_chans: int = 3,
    ):
        first, second, third, fine = dims
        widths = [2 * second + in_chans, 2 * third]
        entries = [
            DilatedModule(first + in_chans, second, (1, 2, 3), stride=2),
            DilatedModule(widths[0], third, (1, 3, 5)),
        ]
        downsamples = [
            nn.Sequential(
                OrderedDict(join=NormAct(before, act=channel_prelu, eps=EPS), block=entry)
            )
            for before, entry in zip([first + in_chans, widths[0]], entries, strict=True)
        ]
        blocks = [
            [DilatedModule(second, second, (1, 3, 4), adds=True) for _ in range(depths[0])],
            [DilatedModule(third, third, adds=True) for _ in range(depths[1])],
        ]
        super().__init__(
            stem=Stem(in_chans, first),
            stages=[
                ImageStage(blocks[0], downsamples[0], in_chans),
                JoinedStage(blocks[1], downsamples[1]),
            ],
            norm=NormAct(widths[1], act=channel_prelu, eps=EPS),
            head=PixelHead(fine, num_classes),
            channels=widths,
            strides=[4, 4],
            in_chans=in_chans,
        )
        self.decoder = FineBranch(in_chans, widths[1], fine)
        self.grad_checkpointing = False

    def decode(self, maps: list[Tensor], image: Tensor) -> Tensor:
        """Add the last feature map to the fine branch, B C H/2 W/2."""
        deep = self.norm(maps[-1])
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint(self.decoder, image, deep, use_reentrant=False)
        return self.decoder(image, deep)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Store only the inputs of blocks and of the fine branch during training."""
        super().set_grad_checkpointing(enable)
        self.__dict__["grad_checkpointing"] = enable


LAYERS = ("column", "norm1", "act", "row", "norm2", "dilated", "pointwise")


def _rows() -> list[tuple[str, str]]:
    rows = [
        (r"encoder\.level1\.conv\.", "stem.conv.conv."),
        (r"encoder\.level1\.bn\.", "stem.conv.norm."),
        (r"encoder\.level1\.", "stem.conv."),
        (r"encoder\.b3\.bn\.", "norm.norm."),
        (r"encoder\.b3\.", "norm."),
        (r"encoder\.b(\d)\.bn\.", r"stages.{1-1}.downsample.join.norm."),
        (r"encoder\.b(\d)\.", r"stages.{1-1}.downsample.join."),
        (r"upsample\.0\.", "decoder.coarse.conv."),
        (r"upsample\.1\.", "decoder.coarse.norm."),
        (r"Fine\.0\.conv\.", "decoder.conv."),
        (r"classifier\.0\.bn\.", "decoder.join.norm."),
        (r"classifier\.0\.", "decoder.join."),
        (r"classifier\.2\.", "head.fc."),
    ]
    modules = (  # and whether the first branch is a single convolution
        (r"encoder\.level2_0\.", "stages.0.downsample.block.", True),
        (r"encoder\.level3_0\.", "stages.1.downsample.block.", True),
        (r"encoder\.level2\.(\d+)\.", r"stages.0.blocks.\1.", True),
        (r"encoder\.level3\.(\d+)\.", r"stages.1.blocks.\1.", False),
        (r"Fine\.1\.", "decoder.block.", False),
    )
    for old, new, single in modules:
        for d in (1, 2, 3):
            layers = LAYERS[-2:] if single and d == 1 else LAYERS
            rows += [
                (old + rf"d{d}\.conv\.{i}\.", new + f"branch{d}.{name}.")
                for i, name in enumerate(layers)
            ]
        rows += [
            (old + r"c1\.conv\.", new + "reduce."),
            (old + r"bn\.(?:bn\.)?(?!act)", new + "norm."),
            (old + r"bn\.act\.", new + "act."),
            (old, new),
        ]
    return rows


KEY_STYLES = (KeyStyle("clovaai/ext_portrait_segmentation", "encoder.b1.bn.weight", rows=_rows()),)

VARIANTS = {"extremec3net_portrait": dict()}

ExtremeC3Net.register_family(VARIANTS, KEY_STYLES)
