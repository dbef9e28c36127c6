"""EfficientVMamba: atrous selective scans next to convolutions, then inverted residuals.

Paper: Pei et al., "EfficientVMamba: Atrous Selective Scan for Light Weight Visual Mamba"
       (arXiv 2403.09977), fig. 2 and 3.
Code:  github.com/TerryPei/EfficientVMamba @ 0bc5ee288b40 (README: Apache-2.0; no LICENSE file).
Here:  no CUDA extension; sequences are made by slices and stacks, which export. The small variant
       has the width of the published model, 64, not the 96 of the public config.
"""

import math

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from zoo.backbone import Backbone, Stage
from zoo.blocks.conv import ConvNorm
from zoo.blocks.drop import drop_path_rates
from zoo.blocks.folding import Absorbing
from zoo.blocks.heads import ClassifierHead
from zoo.blocks.norm import LayerNorm2d
from zoo.blocks.patches import PatchEmbed
from zoo.blocks.selective import DirectionalScan, atrous, merge_atrous
from zoo.blocks.squeeze import SqueezeExcite
from zoo.blocks.widths import Group, hidden_channels
from zoo.keys import KeyStyle, prefixed


class AtrousScan(nn.Module):
    """Gated SS2D over four interleaved grids of the feature map (section 3.2).

    Args:
        channels: Channels of input and output; twice as many inside.
        d_state: States per channel.
    """

    def __init__(self, channels: int, *, d_state: int = 16):
        super().__init__()
        inner = 2 * channels
        self.in_proj = nn.Conv2d(channels, 2 * inner, 1, bias=False)
        self.conv = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        dt_rank = math.ceil(channels / 16)
        self.scan = DirectionalScan(inner, directions=4, d_state=d_state, dt_rank=dt_rank)
        self.norm = LayerNorm2d(inner)
        self.out_proj = nn.Conv2d(inner, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.in_proj(x).chunk(2, dim=1)  # B 2C H W
        x = F.silu(self.conv(x))
        y = merge_atrous(self.scan(atrous(x)), x.shape[2], x.shape[3])  # B 2C H W
        y = self.norm(y.to(self.norm.weight.dtype))
        return self.out_proj(y.to(x.dtype) * F.silu(gate))  # B C H W


class ChannelGate(Absorbing):
    """Weight each channel by a gate computed from the mean of the normalised feature map.

    Args:
        channels: Channels of input and output; an eighth of them inside.
    """

    absorbs_before = {"reduce": "norm"}

    def __init__(self, channels: int):
        super().__init__()
        self.norm = LayerNorm2d(channels)
        self.reduce = nn.Linear(channels, channels // 8)
        self.expand = nn.Linear(channels // 8, channels)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.expand(F.gelu(self.reduce(self.norm(x).mean((2, 3)))))  # B C
        return x * gate.sigmoid()[:, :, None, None]  # B C H W


class ScanBlock(nn.Module):
    """A scan and a convolution of the same normalised feature map, with one gate for both.

    Args:
        channels: Channels of input and output.
        drop_path: Probability of dropping both branches in training.
    """

    droppable = True

    def __init__(self, channels: int, *, drop_path: float):
        super().__init__()
        self.norm = LayerNorm2d(channels)
        self.scan = AtrousScan(channels)
        self.depthwise = ConvNorm(
            channels, channels, kernel_size=3, groups=channels, bias=True, act=nn.GELU
        )
        self.project = nn.Conv2d(channels, channels, 1)
        self.gate = ChannelGate(channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)  # B C H W
        local = self.project(self.depthwise(y))
        return x + self.drop_path(self.gate(self.scan(y)) + self.gate(local))


class GatedInvertedResidual(nn.Module):
    """An inverted residual of stride 1 with squeeze and excitation.

    Args:
        channels: Channels of input and output; four times as many inside.
        drop_path: Probability of dropping the branch in training.
    """

    droppable = True

    def __init__(self, channels: int, *, drop_path: float):
        super().__init__()
        hidden = 4 * channels
        self.expand = ConvNorm(channels, hidden, act=nn.ReLU)
        self.depthwise = ConvNorm(hidden, hidden, kernel_size=3, groups=hidden, act=nn.ReLU)
        self.squeeze = SqueezeExcite(hidden, hidden // 8)
        self.project = ConvNorm(hidden, channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.squeeze(self.depthwise(self.expand(x))))  # B C H W
        return x + self.drop_path(y)

    def prunable(self) -> list[Group]:
        """Declare the hidden channels."""
        return [
            hidden_channels(self, made=("expand", "depthwise", "squeeze"), read=("project.conv",))
        ]


class PatchMerging(Absorbing):
    """Concatenate four neighbouring pixels into one, normalise and project (Swin, sec. 3.1).

    An odd side is padded with zeros on the right or below, before the norm.

    Args:
        channels: Channels of the input; the output has twice as many.
    """

    absorbs_before = {"project": "norm"}

    def __init__(self, channels: int):
        super().__init__()
        self.norm = LayerNorm2d(4 * channels)
        self.project = nn.Conv2d(4 * channels, 2 * channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
        even, odd = x[:, :, 0::2], x[:, :, 1::2]  # rows
        # B 4C H/2 W/2: channels ordered by dx, dy, c
        x = torch.cat([even[..., 0::2], odd[..., 0::2], even[..., 1::2], odd[..., 1::2]], dim=1)
        return self.project(self.norm(x))  # B 2C H/2 W/2


class EfficientVMamba(Backbone):
    """Two stages of scans, two of inverted residuals (fig. 2).

    Args:
        depths: Number of blocks in each stage.
        dims: Channels of each stage.
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
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
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
    """Initialise the layers that are linear in the public code; some are 1x1 convolutions here."""
    linear = {ChannelGate: ("reduce", "expand"), AtrousScan: ("in_proj", "out_proj")}
    linear |= {PatchMerging: ("project",), ClassifierHead: ("fc",)}
    for name in linear.get(type(module), ()):
        layer = module.get_submodule(name)
        for key, parameter in layer.named_parameters():
            if key == "weight":
                nn.init.trunc_normal_(parameter, std=0.02)
            else:
                nn.init.zeros_(parameter)


SCAN = (
    *prefixed(
        r"(?:op|self_attention)\.",
        "scan.",
        (
            (r"x_proj_weight$", "scan.x_proj"),
            (r"dt_projs_weight$", "scan.dt_proj"),
            (r"dt_projs_bias$", "scan.dt_bias"),
            (r"A_logs$", "scan.decay.log"),
            (r"Ds$", "scan.skip"),
            (r"out_norm\.", "norm."),
            (r"conv2d\.", "conv."),
            ("", ""),
        ),
    ),
    (r"conv_branch\.0\.", "depthwise.conv."),
    (r"conv_branch\.1\.", "depthwise.norm."),
    (r"conv_branch\.3\.", "project."),
    (r"se\.global_reduce\.", "gate.reduce."),
    (r"se\.channel_select\.", "gate.expand."),
    (r"se\.", "gate."),
    (r"(?:ln_1|norm)\.", "norm."),
)
INVERTED_RESIDUAL = (
    (r"conv_pw\.0\.", "expand.conv."),
    (r"conv_pw\.1\.", "expand.norm."),
    (r"conv_dw\.0\.", "depthwise.conv."),
    (r"conv_dw\.1\.", "depthwise.norm."),
    (r"se\.conv_(?P<part>reduce|expand)\.", r"squeeze.\g<part>."),
    (r"conv_pw2\.0\.", "project.conv."),
    (r"conv_pw2\.1\.", "project.norm."),
)
DOWNSAMPLE = ((r"reduction\.", "project."), (r"norm\.", "norm."))
ROWS = (
    (r"patch_embed\.(?:0|proj)\.", "stem.0.project."),
    (r"patch_embed\.(?:2|norm)\.", "stem.1."),
    (r"(?:classifier\.)?norm\.", "norm."),
    (r"(?:classifier\.)?head\.", "head.fc."),
    *prefixed(r"layers\.([01])\.blocks\.(\d+)\.", r"stages.\1.blocks.\2.", SCAN),
    *prefixed(r"layers\.([01])\.downsample\.", "stages.{1+1}.downsample.", DOWNSAMPLE),
    # Layer 0 of stages 2 and 3 does not expand; the last layer of stage 2 downsamples.
    *prefixed(r"layers\.2\.\d+\.", "stages.3.downsample.", DOWNSAMPLE),
    *prefixed(r"layers\.([23])\.(\d+)\.", r"stages.\1.blocks.{2-1}.", INVERTED_RESIDUAL),
)
KEY_STYLES = (
    KeyStyle("TerryPei/EfficientVMamba", "layers.0.blocks.0.op.A_logs", rows=ROWS),
    KeyStyle(
        "TerryPei/EfficientVMamba, older", "layers.0.blocks.0.self_attention.A_logs", rows=ROWS
    ),
)

# fmt: off
VARIANTS = {
    "efficientvmamba_tiny":  dict(depths=(2, 2, 4, 2), dims=(48,  96, 192, 384)),
    "efficientvmamba_small": dict(depths=(2, 2, 4, 2), dims=(64, 128, 256, 512)),
    "efficientvmamba_base":  dict(depths=(2, 2, 9, 2), dims=(96, 192, 384, 768)),
}
# fmt: on

EfficientVMamba.register_family(VARIANTS, KEY_STYLES)
