"""Residual connections: as a module, with a pooled shortcut, and the units of ResNet."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from zoo.blocks.conv import ConvNorm
from zoo.blocks.folding import add_identity, rebuilt
from zoo.blocks.sizes import is_dynamic
from zoo.blocks.widths import Group, hidden_channels


class Residual(nn.Module):
    """Add the output of a branch to its input: x + m(x).

    Args:
        inner: The branch m, which keeps the shape.
    """

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)  # as x

    def fused(self) -> nn.Module:
        """Fold the sum into the centre of the kernel if the branch is one linear convolution."""
        branch = self.inner
        if not isinstance(branch, ConvNorm) or branch.conv.stride != (1, 1):
            return self
        if not isinstance(branch.norm, nn.Identity) or not isinstance(branch.act, nn.Identity):
            return self
        return rebuilt(branch, conv=add_identity(branch.conv))


def _are_even(height: int, width: int) -> bool:
    if torch.jit.is_scripting():
        return height % 2 == 0 and width % 2 == 0
    else:
        if is_dynamic(height) or is_dynamic(width):
            return False
        return height % 2 == 0 and width % 2 == 0


def pool_pairs(x: Tensor) -> Tensor:
    """Average 2 x 2 positions: B C H W -> B C ceil(H/2) ceil(W/2).

    An odd side is padded with a zero in front, which counts in the mean, as padding does in public
    code that chooses it by the width of the feature map.
    """
    height, width = x.shape[2], x.shape[3]
    if _are_even(height, width):
        return F.avg_pool2d(x, 2)
    # An even side is padded behind: then its size is side + 1 either way, as for a convolution.
    odd_height, odd_width = height % 2, width % 2
    return F.avg_pool2d(F.pad(x, [odd_width, 1 - odd_width, odd_height, 1 - odd_height]), 2)


torch.fx.wrap("pool_pairs")


class PooledShortcut(nn.Module):
    """Average pooling if the size is halved, a 1x1 convolution if the channels differ (NASViT).

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: 1 or 2.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1):
        super().__init__()
        assert stride in (1, 2)
        self.halves = stride == 2
        self.conv: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(pool_pairs(x) if self.halves else x)  # B C' H/stride W/stride


class ResidualUnit(nn.Module):
    """ReLU(shortcut(x) + branch(x)) (ResNet, arXiv 1512.03385, eq. 1 and 2).

    Args:
        branch: Layers of the branch; the last one has no activation.
        shortcut: Applied to the input before it is added.
        drop_path: Probability of dropping the branch in training.
    """

    def __init__(self, branch: nn.Module, shortcut: nn.Module, *, drop_path: float = 0.0):
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut
        self.drop_path = DropPath(drop_path)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.shortcut(x) + self.drop_path(self.branch(x)))  # B C' H/s W/s

    def prunable(self) -> list[Group]:
        """Declare the channels between the convolutions of the branch."""
        layers = list(self.branch.children())
        if not all(isinstance(layer, ConvNorm) for layer in layers):
            return []
        return [
            hidden_channels(
                self,
                made=(f"branch.{i}",),
                read=(f"branch.{i + 1}.conv",),
                name=f"hidden{i}",
            )
            for i in range(len(layers) - 1)
        ]


def resnet_unit(
    in_channels: int,
    out_channels: int,
    *,
    hidden: int | None = None,
    stride: int = 1,
    pooled: bool = False,
    conv: Callable[..., nn.Module] = ConvNorm,
    drop_path: float = 0.0,
) -> ResidualUnit:
    """Return a unit of ResNet: two 3x3 convolutions, or 1x1, 3x3 and 1x1 (a bottleneck).

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        hidden: Channels inside a bottleneck; None: two 3x3 convolutions.
        stride: Of the first 3x3 convolution.
        pooled: Pool in the shortcut, then a 1x1 convolution of stride 1 (ResNet-D, arXiv
            1812.01187, fig. 2c); otherwise the 1x1 convolution has the stride.
        conv: Makes convolution, norm and activation, with the arguments of `ConvNorm`.
        drop_path: Probability of dropping the branch in training.
    """
    shortcut: nn.Module = nn.Identity()
    if stride != 1 or in_channels != out_channels:
        if pooled:
            pool = nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)
            layers = [pool] if stride != 1 else []
            shortcut = nn.Sequential(*layers, conv(in_channels, out_channels))
        else:
            shortcut = conv(in_channels, out_channels, stride=stride)
    if hidden is None:
        branch = [
            conv(in_channels, out_channels, kernel_size=3, stride=stride, act=nn.ReLU),
            conv(out_channels, out_channels, kernel_size=3),
        ]
    else:
        branch = [
            conv(in_channels, hidden, act=nn.ReLU),
            conv(hidden, hidden, kernel_size=3, stride=stride, act=nn.ReLU),
            conv(hidden, out_channels),
        ]
    return ResidualUnit(nn.Sequential(*branch), shortcut, drop_path=drop_path)
