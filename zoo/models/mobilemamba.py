"""MobileMamba: wavelets and a scan on some channels, convolutions on others, nothing on the rest.

Paper: He et al., "MobileMamba: Lightweight Multi-Receptive Visual Mamba Network"
       (arXiv 2411.15941), fig. 3 and 4.
Code:  github.com/lewandofskee/MobileMamba @ 0980f48a23d2 (MIT).
Here:  the two directions of the scan are added image by image; the public fallback without CUDA
       adds those of all images of a batch. The Haar filters are constants, not parameters.
       Kept from the public code: the outer skip around blocks whose parts are residual already.
"""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.backbone import Backbone, Stage
from zoo.blocks.conv import ConvNorm
from zoo.blocks.drop import DropPath, linear_rates
from zoo.blocks.folding import rebuilt, scale_outputs
from zoo.blocks.heads import ClassifierHead, DistilledHead, NormLinear
from zoo.blocks.norm import LayerNorm2d
from zoo.blocks.residual import Residual
from zoo.blocks.scale import LayerScale
from zoo.blocks.selective import DirectionalScan, both_ways, merge_both_ways
from zoo.blocks.squeeze import SqueezeExcite
from zoo.errors import BadWeights
from zoo.keys import KeyStyle, State, rename
from zoo.ops import haar, inverse_haar
from zoo.registry import register


class BidirectionalScan(nn.Module):
    """SS2D row by row, forwards and backwards, gated; convolutions with norms project.

    Args:
        channels: Channels of input and output; twice as many inside.
    """

    def __init__(self, channels: int):
        super().__init__()
        inner = 2 * channels
        self.in_proj = ConvNorm(channels, 2 * inner)
        self.conv = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.scan = DirectionalScan(
            inner, directions=2, states=1, rank=math.ceil(channels / 16), init="uniform"
        )
        self.norm = LayerNorm2d(inner)
        self.out_proj = ConvNorm(inner, channels)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.in_proj(x).chunk(2, dim=1)
        x = F.silu(self.conv(x))
        y = merge_both_ways(self.scan(both_ways(x)), x.shape[2], x.shape[3])
        y = self.norm(y.to(self.norm.weight.dtype))
        return self.out_proj(y.to(x.dtype) * F.silu(gate))


class WaveletScan(nn.Module):
    """A scan, plus a convolution of the Haar sub-bands (WTE-Mamba, fig. 4b).

    Args:
        channels: Channels of input and output.
        kernel_size: Of the convolution of the sub-bands.
    """

    def __init__(self, channels: int, kernel_size: int):
        super().__init__()
        bands = 4 * channels
        self.scan = BidirectionalScan(channels)
        self.scan_scale: nn.Module = LayerScale(channels, init=1.0, spatial=True)
        self.filter = nn.Conv2d(
            bands, bands, kernel_size, padding=kernel_size // 2, groups=bands, bias=False
        )
        self.filter_scale: nn.Module = LayerScale(bands, init=0.1, spatial=True)

    def forward(self, x: Tensor) -> Tensor:
        bands = haar(x).flatten(1, 2)  # B 4C H/2 W/2, channel 4 c + band
        bands = self.filter_scale(self.filter(bands))
        local = inverse_haar(bands.unflatten(1, (-1, 4)), x.shape[2], x.shape[3])
        return self.scan_scale(self.scan(x)) + local

    def fused(self) -> "WaveletScan":
        """Both scales in the convolutions before them."""
        if not isinstance(self.scan_scale, LayerScale):
            return self
        out_proj = self.scan.out_proj.scaled(self.scan_scale.gamma)
        assert isinstance(self.filter_scale, LayerScale)
        return rebuilt(
            self,
            scan=rebuilt(self.scan, out_proj=out_proj),
            scan_scale=nn.Identity(),
            filter=scale_outputs(self.filter, self.filter_scale.gamma),
            filter_scale=nn.Identity(),
        )


class Mixer(nn.Module):
    """Channels split three ways: wavelets and scan, a depthwise convolution, nothing (fig. 3).

    Args:
        channels: Channels of input and output.
        global_ratio: Share of the channels that scan, rounded to a multiple of 16.
        local_ratio: Share of the channels that are convolved, as far as there are some left.
        kernel_size: Of both kinds of convolution.
    """

    def __init__(self, channels: int, *, global_ratio: float, local_ratio: float, kernel_size: int):
        super().__init__()
        self.scanned = (int(global_ratio * channels) + 8) // 16 * 16
        self.filtered = min(int(local_ratio * channels), channels - self.scanned)
        self.kept = channels - self.scanned - self.filtered
        self.scan = WaveletScan(self.scanned, kernel_size)
        self.filter = nn.Sequential(
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
        parts = [self.scan(x[:, :start]), self.filter(x[:, start:stop])]
        if self.kept > 0:  # exporters do not like empty tensors
            parts.append(x[:, stop:])
        return self.project(F.relu(torch.cat(parts, dim=1)))


class FeedForward(nn.Module):
    """Two 1x1 convolutions with norms, ReLU between.

    Args:
        channels: Channels of input and output; twice as many between.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.fc1 = ConvNorm(channels, 2 * channels, act=nn.ReLU)
        self.fc2 = ConvNorm(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x))


class MobileMambaBlock(nn.Module):
    """Convolution, MLP, mixer, convolution, MLP, residual each, and a skip around them all.

    Args:
        channels: Channels of input and output.
        drop_path: Probability of leaving the parts out while training.
        **mixer: Settings of the mixer.
    """

    def __init__(self, channels: int, *, drop_path: float, **mixer):
        super().__init__()
        self.filter1 = Residual(_depthwise(channels))
        self.mlp1 = Residual(FeedForward(channels))
        self.mixer = Residual(Mixer(channels, **mixer))
        self.filter2 = Residual(_depthwise(channels))
        self.mlp2 = Residual(FeedForward(channels))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.mixer(self.mlp1(self.filter1(x)))
        return x + self.drop_path(self.mlp2(self.filter2(y)))


def _depthwise(channels: int) -> ConvNorm:
    return ConvNorm(channels, channels, kernel_size=3, groups=channels)


class PatchMerging(nn.Module):
    """An inverted residual of stride 2 with squeeze and excitation, without a skip.

    Args:
        in_channels: Channels of the input; four times as many between.
        out_channels: Channels of the output.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        hidden = 4 * in_channels
        self.expand = ConvNorm(in_channels, hidden, act=nn.ReLU)
        self.filter = ConvNorm(hidden, hidden, kernel_size=3, stride=2, groups=hidden, act=nn.ReLU)
        self.squeeze = SqueezeExcite(hidden, in_channels)
        self.project = ConvNorm(hidden, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.squeeze(self.filter(self.expand(x))))


def _transition(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        Residual(_depthwise(before)),
        Residual(FeedForward(before)),
        PatchMerging(before, after),
        Residual(_depthwise(after)),
        Residual(FeedForward(after)),
    )


class MobileMamba(Backbone):
    """Three stages at strides 16, 32 and 64 (fig. 3a).

    Args:
        dims: Channels of each stage.
        depths: Blocks of each stage.
        num_classes: Number of logits; 0 leaves the classifier out.
        in_chans: Channels of the image.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0.
        global_pool: `"avg"`, `"max"` or `""`.
        distillation: A second classifier, for a teacher's labels.
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
        for i, rates in enumerate(linear_rates(drop_path_rate, depths)):
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
    """The branches of a fresh block are silent."""
    silent: tuple[str, ...] = ()
    if isinstance(module, MobileMambaBlock):
        silent = ("filter1.inner.norm", "mixer.inner.project.norm", "filter2.inner.norm")
    elif isinstance(module, FeedForward):
        silent = ("fc2.norm",)
    elif isinstance(module, NormLinear):
        nn.init.trunc_normal_(module.linear.weight, std=0.02)
        nn.init.zeros_(module.linear.bias)
    for path in silent:
        nn.init.zeros_(module.get_submodule(path).get_parameter("weight"))


_BLOCK = [
    ("dw0.m.", "filter1.inner."),
    ("ffn0.m.pw1.", "mlp1.inner.fc1."),
    ("ffn0.m.pw2.", "mlp1.inner.fc2."),
    ("mixer.m.attn.local_op.dwconv3x3.", "mixer.inner.filter.0.conv."),
    ("mixer.m.attn.local_op.bn1.", "mixer.inner.filter.0.norm."),
    ("mixer.m.attn.local_op.dwconv1x1.", "mixer.inner.filter.1.conv."),
    ("mixer.m.attn.local_op.bn2.", "mixer.inner.filter.1.norm."),
    ("mixer.m.attn.global_op.base_scale.weight", "mixer.inner.scan.scan_scale.gamma"),
    ("mixer.m.attn.global_op.wavelet_convs.0.", "mixer.inner.scan.filter."),
    ("mixer.m.attn.global_op.wavelet_scale.0.weight", "mixer.inner.scan.filter_scale.gamma"),
    ("mixer.m.attn.global_op.global_atten.x_proj_weight", "mixer.inner.scan.scan.scan.x_proj"),
    ("mixer.m.attn.global_op.global_atten.dt_projs_weight", "mixer.inner.scan.scan.scan.dt_proj"),
    ("mixer.m.attn.global_op.global_atten.dt_projs_bias", "mixer.inner.scan.scan.scan.dt_bias"),
    ("mixer.m.attn.global_op.global_atten.A_logs", "mixer.inner.scan.scan.scan.decay.log"),
    ("mixer.m.attn.global_op.global_atten.Ds", "mixer.inner.scan.scan.scan.skip"),
    ("mixer.m.attn.global_op.global_atten.out_norm.", "mixer.inner.scan.scan.norm."),
    ("mixer.m.attn.global_op.global_atten.conv2d.", "mixer.inner.scan.scan.conv."),
    ("mixer.m.attn.global_op.global_atten.", "mixer.inner.scan.scan."),
    ("mixer.m.attn.proj.1.", "mixer.inner.project."),
    ("dw1.m.", "filter2.inner."),
    ("ffn1.m.pw1.", "mlp2.inner.fc1."),
    ("ffn1.m.pw2.", "mlp2.inner.fc2."),
]
_TRANSITION = [
    ("0.0.m.", "0.inner."),
    ("0.1.m.pw1.", "1.inner.fc1."),
    ("0.1.m.pw2.", "1.inner.fc2."),
    ("1.conv1.", "2.expand."),
    ("1.conv2.", "2.filter."),
    ("1.se.fc1.", "2.squeeze.reduce."),
    ("1.se.fc2.", "2.squeeze.expand."),
    ("1.conv3.", "2.project."),
    ("2.0.m.", "3.inner."),
    ("2.1.m.pw1.", "4.inner.fc1."),
    ("2.1.m.pw2.", "4.inner.fc2."),
]


def _from_original(state: State, model: MobileMamba) -> State:
    state = _without_filters(state)
    rules = [
        (r"patch_embed\.(\d)\.", lambda fit: f"stem.{int(fit[1]) // 2}."),
        (r"head_dist\.bn\.", "head.fc_dist.norm."),
        (r"head_dist\.l\.", "head.fc_dist.linear."),
        (r"head\.bn\.", "head.fc.norm."),
        (r"head\.l\.", "head.fc.linear."),
    ]
    for i, stage in enumerate(model.stages):
        old, shift = rf"blocks{i + 1}\.", 3 if i else 0
        for j, _ in enumerate(stage.get_submodule("blocks").children()):
            rules += [
                (rf"{old}{j + shift}\." + a.replace(".", r"\."), f"stages.{i}.blocks.{j}.{b}")
                for a, b in _BLOCK
            ]
        if i:
            rules += [
                (old + a.replace(".", r"\."), f"stages.{i}.downsample.{b}") for a, b in _TRANSITION
            ]
    state = rename(state, rules)
    state = rename(state, [(r"(.+)\.c\.weight$", r"\1.conv.weight"), (r"(.+)\.bn\.", r"\1.norm.")])
    return {
        key: tensor.flatten() if key.endswith("_scale.gamma") else tensor
        for key, tensor in state.items()
    }


def _without_filters(state: State) -> State:
    """Leave out the stored Haar filters: here they are constants, and must be the same.

    Raises:
        BadWeights: A filter that is not the Haar transform's.
    """
    kept: State = {}
    for key, tensor in state.items():
        if not key.endswith(("wt_filter", "iwt_filter")):
            kept[key] = tensor
        elif not torch.allclose(tensor.abs(), torch.full_like(tensor, 0.5), atol=1e-4):
            raise BadWeights(f"{key} holds other filters than the Haar transform's")
    return kept


MobileMamba.key_styles = (
    KeyStyle("lewandofskee/MobileMamba", "patch_embed.0.c.weight", _from_original),
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

for _name, _arguments in VARIANTS.items():
    register(_name, partial(MobileMamba, **_arguments))
