"""Token mixing by a wavelet transform (WaveMix, arXiv 2205.14375, fig. 1 and 2)."""

import torch
from torch import Tensor, nn

from zoo.blocks.drop import DropPath
from zoo.blocks.folding import fold_batch_norm, is_fixed_batch_norm, rebuilt
from zoo.ops import haar_pyramid


def coefficients(bands: Tensor) -> Tensor:
    """B C 4 h w -> B 4C h w: LL of all channels, then LH, HL, HH of the first, of the second ..."""
    return torch.cat([bands[:, :, 0], bands[:, :, 1:].flatten(1, 2)], dim=1)


class UpsamplingMlp(nn.Module):
    """Two 1x1 convolutions, then a transposed convolution to twice the size, and its norm.

    Between the second and the third layer nothing happens; they are not merged, because the kernel
    would grow from `channels` to `hidden` inputs, and the bias between them is not constant where
    the border cuts the transposed convolution off.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        channels: Channels that are made larger.
        hidden: Channels inside.
        drop_rate: Dropout after the activation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        channels: int,
        hidden: int,
        drop_rate: float = 0.0,
    ):
        super().__init__()
        self.fc1 = nn.Conv2d(in_channels, hidden, 1)
        self.act = nn.GELU()
        self.drop = nn.Dropout(drop_rate)
        self.fc2 = nn.Conv2d(hidden, channels, 1)
        self.up = nn.ConvTranspose2d(channels, out_channels, 4, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.up(self.fc2(self.drop(self.act(self.fc1(x))))))

    def fused(self) -> "UpsamplingMlp":
        """The norm in the transposed convolution."""
        if not is_fixed_batch_norm(self.norm):
            return self
        return rebuilt(self, up=fold_batch_norm(self.up, self.norm), norm=nn.Identity())


class WaveletBlock(nn.Module):
    """Haar coefficients of a quarter of the channels, mixed and made larger from level to level.

    Both sides of the map must be multiples of 2 to the power of `levels`.

    Args:
        channels: Channels of input and output, a multiple of 4.
        levels: How often the map is halved.
        mlp_ratio: Width inside the MLPs over `channels`.
        drop_rate: Dropout inside the MLPs.
        drop_path: Probability of leaving the branch out while training.
    """

    def __init__(
        self,
        channels: int,
        *,
        levels: int = 1,
        mlp_ratio: int = 2,
        drop_rate: float = 0.0,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.levels = levels
        self.reduction = nn.Conv2d(channels, channels // 4, 1)
        self.mlps = nn.ModuleList(
            UpsamplingMlp(
                channels if level == levels else channels + channels // 2,
                channels if level == 1 else channels // 2,
                channels=channels,
                hidden=mlp_ratio * channels,
                drop_rate=drop_rate,
            )
            for level in range(levels, 0, -1)
        )
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        pyramid = haar_pyramid(self.reduction(x), self.levels)
        from_below: list[Tensor] = []  # nothing at the deepest level
        for i, mlp in enumerate(self.mlps):
            wave = coefficients(pyramid[self.levels - 1 - i])
            from_below = [mlp(torch.cat([wave] + from_below, dim=1))]
        return x + self.drop_path(from_below[0])
