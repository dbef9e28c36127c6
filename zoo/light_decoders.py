"""Light decoders for segmentation that take the feature pyramid of any backbone.

They merge at most two of its levels, so they need no particular ladder of strides.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.segmentation.deeplabv3 import ASPP

FINE_STRIDE = 8  # pixels: LR-ASPP adds the deepest features that are no coarser than this
LRASPP_WIDTH, DEEPLAB_WIDTH = 128, 256  # channels of the papers


class LRASPP(nn.Module):
    """Lite R-ASPP: gated deep features beside finer ones (MobileNetV3, arXiv 1905.02244, fig. 10).

    The gate pools the whole image, as in torchvision; the paper pools windows of 49 x 49 positions
    of images of 1024 x 2048.

    Args:
        channels: Channels of the fine and of the deep level; one number if they are the same.

    Attributes:
        out_channels: Channels of the result.
    """

    def __init__(self, channels: Sequence[int]):
        super().__init__()
        fine, deep = channels[0], channels[-1]
        self.project = nn.Sequential(
            nn.Conv2d(deep, LRASPP_WIDTH, 1, bias=False),
            nn.BatchNorm2d(LRASPP_WIDTH),
            nn.ReLU(inplace=True),
        )
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(deep, LRASPP_WIDTH, 1, bias=False), nn.Sigmoid()
        )
        self.out_channels = LRASPP_WIDTH + fine

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return B out_channels H W at the size of the fine level, from both levels."""
        fine, deep = features[0], features[-1]
        gated = self.project(deep) * self.gate(deep)
        enlarged = F.interpolate(gated, fine.shape[-2:], mode="bilinear", align_corners=False)
        # One 1x1 convolution of both is the sum of the paper's two, one for each.
        return torch.cat([enlarged, fine], dim=1)


class MobileDeepLabV3(nn.Module):
    """DeepLabv3 with 1x1 and image pooling only (MobileNetV2, arXiv 1801.04381, section 6.3).

    Args:
        channels: Channels of the last level.

    Attributes:
        out_channels: Channels of the result.
    """

    def __init__(self, channels: Sequence[int]):
        super().__init__()
        self.out_channels = DEEPLAB_WIDTH
        self.aspp = ASPP(channels[-1], [], DEEPLAB_WIDTH)
        self.aspp.project[-1] = nn.Dropout(0.1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return B out_channels H W at the size of the last level."""
        return self.aspp(features[-1])


DECODERS: dict[str, type[LRASPP] | type[MobileDeepLabV3]] = {
    "lraspp": LRASPP,
    "mobile_deeplabv3": MobileDeepLabV3,
}


def levels_of(name: str, strides: Sequence[int]) -> list[int]:
    """Return the levels of a feature pyramid that a decoder uses.

    Args:
        name: Name of the decoder.
        strides: Stride of each level.
    """
    last = len(strides) - 1
    if name != "lraspp":
        return [last]
    fine = max((i for i, stride in enumerate(strides[:-1]) if stride <= FINE_STRIDE), default=0)
    return sorted({fine, last})
