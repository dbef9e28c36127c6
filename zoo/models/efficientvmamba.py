"""EfficientVMamba: atrous selective scans beside convolutions, then inverted residuals.

Paper: Pei et al., "EfficientVMamba: Atrous Selective Scan for Light Weight Visual Mamba"
       (arXiv 2403.09977), fig. 2 and 3.
Code:  github.com/TerryPei/EfficientVMamba @ 0bc5ee288b40 (README: Apache-2.0; no LICENSE file).
Here:  no CUDA extension; sequences are read and written back by slices and stacks, which export.
       The small variant has the width 64 of the published model, not the 96 of the public config.
"""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.backbone import Backbone, Stage
from zoo.blocks.conv import ConvNorm
from zoo.blocks.drop import DropPath, linear_rates
from zoo.blocks.folding import affine_inputs, rebuilt, split_affine
from zoo.blocks.heads import ClassifierHead
from zoo.blocks.norm import LayerNorm2d
from zoo.blocks.patches import PatchEmbed
from zoo.blocks.selective import DirectionalScan, atrous, merge_atrous
from zoo.blocks.squeeze import SqueezeExcite
from zoo.keys import KeyStyle, State, rename
from zoo.registry import register


class AtrousScan(nn.Module):
    """SS2D over four sub-lattices of the map, gated (section 3.2).

    Args:
        channels: Channels of input and output; twice as many inside.
        states: States of a channel.
    """

    def __init__(self, channels: int, *, states: int = 16):
        super().__init__()
        inner = 2 * channels
        self.in_proj = nn.Conv2d(channels, 2 * inner, 1, bias=False)
        self.conv = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        rank = math.ceil(channels / 16)
        self.scan = DirectionalScan(inner, directions=4, states=states, rank=rank)
        self.norm = LayerNorm2d(inner)
        self.out_proj = nn.Conv2d(inner, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.in_proj(x).chunk(2, dim=1)
        x = F.silu(self.conv(x))
        y = merge_atrous(self.scan(atrous(x)), x.shape[2], x.shape[3])
        y = self.norm(y.to(self.norm.weight.dtype))
        return self.out_proj(y.to(x.dtype) * F.silu(gate))


class ChannelGate(nn.Module):
    """Weight each channel by a gate computed from the mean of the normalised map.

    Args:
        channels: Channels of input and output; an eighth of them inside.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.norm = LayerNorm2d(channels)
        self.reduce = nn.Linear(channels, channels // 8)
        self.expand = nn.Linear(channels // 8, channels)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.expand(F.gelu(self.reduce(self.norm(x).mean((2, 3)))))
        return x * gate.sigmoid()[:, :, None, None]

    def fused(self) -> "ChannelGate":
        """The affine part of the norm, which the mean leaves alone, in the layer after it."""
        if self.norm.weight is None:
            return self
        norm, *affine = split_affine(self.norm)
        return rebuilt(self, norm=norm, reduce=affine_inputs(self.reduce, *affine))


class ScanBlock(nn.Module):
    """A scan and a convolution side by side on the same normalised map, one gate for both.

    Args:
        channels: Channels of input and output.
        drop_path: Probability of leaving the branches out while training.
    """

    def __init__(self, channels: int, *, drop_path: float):
        super().__init__()
        self.norm = LayerNorm2d(channels)
        self.scan = AtrousScan(channels)
        self.filter = ConvNorm(
            channels, channels, kernel_size=3, groups=channels, bias=True, act=nn.GELU
        )
        self.project = nn.Conv2d(channels, channels, 1)
        self.gate = ChannelGate(channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        local = self.project(self.filter(y))
        return x + self.drop_path(self.gate(self.scan(y)) + self.gate(local))


class GatedInvertedResidual(nn.Module):
    """An inverted residual of stride 1 with squeeze and excitation.

    Args:
        channels: Channels of input and output; four times as many inside.
        drop_path: Probability of leaving the branch out while training.
    """

    def __init__(self, channels: int, *, drop_path: float):
        super().__init__()
        hidden = 4 * channels
        self.expand = ConvNorm(channels, hidden, act=nn.ReLU)
        self.filter = ConvNorm(hidden, hidden, kernel_size=3, groups=hidden, act=nn.ReLU)
        self.squeeze = SqueezeExcite(hidden, hidden // 8)
        self.project = ConvNorm(hidden, channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.squeeze(self.filter(self.expand(x))))
        return x + self.drop_path(y)


class PatchMerging(nn.Module):
    """Four neighbours become one pixel: normalised together, then projected (Swin, sec. 3.1).

    An odd side is completed with zeros on the right or below, before the norm.

    Args:
        channels: Channels of the input; twice as many come out.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.norm = LayerNorm2d(4 * channels)
        self.project = nn.Conv2d(4 * channels, 2 * channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
        x = F.pixel_unshuffle(x, 2)  # B 4C H/2 W/2, channel 4 c + 2 dy + dx
        a, b, c, d = x.unflatten(1, (-1, 4)).unbind(2)
        return self.project(self.norm(torch.cat([a, c, b, d], dim=1)))  # by dx, dy, c

    def fused(self) -> "PatchMerging":
        """The affine part of the norm in the projection."""
        if self.norm.weight is None:
            return self
        norm, *affine = split_affine(self.norm)
        return rebuilt(self, norm=norm, project=affine_inputs(self.project, *affine))


class EfficientVMamba(Backbone):
    """Two stages of scans, two of inverted residuals (fig. 2).

    Args:
        depths: Blocks of each stage.
        dims: Channels of each stage.
        num_classes: Number of logits; 0 leaves the classifier out.
        in_chans: Channels of the image.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0.
        global_pool: `"avg"`, `"max"` or `""`.
    """

    def __init__(
        self,
        *,
        depths: tuple[int, ...],
        dims: tuple[int, ...],
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str = "avg",
    ):
        stages = []
        for i, rates in enumerate(linear_rates(drop_path_rate, depths)):
            block = ScanBlock if i < 2 else GatedInvertedResidual
            blocks = [block(dims[i], drop_path=rate) for rate in rates]
            stages.append(Stage(blocks, PatchMerging(dims[i - 1]) if i else None))
        super().__init__(
            stem=nn.Sequential(PatchEmbed(in_chans, dims[0], 4), LayerNorm2d(dims[0])),
            stages=stages,
            norm=LayerNorm2d(dims[-1]),
            head=ClassifierHead(dims[-1], num_classes, pool=global_pool, drop_rate=drop_rate),
            channels=dims,
            strides=(4, 8, 16, 32),
            in_chans=in_chans,
        )
        self.apply(_init)


def _init(module: nn.Module) -> None:
    """The public code draws its linear layers so; ours on maps are 1x1 convolutions."""
    linear = {ChannelGate: ("reduce", "expand"), AtrousScan: ("in_proj", "out_proj")}
    linear |= {PatchMerging: ("project",), ClassifierHead: ("fc",)}
    for name in linear.get(type(module), ()):
        layer = module.get_submodule(name)
        for key, parameter in layer.named_parameters():
            if key == "weight":
                nn.init.trunc_normal_(parameter, std=0.02)
            else:
                nn.init.zeros_(parameter)


_SCAN = [
    (r"op\.x_proj_weight$", "scan.scan.x_proj"),
    (r"op\.dt_projs_weight$", "scan.scan.dt_proj"),
    (r"op\.dt_projs_bias$", "scan.scan.dt_bias"),
    (r"op\.A_logs$", "scan.scan.decay.log"),
    (r"op\.Ds$", "scan.scan.skip"),
    (r"op\.out_norm\.", "scan.norm."),
    (r"op\.conv2d\.", "scan.conv."),
    (r"op\.", "scan."),
    (r"conv_branch\.0\.", "filter.conv."),
    (r"conv_branch\.1\.", "filter.norm."),
    (r"conv_branch\.3\.", "project."),
    (r"se\.global_reduce\.", "gate.reduce."),
    (r"se\.channel_select\.", "gate.expand."),
    (r"se\.", "gate."),
]
_RESIDUAL = [
    (r"conv_pw\.0\.", "expand.conv."),
    (r"conv_pw\.1\.", "expand.norm."),
    (r"conv_dw\.0\.", "filter.conv."),
    (r"conv_dw\.1\.", "filter.norm."),
    (r"se\.conv_reduce\.", "squeeze.reduce."),
    (r"se\.conv_expand\.", "squeeze.expand."),
    (r"conv_pw2\.0\.", "project.conv."),
    (r"conv_pw2\.1\.", "project.norm."),
]
_OLDER = [
    (r"patch_embed\.proj\.", "patch_embed.0."),
    (r"patch_embed\.norm\.", "patch_embed.2."),
    (r"(layers\.[01]\.blocks\.\d+)\.ln_1\.", r"\1.norm."),
    (r"(layers\.[01]\.blocks\.\d+)\.self_attention\.", r"\1.op."),
    (r"norm\.", "classifier.norm."),
    (r"head\.", "classifier.head."),
]


def _from_original(state: State, model: EfficientVMamba) -> State:
    rules = [
        (r"patch_embed\.0\.", "stem.0.project."),
        (r"patch_embed\.2\.", "stem.1."),
        (r"classifier\.norm\.", "norm."),
        (r"classifier\.head\.", "head.fc."),
    ]
    for i, stage in enumerate(model.stages):
        depth = len(list(stage.get_submodule("blocks").children()))
        shift, parts, middle = (0, _SCAN, r"blocks\.") if i < 2 else (1, _RESIDUAL, "")
        for j in range(depth):
            old, new = rf"layers\.{i}\.{middle}{j + shift}\.", f"stages.{i}.blocks.{j}."
            rules += [(old + pattern, new + name) for pattern, name in parts]
            rules += [(old, new)]
        down = r"downsample\." if i < 2 else rf"{depth + 2}\."
        rules += [
            (rf"layers\.{i}\.{down}reduction\.", f"stages.{i + 1}.downsample.project."),
            (rf"layers\.{i}\.{down}norm\.", f"stages.{i + 1}.downsample.norm."),
        ]
    state = rename(rename(state, _OLDER), rules)
    for key, tensor in state.items():  # linear layers on maps are 1x1 convolutions here
        if key.endswith(("in_proj.weight", "out_proj.weight", "downsample.project.weight")):
            state[key] = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
    return state


EfficientVMamba.key_styles = (
    KeyStyle("TerryPei/EfficientVMamba", "layers.0.blocks.0.op.A_logs", _from_original),
    KeyStyle(
        "TerryPei/EfficientVMamba, older", "layers.0.blocks.0.self_attention.A_logs", _from_original
    ),
)

# fmt: off
VARIANTS = {
    "efficientvmamba_tiny":  dict(depths=(2, 2, 4, 2), dims=(48,  96, 192, 384)),
    "efficientvmamba_small": dict(depths=(2, 2, 4, 2), dims=(64, 128, 256, 512)),
    "efficientvmamba_base":  dict(depths=(2, 2, 9, 2), dims=(96, 192, 384, 768)),
}
# fmt: on

for _name, _arguments in VARIANTS.items():
    register(_name, partial(EfficientVMamba, **_arguments))
