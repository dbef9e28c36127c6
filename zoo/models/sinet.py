"""SINet: portrait and street segmentation with about 100 thousand parameters.

Paper: Park et al., "SINet: Extreme Lightweight Portrait Segmentation Networks with Spatial Squeeze
       Modules and Information Blocking Decoder" (arXiv 1911.09099), fig. 3 to 5, tables 1 and 2.
Code:  github.com/clovaai/ext_portrait_segmentation @ 9bc1bada1cb7, and for Cityscapes
       github.com/clovaai/c3_sinet @ dd916387d759 (both MIT).
Here:  the whole decoder computes classes, so it is the head, and `reset_classifier` replaces it.
       The network for Cityscapes returns logits at the size of the image, not at half of it.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.backbone import JoinedStage, Stage
from zoo.blocks.blocking import EPS, DecoderHead
from zoo.blocks.conv import ConvNorm, NormAct, channel_prelu
from zoo.blocks.folding import Absorbing
from zoo.blocks.sizes import check_sides
from zoo.dense_backbone import DenseBackbone
from zoo.keys import KeyStyle

torch.fx.wrap("check_sides")

Branch = tuple[int, int]  # kernel size, and the factor by which the feature map is pooled


class Stem(ConvNorm):
    """A 3x3 convolution of stride 2 that refuses sides which the network cannot pool evenly.

    Args:
        in_channels: Channels of the image.
        out_channels: Channels of the feature map.
        multiple: Every side of an image must be a multiple of it.
    """

    def __init__(self, in_channels: int, out_channels: int, *, multiple: int):
        super().__init__(
            in_channels, out_channels, kernel_size=3, stride=2, act=channel_prelu, eps=EPS
        )
        self.multiple = multiple

    def forward(self, x: Tensor) -> Tensor:
        check_sides(x, 2, self.multiple)
        return self.act(self.norm(self.conv(x)))  # B C H/2 W/2


class ChannelGate(nn.Module):
    """Weight each channel by linear layers of the means of all channels; no sigmoid bounds them.

    Args:
        channels: Channels of input and output.
        hidden: Width between two layers; None for one layer.
    """

    def __init__(self, channels: int, hidden: int | None = None):
        super().__init__()
        widths = [channels, channels] if hidden is None else [channels, hidden, channels]
        layers: list[nn.Module] = []
        for before, after in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Linear(before, after), nn.PReLU(after)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.layers(x.mean((2, 3))).unsqueeze(2).unsqueeze(3)  # B C H W


class GatedSeparable(Absorbing):
    """A depthwise 3x3 convolution of stride 2, a gate, a 1x1 convolution, norm and activation.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        hidden: As for `ChannelGate`.
    """

    absorbs_after = {"pointwise": "norm"}

    def __init__(self, in_channels: int, out_channels: int, *, hidden: int | None = None):
        super().__init__()
        self.depthwise = nn.Conv2d(
            in_channels, in_channels, 3, 2, padding=1, groups=in_channels, bias=False
        )
        self.gate = ChannelGate(in_channels, hidden)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels, eps=EPS)
        self.act = channel_prelu(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pointwise(self.gate(self.depthwise(x)))
        return self.act(self.norm(x))  # B C' H/2 W/2


class CrossConv(Absorbing):
    """The sum of a depthwise k x 1 and a depthwise 1 x k convolution, each with a norm.

    Args:
        channels: Channels of input and output.
        kernel_size: Odd k.
    """

    absorbs_after = {"vertical": "norm_v", "horizontal": "norm_h"}

    def __init__(self, channels: int, kernel_size: int):
        super().__init__()
        pad, k = kernel_size // 2, kernel_size
        self.vertical = nn.Conv2d(
            channels, channels, (k, 1), padding=(pad, 0), groups=channels, bias=False
        )
        self.horizontal = nn.Conv2d(
            channels, channels, (1, k), padding=(0, pad), groups=channels, bias=False
        )
        self.norm_v = nn.BatchNorm2d(channels, eps=EPS)
        self.norm_h = nn.BatchNorm2d(channels, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm_v(self.vertical(x)) + self.norm_h(self.horizontal(x))  # B C H W


class SqueezeBlock(Absorbing):
    """Pool, convolve depthwise, mix channels, and enlarge again (S2 block, fig. 3).

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        branch: Kernel size and pooling factor; 1 does not pool.
        crossed: Use a `CrossConv`, except for the factor 0, which means a plain 3x3 convolution.
    """

    absorbs_after = {"pointwise": "norm"}

    def __init__(self, in_channels: int, out_channels: int, branch: Branch, *, crossed: bool):
        super().__init__()
        kernel_size, factor = branch
        self.pool: nn.Module = nn.Identity()
        self.resize: nn.Module = nn.Identity()
        if factor > 1:
            self.pool = nn.AvgPool2d(factor)
            self.resize = nn.Upsample(scale_factor=factor, mode="bilinear", align_corners=True)
        if crossed and factor > 0:
            self.depthwise: nn.Module = CrossConv(in_channels, kernel_size)
        else:
            self.depthwise = ConvNorm(
                in_channels, in_channels, kernel_size=kernel_size, groups=in_channels, eps=EPS
            )
        self.act = channel_prelu(in_channels)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pointwise(self.act(self.depthwise(self.pool(x))))
        return self.norm(self.resize(x))  # B C' H W; the weights of a resize add up to 1


def shuffle_halves(x: Tensor) -> Tensor:
    """Interleave the first and the second half of the channels of B C H W."""
    return x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


class SqueezeModule(nn.Module):
    """Reduce the channels, apply two `SqueezeBlock`s, join them (S2 module, fig. 4).

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output; if they are equal, the input is added.
        branches: Of the two blocks.
        crossed: As for `SqueezeBlock`.
    """

    def __init__(
        self, in_channels: int, out_channels: int, branches: tuple[Branch, Branch], *, crossed: bool
    ):
        super().__init__()
        half = out_channels // 2
        self.adds = in_channels == out_channels
        self.reduce = nn.Conv2d(in_channels, half, 1, groups=2, bias=False)
        self.branch1 = SqueezeBlock(half, half, branches[0], crossed=crossed)
        self.branch2 = SqueezeBlock(half, half, branches[1], crossed=crossed)
        self.norm = nn.BatchNorm2d(out_channels, eps=EPS)
        self.act = channel_prelu(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        half = shuffle_halves(self.reduce(x))  # B C'/2 H W
        y = torch.cat([self.branch1(half), self.branch2(half)], dim=1)
        return self.act(self.norm(x + y if self.adds else y))  # B C' H W


class SINet(DenseBackbone):
    """A convolution at stride 2, and stages that each halve the size.

    `forward_features` returns the deepest feature map and behind it those that the decoder reads,
    with the positions of 2 x 2 or 4 x 4 moved to channels, so that all have one size.

    Args:
        stem_dim: Channels at stride 2.
        first_dims: Channels after the downsampling of each stage.
        gates: Hidden width of the gate in each downsampling; None for one layer.
        dims: Channels of the modules of each stage.
        branches: Of each module of each stage.
        crossed: As for `SqueezeBlock`.
        multiple: Every side of an image must be a multiple of it.
        num_classes: Classes; 0 leaves the decoder out.
    """

    def __init__(
        self,
        *,
        stem_dim: int,
        first_dims: Sequence[int],
        gates: Sequence[int | None],
        dims: Sequence[Sequence[int]],
        branches: Sequence[Sequence[tuple[Branch, Branch]]],
        crossed: bool,
        multiple: int,
        num_classes: int = 2,
        in_chans: int = 3,
    ):
        stages: list[Stage] = []
        before, channels, skips = stem_dim, [], []
        for i, (first, gate, widths) in enumerate(zip(first_dims, gates, dims, strict=True)):
            entry: OrderedDict[str, nn.Module] = OrderedDict()
            if i and dims[i - 1]:
                entry["join"] = NormAct(before, act=channel_prelu, eps=EPS)
            entry["conv"] = GatedSeparable(before, first, hidden=gate)
            ins = [first, *widths]
            blocks = [
                SqueezeModule(ins[j], width, branches[i][j], crossed=crossed)
                for j, width in enumerate(widths)
            ]
            kind = JoinedStage if blocks else Stage
            stages.append(kind(blocks, nn.Sequential(entry)))
            before = first + widths[-1] if widths else first
            channels.append(before)
            skips.append(widths[-1] if widths else first)
        super().__init__(
            stem=Stem(in_chans, stem_dim, multiple=multiple),
            stages=stages,
            norm=NormAct(before, act=channel_prelu, eps=EPS),
            head=DecoderHead(before, skips[-2::-1], num_classes),
            channels=channels,
            strides=[4 * 2**i for i in range(len(stages))],
            in_chans=in_chans,
        )
        self.skips = skips[:-1]
        self.factors = [2 ** (len(stages) - 1 - i) for i in range(len(stages))]

    def decode(self, maps: list[Tensor], image: Tensor) -> Tensor:
        """Join the feature maps that the decoder reads, at the smallest size."""
        joined = [self.norm(maps[-1])]
        for i in range(len(maps) - 2, -1, -1):
            read = maps[i][:, maps[i].shape[1] - self.skips[i] :]  # of the modules
            joined.append(F.pixel_unshuffle(read, self.factors[i]))
        return torch.cat(joined, dim=1)


def _rows(last: int) -> list[tuple[str, str]]:
    """Return the rows for a network whose last stage is the public level `last`."""
    old, new = r"encoder\.level(\d)_0\.", r"stages.{1-2}.downsample.conv."
    block, own = r"encoder\.level(\d)\.(\d+)\.", r"stages.{1-2}.blocks.\2."
    return [
        (r"encoder\.level1\.conv\.", "stem.conv."),
        (r"encoder\.level1\.bn\.", "stem.norm."),
        (r"encoder\.level1\.act\.", "stem.act."),
        (old + r"conv\.0\.", new + "depthwise."),
        (old + r"conv\.1\.dense\.", new + "gate.layers."),
        (old + r"conv\.2\.", new + "pointwise."),
        (old + r"bn\.", new + "norm."),
        (old + r"act\.", new + "act."),
        (block + r"c1\.conv\.", own + "reduce."),
        (block + r"d(\d)\.conv\.0\.", own + r"branch\3.depthwise.conv."),
        (block + r"d(\d)\.conv\.1\.", own + r"branch\3.depthwise.norm."),
        (block + r"d(\d)\.B_([vh])\.", own + r"branch\3.depthwise.norm_\4."),
        (block + r"d(\d)\.(vertical|horizontal)\.", own + r"branch\3.depthwise.\4."),
        (block + r"d(\d)\.act_conv1x1\.0\.", own + r"branch\3.act."),
        (block + r"d(\d)\.act_conv1x1\.1\.", own + r"branch\3.pointwise."),
        (block + r"d(\d)\.bn\.", own + r"branch\3.norm."),
        (block + r"BR\.bn\.", own + "norm."),
        (block + r"BR\.act\.", own + "act."),
        (rf"encoder\.BR{last}\.bn\.", "norm.norm."),
        (rf"encoder\.BR{last}\.act\.", "norm.act."),
        (r"encoder\.BR(\d)\.bn\.", r"stages.{1-1}.downsample.join.norm."),
        (r"encoder\.BR(\d)\.act\.", r"stages.{1-1}.downsample.join.act."),
        (r"encoder\.classifier\.conv\.", "head.fc.coarse."),
        (rf"bn_{last}\.", "head.fc.norm1."),
        (rf"bn_{last - 1}\.", "head.fc.norm2."),
        (r"level2_C\.bn\.", "head.fc.detail.norm."),
        (r"level2_C\.", "head.fc.detail."),
        (r"level3_C\.bn\.", "head.fc.middle.norm."),
        (r"level3_C\.", "head.fc.middle."),
        (r"classifier\.(?:1\.)?", "head.fc.last."),
    ]


KEY_STYLES = (
    KeyStyle("clovaai/c3_sinet", "encoder.BR4.bn.weight", rows=_rows(4)),
    KeyStyle("clovaai/ext_portrait_segmentation", "encoder.BR2.bn.weight", rows=_rows(3)),
)

# fmt: off
VARIANTS = {
    "sinet_portrait": dict(
        stem_dim=12, first_dims=(16, 48), gates=(None, 32), dims=((48,) * 2, (96,) * 8),
        branches=(
            (((3, 1), (5, 1)), ((3, 1), (3, 1))),
            (((3, 1), (5, 1)), ((3, 1), (3, 1)), ((5, 1), (3, 2)), ((5, 2), (3, 4)),
             ((3, 1), (3, 1)), ((5, 1), (5, 1)), ((3, 2), (3, 4)), ((3, 1), (5, 2))),
        ),
        crossed=False, multiple=32,
    ),
    "sinet_cityscapes": dict(
        stem_dim=16, first_dims=(19, 24, 60), gates=(None, None, 42),
        dims=((), (60,) * 3, (84,) * 5 + (108,) * 5),
        branches=(
            (),
            (((3, 1), (5, 1)), ((3, 0), (3, 1)), ((3, 0), (3, 1))),
            (((3, 1), (5, 1)), ((3, 0), (3, 1)), ((5, 1), (5, 4)), ((3, 2), (5, 8)),
             ((3, 1), (5, 1)), ((3, 1), (5, 1)), ((3, 0), (3, 1)), ((5, 1), (5, 8)),
             ((3, 2), (5, 4)), ((3, 0), (5, 2))),
        ),
        crossed=True, multiple=128, num_classes=19,
    ),
}
# fmt: on

SINet.register_family(VARIANTS, KEY_STYLES)
