"""EEEA-Net for CIFAR: cells found by evolutionary search, which read two earlier cells.

Paper: Termritthikun et al., "EEEA-Net: An Early Exit Evolutionary Neural Architecture Search"
       (arXiv 2108.06156), section 4. Early exit is part of the search, not of the network.
Code:  github.com/chakkritte/EEEA-Net @ 58ba0720b7e4 (Apache-2.0).
Here:  each cell is a stage that reads the two before it. The auxiliary head of training is left
       out, and so are the weights of gates that cells own but do not use. The networks for
       ImageNet, C1 and C2, are in zoo/models/once_for_all.py.
"""

from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo.backbone import Backbone, Stage
from zoo.blocks import folding
from zoo.blocks.conv import ConvNorm
from zoo.blocks.heads import ClassifierHead
from zoo.blocks.separable import SeparableConvNorm
from zoo.blocks.sizes import check_sides, whole_number
from zoo.blocks.squeeze import SqueezeExcite
from zoo.blocks.widths import Group, hidden_channels
from zoo.keys import KeyStyle, prefixed

torch.fx.wrap("check_sides")

# Steps of two operations, each with the number of the state that it reads, and after ">" the
# numbers of the states that are concatenated: "dil3 0, max 0; inv5 1, dil5 1 > 2 3".
Genes = str


class PreActConv(folding.Absorbing):
    """ReLU, convolution, batch norm.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Odd; the padding keeps the size before the stride.
        stride: Stride of the convolution.
        groups: Groups of the convolution.
        act: Whether there is an activation.
    """

    absorbs_after = {"conv": "norm"}

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        act: bool = True,
    ):
        super().__init__()
        # The public code pads by (stride + kernel_size - 2) // 2, which is the same.
        self.act = nn.ReLU() if act else nn.Identity()
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding=kernel_size // 2,
            groups=groups,
            bias=False,
        )
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(self.act(x)))  # B C' H/stride W/stride


class FactorizedReduction(nn.Module):
    """Halve the size with two 1x1 convolutions, one of them on the image shifted by a pixel.

    Args:
        in_channels: Channels of the input; sides must be even.
        out_channels: Channels of the output, even.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.act = nn.ReLU()
        self.conv1 = nn.Conv2d(in_channels, out_channels // 2, 1, 2, bias=False)
        self.conv2 = nn.Conv2d(in_channels, out_channels // 2, 1, 2, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(x)
        y = torch.cat([self.conv1(x), self.conv2(x[:, :, 1:, 1:])], dim=1)
        return self.norm(y)  # B C' H/2 W/2

    def fused(self) -> "FactorizedReduction":
        """Fold the norm into both convolutions."""
        if not folding.is_fixed_batch_norm(self.norm):
            return self
        scales, shifts = (values.chunk(2) for values in folding.batch_norm_affine(self.norm))
        return folding.rebuilt(
            self,
            conv1=folding.scale_outputs(self.conv1, scales[0], shifts[0]),
            conv2=folding.scale_outputs(self.conv2, scales[1], shifts[1]),
            norm=nn.Identity(),
        )


class PreActInverted(nn.Module):
    """Pointwise, depthwise, pointwise; the input is added if the size stays.

    Args:
        channels: Channels of input and output.
        kernel_size: Kernel size of the depthwise convolution.
        stride: Stride of the depthwise convolution.
    """

    def __init__(self, channels: int, *, kernel_size: int, stride: int):
        super().__init__()
        self.layers = nn.Sequential(
            PreActConv(channels, channels),
            PreActConv(channels, channels, kernel_size=kernel_size, stride=stride, groups=channels),
            PreActConv(channels, channels, act=False),
        )
        self.residual = stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        return x + y if self.residual else y  # B C H/stride W/stride

    def prunable(self) -> list[Group]:
        """Declare the hidden channels."""
        return [hidden_channels(self, made=("layers.0", "layers.1"), read=("layers.2.conv",))]


class NonLocal(nn.Module):
    """x + depthwise(x x^T x), where x is channels by positions: cubic, without a softmax.

    Args:
        channels: Channels of input and output.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.local = ConvNorm(channels, channels, kernel_size=3, groups=channels)
        nn.init.zeros_(self.local.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)  # B C N
        f = (flat @ flat.transpose(1, 2) @ flat).view(x.shape)
        return x + self.local(f / x.shape[2] * x.shape[3])  # the public code's factor: W / H


def _separable(channels: int, kernel_size: int, stride: int) -> nn.Module:
    def conv(stride: int) -> nn.Module:
        return SeparableConvNorm(channels, channels, kernel_size=kernel_size, stride=stride)

    return nn.Sequential(nn.ReLU(), conv(stride), nn.ReLU(), conv(1))


def _dilated(channels: int, kernel_size: int, stride: int) -> nn.Module:
    conv = SeparableConvNorm(channels, channels, kernel_size=kernel_size, stride=stride, dilation=2)
    return nn.Sequential(nn.ReLU(), conv)


def make_operation(name: str, channels: int, stride: int) -> nn.Module:
    """Return an operation of the search space.

    Args:
        name: `max`, `avg`, `skip`, or `sep`, `dil` or `inv` with a kernel size, such as `sep3`.
        channels: Channels of input and output.
        stride: 1 or 2.
    """
    if name == "avg":
        return nn.AvgPool2d(3, stride, 1, count_include_pad=False)
    if name == "max":
        return nn.MaxPool2d(3, stride, 1)
    if name == "skip":
        return FactorizedReduction(channels, channels) if stride == 2 else nn.Identity()
    kind, kernel_size = name[:3], int(name[3:])
    if kind == "inv":
        return PreActInverted(channels, kernel_size=kernel_size, stride=stride)
    return {"sep": _separable, "dil": _dilated}[kind](channels, kernel_size, stride)


class Cell(nn.Module):
    """Five steps, each the sum of two operations on earlier states; some states are concatenated.

    Args:
        in_channels: Channels of the output of the last cell but one, and of the last cell.
        channels: Channels of every state.
        genes: Operations, the states that they read, and the states to concatenate.
        reduction: Halve the size of the inputs.
        after_reduction: Whether the last cell halved the size.
        gated: Add squeeze and excitation, and a non-local block.
        drop_path: Probability of dropping an operation in training.
    """

    def __init__(
        self,
        in_channels: tuple[int, int],
        channels: int,
        genes: Genes,
        *,
        reduction: bool = False,
        after_reduction: bool = False,
        gated: bool = False,
        drop_path: float = 0.0,
    ):
        super().__init__()
        first = FactorizedReduction if after_reduction else PreActConv
        self.preprocess0 = first(in_channels[0], channels)
        self.preprocess1 = PreActConv(in_channels[1], channels)
        steps, outputs = genes.split(">")
        names = [gene.split() for step in steps.split(";") for gene in step.split(",")]
        self.reads = [int(state) for _, state in names]
        self.outputs = [int(state) for state in outputs.split()]
        self.ops = nn.ModuleList(
            make_operation(name, channels, 2 if reduction and state < 2 else 1)
            for (name, _), state in zip(names, self.reads, strict=True)
        )
        self.drops = [not isinstance(op, nn.Identity) for op in self.ops]
        self.drop_path = DropPath(drop_path)
        self.out_channels = len(self.outputs) * channels
        self.se, self.mix = nn.Identity(), nn.Identity()
        if gated:
            self.se = SqueezeExcite(self.out_channels, self.out_channels // 16, bias=False)
            self.mix = NonLocal(self.out_channels)

    def forward(self, before: Tensor, x: Tensor) -> Tensor:
        """Map the output of the last cell but one, and of the last cell, to B C' H' W'."""
        states = [self.preprocess0(before), self.preprocess1(x)]
        first = states[0]
        for i, op in enumerate(self.ops):
            y = op(states[self.reads[i]])
            if self.drops[i]:
                y = self.drop_path(y)
            if i % 2 == 0:
                first = y
            else:
                states.append(first + y)
        taken = [states[i] for i in self.outputs]
        return self.mix(self.se(torch.cat(taken, dim=1)))


class CellStage(Stage):
    """A stage of one cell, which reads the outputs of the two stages before it.

    Args:
        cell: The cell.
        source: Index of the stage whose output is the older input.
    """

    def __init__(self, cell: Cell, source: int):
        super().__init__([])
        self.blocks: Any = nn.ModuleList([cell])
        self.source = source

    def forward(self, x: Tensor, earlier: Tensor) -> Tensor:  # type: ignore[override]
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint(self.blocks[0], earlier, x, use_reentrant=False)
        return self.blocks[0](earlier, x)  # B C' H' W'


class CellStem(nn.Module):
    """A convolution and a norm at full size; refuses sides that cannot be halved twice.

    Args:
        in_channels: Channels of the image.
        out_channels: Channels of the feature map.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = ConvNorm(in_channels, out_channels, kernel_size=3)

    def forward(self, x: Tensor) -> Tensor:
        check_sides(x, 2, 4)
        return self.conv(x)  # B C H W


class CellNet(Backbone):
    """A stem, then cells; two of them halve the size and double the channels.

    The first stage is the output of the stem; every further stage is one cell.

    Args:
        normal: Genes of the cells that keep the size.
        reduce: Genes of the cells that halve it, after one and after two thirds of the depth.
        channels: Channels of a state of the first cells.
        depth: Number of cells.
        gated: Add squeeze and excitation, and a non-local block, to every cell.
    """

    def __init__(
        self,
        *,
        normal: Genes,
        reduce: Genes,
        channels: int = 36,
        depth: int = 20,
        gated: bool = False,
        num_classes: int = 10,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str = "avg",
    ):
        whole_number(depth, "depth", 1)
        halving = (depth // 3, 2 * depth // 3)
        stem = 3 * channels
        stages: list[Stage] = [Stage([])]
        outs, strides, after = [stem], [1], False
        for i in range(depth):
            reduction = i in halving
            channels *= 1 + reduction
            cell = Cell(
                (outs[max(i - 1, 0)], outs[i]),
                channels,
                reduce if reduction else normal,
                reduction=reduction,
                after_reduction=after,
                gated=gated,
                drop_path=drop_path_rate * i / max(depth - 1, 1),
            )
            stages.append(CellStage(cell, max(i - 1, 0)))
            outs.append(cell.out_channels)
            strides.append(strides[-1] * (1 + reduction))
            after = reduction
        super().__init__(
            stem=CellStem(in_chans, stem),
            stages=stages,
            norm=nn.Identity(),
            head=ClassifierHead(outs[-1], num_classes, pool=global_pool, drop_rate=drop_rate),
            channels=outs,
            strides=strides,
            in_chans=in_chans,
        )


# Groups have names, because rows that precede these parts with a pattern shift the numbers.
PARTS = (
    (r"preprocess(?P<n>\d)\.conv_(?P<k>\d)\.", r"preprocess\g<n>.conv\g<k>."),
    (r"preprocess(?P<n>\d)\.bn\.", r"preprocess\g<n>.norm."),
    (r"_ops\.(?P<n>\d)\.op\.(?P<k>\d)\.(?P<p>conv|norm)\.", r"ops.\g<n>.layers.\g<k>.\g<p>."),
    (r"_ops\.(?P<n>\d)\.op\.1\.", r"ops.\g<n>.1.conv.depthwise."),
    (r"_ops\.(?P<n>\d)\.op\.2\.", r"ops.\g<n>.1.conv.pointwise."),
    (r"_ops\.(?P<n>\d)\.op\.3\.", r"ops.\g<n>.1.norm."),
    (r"_ops\.(?P<n>\d)\.op\.5\.", r"ops.\g<n>.3.conv.depthwise."),
    (r"_ops\.(?P<n>\d)\.op\.6\.", r"ops.\g<n>.3.conv.pointwise."),
    (r"_ops\.(?P<n>\d)\.op\.7\.", r"ops.\g<n>.3.norm."),
    (r"_ops\.(?P<n>\d)\.conv_(?P<k>\d)\.", r"ops.\g<n>.conv\g<k>."),
    (r"_ops\.(?P<n>\d)\.bn\.", r"ops.\g<n>.norm."),
    (r"se_layer\.fc\.0\.", "se.reduce."),
    (r"se_layer\.fc\.2\.", "se.expand."),
    (r"nl_layer\.depthwise_conv\.", "mix.local.conv."),
    (r"nl_layer\.bn\.", "mix.local.norm."),
)


def _rows(model: Any) -> list[Any]:
    """Return the rows; cells own the weights of gates even if they do not use them."""
    cells = [stage.blocks[0] for stage in model.stages[1:]]
    gated = any(isinstance(cell.se, SqueezeExcite) for cell in cells)
    parts = PARTS if gated else ((r"nl_layer\.", None), *PARTS)
    return [
        (r"stem\.0\.", "stem.conv.conv."),
        (r"stem\.1\.", "stem.conv.norm."),
        (r"classifier\.", "head.fc."),
        (r"auxiliary_head\.", None),
        *prefixed(r"cells\.(?P<cell>\d+)\.", "stages.{cell+1}.blocks.0.", parts),
        (r"cells\.(\d+)\.", "stages.{1+1}.blocks.0."),
    ]


KEY_STYLES = (KeyStyle("chakkritte/EEEA-Net", "cells.0.preprocess0.conv.weight", rows=_rows),)

# Genes of the cells that keep the size, and of those that halve it.
GENOTYPES: dict[str, tuple[Genes, Genes]] = {
    "ea": (
        "dil3 0, max 0; inv5 1, dil5 1; avg 1, avg 1; inv5 3, inv3 2; sep3 4, max 3 > 5 6",
        "avg 0, inv3 0; inv5 1, dil3 0; inv3 0, dil5 0; max 3, skip 3; max 0, sep3 0 > 2 4 5 6",
    ),
    "a": (
        "max 0, inv3 0; dil3 1, max 0; skip 2, inv3 0; avg 2, skip 3; avg 4, skip 3 > 5 6",
        "skip 0, dil3 0; max 1, avg 0; dil3 0, avg 0; skip 2, skip 3; dil3 3, dil5 0 > 4 5 6",
    ),
    "b": (
        "skip 0, max 0; max 1, skip 1; skip 1, skip 2; dil3 3, sep3 1; max 4, sep3 4 > 5 6",
        "skip 0, inv5 0; avg 0, dil3 1; inv3 1, skip 1; max 1, avg 1; avg 2, dil3 3 > 4 5 6",
    ),
    "c": (
        "dil5 0, max 0; inv5 0, inv3 0; dil5 2, inv3 2; sep5 1, skip 2; sep3 1, avg 4 > 3 5 6",
        "inv3 0, dil3 0; avg 0, inv3 0; dil5 1, max 1; skip 3, max 3; inv5 4, inv3 2 > 5 6",
    ),
}
VARIANTS = {
    f"eeea_net_{name}_cifar": dict(normal=normal, reduce=reduce)
    for name, (normal, reduce) in GENOTYPES.items()
}

CellNet.register_family(VARIANTS, KEY_STYLES)
