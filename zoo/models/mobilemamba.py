"""MobileMamba: a wavelet scan on some channels, convolutions on others, identity on the rest.

Paper: He et al., "MobileMamba: Lightweight Multi-Receptive Visual Mamba Network"
       (arXiv 2411.15941), fig. 3 and 4.
Code:  github.com/lewandofskee/MobileMamba @ 0980f48a23d2 (MIT).
Here:  the two directions of the scan are added image by image; the public fallback without CUDA
       adds those of all images of a batch. The Haar filters are constants, not parameters.
       As in the public code, a skip surrounds blocks whose parts are already residual.
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
from zoo.blocks.heads import ClassifierHead, DistilledHead, NormLinear
from zoo.blocks.mlp import ConvMlp
from zoo.blocks.norm import LayerNorm2d
from zoo.blocks.residual import Residual
from zoo.blocks.scale import LayerScale
from zoo.blocks.selective import DirectionalScan, both_ways, merge_both_ways
from zoo.blocks.squeeze import SqueezeExcite
from zoo.blocks.widths import Group, hidden_channels
from zoo.errors import BadWeights
from zoo.keys import KeyStyle, State, prefixed
from zoo.ops import haar, inverse_haar


class BidirectionalScan(nn.Module):
    """Gated SS2D row by row, forwards and backwards, with norms after the projections.

    Args:
        channels: Channels of input and output; twice as many inside.
    """

    output_parts = ("out_proj",)

    def __init__(self, channels: int):
        super().__init__()
        inner = 2 * channels
        self.in_proj = ConvNorm(channels, 2 * inner)
        self.conv = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.scan = DirectionalScan(
            inner, directions=2, d_state=1, dt_rank=math.ceil(channels / 16), init="uniform"
        )
        self.norm = LayerNorm2d(inner)
        self.out_proj = ConvNorm(inner, channels)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.in_proj(x).chunk(2, dim=1)  # B 2C H W
        x = F.silu(self.conv(x))
        y = merge_both_ways(self.scan(both_ways(x)), x.shape[2], x.shape[3])  # B 2C H W
        y = self.norm(y.to(self.norm.weight.dtype))
        return self.out_proj(y.to(x.dtype) * F.silu(gate))  # B C H W


class WaveletScan(Absorbing):
    """A scan, plus a convolution of the Haar sub-bands (WTE-Mamba, fig. 4b).

    Args:
        channels: Channels of input and output.
        kernel_size: Kernel size of the convolution of the sub-bands.
    """

    absorbs_after = {"scan": "scan_scale", "depthwise": "depthwise_scale"}

    def __init__(self, channels: int, kernel_size: int):
        super().__init__()
        bands = 4 * channels
        self.scan = BidirectionalScan(channels)
        self.scan_scale: nn.Module = LayerScale(channels, init=1.0, spatial=True)
        self.depthwise = nn.Conv2d(
            bands, bands, kernel_size, padding=kernel_size // 2, groups=bands, bias=False
        )
        self.depthwise_scale: nn.Module = LayerScale(bands, init=0.1, spatial=True)

    def forward(self, x: Tensor) -> Tensor:
        bands = haar(x).flatten(1, 2)  # B 4C H/2 W/2, channel 4 c + band
        bands = self.depthwise_scale(self.depthwise(bands))
        local = inverse_haar(bands.unflatten(1, (-1, 4)), x.shape[2], x.shape[3])
        return self.scan_scale(self.scan(x)) + local  # B C H W


class Mixer(nn.Module):
    """Channels split three ways: wavelet scan, depthwise convolution, identity (fig. 3).

    Args:
        channels: Channels of input and output.
        global_ratio: Share of the channels that scan, rounded to a multiple of 16.
        local_ratio: Share of the channels that are convolved, at most the rest.
        kernel_size: Kernel size of both kinds of convolution.
    """

    def __init__(self, channels: int, *, global_ratio: float, local_ratio: float, kernel_size: int):
        super().__init__()
        self.scanned = (int(global_ratio * channels) + 8) // 16 * 16
        self.filtered = min(int(local_ratio * channels), channels - self.scanned)
        self.kept = channels - self.scanned - self.filtered
        self.scan = WaveletScan(self.scanned, kernel_size)
        self.depthwise = nn.Sequential(
            ConvNorm(
                self.filtered,
                self.filtered,
                kernel_size=kernel_size,
                groups=self.filtered,
                act=nn.ReLU,
            ),
            ConvNorm(self.filtered, self.filtered, groups=self.filtered),
        )
        self.project = ConvNorm(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        start, stop = self.scanned, self.scanned + self.filtered
        parts = [self.scan(x[:, :start]), self.depthwise(x[:, start:stop])]
        if self.kept > 0:  # exporters do not support empty tensors
            parts.append(x[:, stop:])
        return self.project(F.relu(torch.cat(parts, dim=1)))  # B C H W


class MobileMambaBlock(nn.Module):
    """Five residual parts (convolution, MLP, mixer, convolution, MLP) and a skip around them.

    Args:
        channels: Channels of input and output.
        drop_path: Probability of dropping all parts in training.
        **mixer: Arguments of `Mixer`.
    """

    droppable = True

    def __init__(self, channels: int, *, drop_path: float, **mixer):
        super().__init__()
        self.depthwise1 = Residual(_depthwise(channels))
        self.mlp1 = Residual(ConvMlp(channels, 2 * channels))
        self.mixer = Residual(Mixer(channels, **mixer))
        self.depthwise2 = Residual(_depthwise(channels))
        self.mlp2 = Residual(ConvMlp(channels, 2 * channels))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.mixer(self.mlp1(self.depthwise1(x)))  # B C H W
        return x + self.drop_path(self.mlp2(self.depthwise2(y)))


def _depthwise(channels: int) -> ConvNorm:
    return ConvNorm(channels, channels, kernel_size=3, groups=channels)


class PatchMerging(nn.Module):
    """An inverted residual of stride 2 with squeeze and excitation, without a skip.

    Args:
        in_channels: Channels of the input; four times as many inside.
        out_channels: Channels of the output.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        hidden = 4 * in_channels
        self.expand = ConvNorm(in_channels, hidden, act=nn.ReLU)
        self.depthwise = ConvNorm(
            hidden, hidden, kernel_size=3, stride=2, groups=hidden, act=nn.ReLU
        )
        self.squeeze = SqueezeExcite(hidden, in_channels)
        self.project = ConvNorm(hidden, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.squeeze(self.depthwise(self.expand(x))))  # B C' H/2 W/2

    def prunable(self) -> list[Group]:
        """Declare the hidden channels."""
        return [
            hidden_channels(self, made=("expand", "depthwise", "squeeze"), read=("project.conv",))
        ]


def _transition(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        Residual(_depthwise(before)),
        Residual(ConvMlp(before, 2 * before)),
        PatchMerging(before, after),
        Residual(_depthwise(after)),
        Residual(ConvMlp(after, 2 * after)),
    )


class MobileMamba(Backbone):
    """Three stages at strides 16, 32 and 64 (fig. 3a).

    Args:
        dims: Channels of each stage.
        depths: Number of blocks in each stage.
        distillation: Add a second classifier for a teacher's labels.
    """

    def __init__(
        self,
        *,
        dims: tuple[int, ...],
        depths: tuple[int, ...],
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str = "avg",
        distillation: bool = False,
    ):
        shares = ((0.8, 0.2, 7), (0.7, 0.2, 5), (0.6, 0.3, 3))
        stages = []
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            global_ratio, local_ratio, kernel_size = shares[i]
            blocks = [
                MobileMambaBlock(
                    dims[i],
                    drop_path=rate,
                    global_ratio=global_ratio,
                    local_ratio=local_ratio,
                    kernel_size=kernel_size,
                )
                for rate in rates
            ]
            stages.append(Stage(blocks, _transition(dims[i - 1], dims[i]) if i else None))
        widths = (in_chans, dims[0] // 8, dims[0] // 4, dims[0] // 2, dims[0])
        head = DistilledHead if distillation else ClassifierHead
        super().__init__(
            stem=nn.Sequential(
                *(
                    ConvNorm(
                        widths[i],
                        widths[i + 1],
                        kernel_size=3,
                        stride=2,
                        act=nn.ReLU if i < 3 else None,
                    )
                    for i in range(4)
                )
            ),
            stages=stages,
            norm=nn.Identity(),
            head=head(dims[-1], num_classes, pool=global_pool, drop_rate=drop_rate, norm="batch"),
            channels=dims,
            strides=(16, 32, 64),
            in_chans=in_chans,
        )
        self.apply(_init)


def _init(module: nn.Module) -> None:
    """Initialise the last norm of each branch to zero, and the classifiers."""
    silent: tuple[str, ...] = ()
    if isinstance(module, MobileMambaBlock):
        silent = ("depthwise1.inner.norm", "mixer.inner.project.norm", "depthwise2.inner.norm")
    elif isinstance(module, ConvMlp):
        silent = ("fc2.norm",)
    elif isinstance(module, NormLinear):
        nn.init.trunc_normal_(module.linear.weight, std=0.02)
        nn.init.zeros_(module.linear.bias)
    for path in silent:
        nn.init.zeros_(module.get_submodule(path).get_parameter("weight"))


def _without_filters(state: State, model: MobileMamba) -> State:
    """Check and drop the stored Haar filters, which are constants here.

    Raises:
        BadWeights: A filter is not that of the Haar transform.
    """
    kept: State = {}
    for key, tensor in state.items():
        if not key.endswith(("wt_filter", "iwt_filter")):
            kept[key] = tensor
        elif not torch.allclose(tensor.abs(), torch.full_like(tensor, 0.5), atol=1e-4):
            raise BadWeights(f"{key} is not a filter of the Haar transform")
    return kept


BLOCK = (
    (r"dw0\.m\.", "depthwise1.inner."),
    (r"ffn0\.m\.pw(?P<n>\d)\.", r"mlp1.inner.fc\g<n>."),
    (r"mixer\.m\.attn\.local_op\.dwconv3x3\.", "mixer.inner.depthwise.0.conv."),
    (r"mixer\.m\.attn\.local_op\.bn1\.", "mixer.inner.depthwise.0.norm."),
    (r"mixer\.m\.attn\.local_op\.dwconv1x1\.", "mixer.inner.depthwise.1.conv."),
    (r"mixer\.m\.attn\.local_op\.bn2\.", "mixer.inner.depthwise.1.norm."),
    (r"mixer\.m\.attn\.global_op\.base_scale\.weight$", "mixer.inner.scan.scan_scale.gamma"),
    (r"mixer\.m\.attn\.global_op\.wavelet_convs\.0\.", "mixer.inner.scan.depthwise."),
    (
        r"mixer\.m\.attn\.global_op\.wavelet_scale\.0\.weight$",
        "mixer.inner.scan.depthwise_scale.gamma",
    ),
    *prefixed(
        r"mixer\.m\.attn\.global_op\.global_atten\.",
        "mixer.inner.scan.scan.",
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
    (r"mixer\.m\.attn\.proj\.1\.", "mixer.inner.project."),
    (r"dw1\.m\.", "depthwise2.inner."),
    (r"ffn1\.m\.pw(?P<n>\d)\.", r"mlp2.inner.fc\g<n>."),
)
TRANSITION = (
    (r"0\.0\.m\.", "0.inner."),
    (r"0\.1\.m\.pw(?P<n>\d)\.", r"1.inner.fc\g<n>."),
    (r"1\.conv1\.", "2.expand."),
    (r"1\.conv2\.", "2.depthwise."),
    (r"1\.se\.fc1\.", "2.squeeze.reduce."),
    (r"1\.se\.fc2\.", "2.squeeze.expand."),
    (r"1\.conv3\.", "2.project."),
    (r"2\.0\.m\.", "3.inner."),
    (r"2\.1\.m\.pw(?P<n>\d)\.", r"4.inner.fc\g<n>."),
)
KEY_STYLES = (
    KeyStyle(
        "lewandofskee/MobileMamba",
        "patch_embed.0.c.weight",
        rows=(
            (r"patch_embed\.(\d)\.", "stem.{1//2}."),
            (r"head(|_dist)\.bn\.", r"head.fc\1.norm."),
            (r"head(|_dist)\.l\.", r"head.fc\1.linear."),
            *prefixed(r"blocks1\.(\d+)\.", r"stages.0.blocks.\1.", BLOCK),
            # Later stages start with the three layers that downsample.
            *prefixed(r"blocks(\d)\.", "stages.{1-1}.downsample.", TRANSITION),
            *prefixed(r"blocks(\d)\.(\d+)\.", "stages.{1-1}.blocks.{2-3}.", BLOCK),
        ),
        inside=((r"\.c\.weight$", ".conv.weight"), (r"\.bn\.", ".norm.")),
        tensors=_without_filters,
    ),
)

# fmt: off
VARIANTS = {
    "mobilemamba_t2": dict(dims=(144, 272, 368), depths=(1, 2, 2)),
    "mobilemamba_t4": dict(dims=(176, 368, 448), depths=(1, 2, 2)),
    "mobilemamba_s6": dict(dims=(192, 384, 448), depths=(1, 2, 2)),
    "mobilemamba_b1": dict(dims=(200, 376, 448), depths=(2, 3, 2)),
    "mobilemamba_b2": dict(dims=(200, 376, 448), depths=(2, 3, 2)),
    "mobilemamba_b4": dict(dims=(200, 376, 448), depths=(2, 3, 2)),
}
# fmt: on

MobileMamba.register_family(VARIANTS, KEY_STYLES)
