"""Several grouped convolutions and an identity that become one convolution.

FMViT (arXiv 2311.05707) names such a block, "convolutional multi-group reparameterisation", but
gives neither its branches nor code. This is the general form, in which every merge is exact.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.blocks.folding import fold_batch_norm


def regrouped(weight: Tensor, groups: int, fewer: int, kernel_size: int) -> Tensor:
    """Return the kernel of a convolution as that of one with fewer groups and a larger kernel.

    Args:
        weight: out, in / groups, k, k.
        groups: Groups of the convolution.
        fewer: Groups of the result, which divide `groups`.
        kernel_size: Side of the result's kernel; odd, like k, and at least k.

    Returns:
        out, in / fewer, kernel_size, kernel_size; equal if the padding grows with the side.
    """
    out, inputs, side = weight.shape[0], weight.shape[1], weight.shape[2]
    assert groups % fewer == 0
    assert (kernel_size - side) % 2 == 0
    merged = groups // fewer  # groups in one of the result
    rest = (kernel_size - side) // 2
    result = weight.new_zeros(out, merged * inputs, kernel_size, kernel_size)
    rows = out // groups
    for group in range(groups):
        first = group % merged * inputs
        result[
            group * rows : (group + 1) * rows,
            first : first + inputs,
            rest : rest + side,
            rest : rest + side,
        ] = weight[group * rows : (group + 1) * rows]
    return result


class MultiGroupConv(nn.Module):
    """The sum of convolutions with different groups and kernel sizes, and of the input.

    Each branch, and the identity, ends with a batch norm. Fused, it is one convolution.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        branches: Kernel size (odd) and groups of each convolution.
        stride: Stride of all branches.
        identity: Add the input, normalised; if the stride is 1 and the channels stay.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        branches: Sequence[tuple[int, int]],
        *,
        stride: int = 1,
        identity: bool = True,
    ):
        super().__init__()
        assert branches
        assert all(side % 2 for side, _ in branches)
        self.convs = nn.ModuleList(
            nn.Conv2d(in_channels, out_channels, side, stride, side // 2, groups=groups, bias=False)
            for side, groups in branches
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(out_channels) for _ in branches)
        keeps = identity and stride == 1 and in_channels == out_channels
        self.identity = nn.BatchNorm2d(in_channels) if keeps else None

    def forward(self, x: Tensor) -> Tensor:
        parts = [norm(conv(x)) for conv, norm in zip(self.convs, self.norms, strict=True)]
        if self.identity is not None:
            parts.append(self.identity(x))
        return torch.stack(parts).sum(0)  # B C' H/s W/s

    def fused(self) -> nn.Conv2d:
        """Return the convolution that computes the sum.

        It has as many groups as divide those of all branches; its kernel is the largest.
        """
        first: Any = self.convs[0]
        layers: list[Any] = [
            fold_batch_norm(conv, norm) for conv, norm in zip(self.convs, self.norms, strict=True)
        ]
        if self.identity is not None:
            one: Any = nn.Conv2d(first.in_channels, first.in_channels, 1, groups=first.in_channels)
            one = one.to(first.weight)
            nn.init.ones_(one.weight)
            nn.init.zeros_(one.bias)
            layers.append(fold_batch_norm(one, self.identity))
        groups = math.gcd(*(layer.groups for layer in layers))
        side = max(layer.kernel_size[0] for layer in layers)
        merged: Any = nn.Conv2d(
            first.in_channels, first.out_channels, side, first.stride, side // 2, groups=groups
        ).to(first.weight)
        with torch.no_grad():
            kernels = [
                regrouped(layer.weight.double(), layer.groups, groups, side) for layer in layers
            ]
            merged.weight.copy_(torch.stack(kernels).sum(0))
            biases = [layer.bias.double() for layer in layers]
            merged.bias.copy_(torch.stack(biases).sum(0))
        return merged.train(self.training)
