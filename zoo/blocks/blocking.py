"""Decoders with information blocking (SINet, arXiv 1911.09099, section 3.3)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.blocks.conv import ConvNorm, channel_prelu
from zoo.blocks.folding import Absorbing
from zoo.blocks.heads import DenseHead

EPS = 1e-3  # of every batch norm


def unsure(logits: Tensor) -> Tensor:
    """Return 1 minus the largest probability at each position: B K H W -> B 1 H W.

    One logit is that of the second of two classes.
    """
    if logits.shape[1] == 1:
        return 1 - logits.abs().sigmoid()
    return 1 - logits.softmax(dim=1).amax(dim=1, keepdim=True)


torch.fx.wrap("unsure")


def double(x: Tensor, align_corners: bool) -> Tensor:
    """Enlarge B C H W to B C 2H 2W, bilinearly."""
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=align_corners)


class PortraitDecoder(Absorbing):
    """Add detail only where the coarse classes are unsure (information blocking, fig. 5).

    Args:
        deep: Channels at stride 8.
        detail: Channels at stride 4.
        num_classes: Classes.
    """

    absorbs_after = {"coarse": "norm1"}

    def __init__(self, deep: int, detail: int, num_classes: int):
        super().__init__()
        self.deep, self.out_channels = deep, num_classes
        self.coarse = nn.Conv2d(deep, num_classes, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(num_classes, eps=EPS)
        self.detail = ConvNorm(detail, num_classes, act=channel_prelu, eps=EPS)
        self.norm2 = nn.BatchNorm2d(num_classes, eps=EPS)
        self.last = nn.Conv2d(num_classes, num_classes, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        coarse = self.norm1(double(self.coarse(x[:, : self.deep]), True))  # B K H/4 W/4
        detail = self.detail(F.pixel_shuffle(x[:, self.deep :], 2))
        y = self.norm2(double(detail * unsure(coarse) + coarse, True))  # B K H/2 W/2
        return self.last(double(y, True))  # B K H W


class StreetDecoder(Absorbing):
    """Like `PortraitDecoder`, with two levels of detail.

    Args:
        deep: Channels at stride 16.
        middle: Channels at stride 8.
        detail: Channels at stride 4; if there are not as many classes, a 1x1 convolution maps them.
        num_classes: Classes.
    """

    absorbs_after = {"coarse": "norm1"}

    def __init__(self, deep: int, middle: int, detail: int, num_classes: int):
        super().__init__()
        self.widths, self.out_channels = [deep, 4 * middle, 16 * detail], num_classes
        self.coarse = nn.Conv2d(deep, num_classes, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(num_classes, eps=EPS)
        self.middle = ConvNorm(middle, num_classes, act=channel_prelu, eps=EPS)
        self.norm2 = nn.BatchNorm2d(num_classes, eps=EPS)
        self.detail: nn.Module = nn.Identity()
        if detail != num_classes:
            self.detail = nn.Conv2d(detail, num_classes, 1, bias=False)
        self.last = nn.ConvTranspose2d(num_classes, num_classes, 2, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        deep, middle, detail = x.split(self.widths, dim=1)
        coarse = self.norm1(double(self.coarse(deep), False))  # B K H/8 W/8
        y = self.middle(F.pixel_shuffle(middle, 2)) * unsure(coarse) + coarse
        y = self.norm2(double(y, False))  # B K H/4 W/4
        y = self.detail(F.pixel_shuffle(detail, 4)) * unsure(y) + y
        return double(self.last(y), False)  # B K H W


class DecoderHead(DenseHead):
    """A decoder as the classifier.

    Args:
        deep: Channels of the deepest feature map.
        skips: Channels of the feature maps at half of its stride, and at a quarter of it.
        num_classes: Classes; 0 leaves the decoder out.
    """

    def __init__(self, deep: int, skips: Sequence[int], num_classes: int):
        super().__init__()
        self.deep, self.skips = deep, list(skips)
        self.num_features = deep + sum(n * 4 ** (i + 1) for i, n in enumerate(skips))
        self.reset(num_classes)

    def make_classifier(self) -> nn.Module:
        if len(self.skips) == 1:
            return PortraitDecoder(self.deep, *self.skips, num_classes=self.num_classes)
        return StreetDecoder(self.deep, *self.skips, num_classes=self.num_classes)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return x if pre_logits else self.fc(x)
