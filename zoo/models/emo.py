"""EMO and EMOv2: one inverted residual block whose expansion may be windowed attention.

Paper: Zhang et al., "Rethinking Mobile Block for Efficient Attention-based Models"
       (arXiv 2301.01146), fig. 3, table 1; Zhang et al., "EMOv2: Pushing 5M Vision Model Frontier"
       (arXiv 2412.06674), fig. 3: two kinds of windows that share queries, keys and values.
Code:  github.com/zhangzjn/EMO @ 27d9b40fea9c, github.com/zhangzjn/EMOv2 @ 582a96fe63f1 (no licence;
       written from a description).
Here:  feature maps are padded with zeros to whole windows, before the convolutions that compute
       queries, keys and values, and without a mask, as in the public code: padded pixels are keys.
       The weights do not depend on `window_size`: the authors' detectors and segmenters use 10
       and 16 with the weights of 7. `emo1_*` of the second paper have only grid windows, like
       EMO, but project values first, so EMO's weights do not fit.
       No tensor has more than five axes, the limit of mobile runtimes.
"""

from typing import Any

import torch.fx
from timm.layers import DropPath
from torch import Tensor, nn

from zoo.backbone import Backbone, Stage
from zoo.blocks.conv import ConvNorm
from zoo.blocks.drop import drop_path_rates
from zoo.blocks.folding import Absorbing, scale_queries
from zoo.blocks.heads import ClassifierHead
from zoo.blocks.init import init_linear
from zoo.blocks.norm import LayerNorm2d
from zoo.blocks.scale import LayerScale
from zoo.blocks.sizes import whole_number
from zoo.blocks.squeeze import SqueezeExcite
from zoo.blocks.widths import Group, hidden_channels
from zoo.blocks.window_attention import attend_in_windows, pad_to_windows
from zoo.keys import KeyStyle

STEM = 24  # channels of the stem of version 1
# For each of the four stages: the activation of mixers, and whether later blocks attend.
ACTS = (nn.SiLU, nn.SiLU, nn.GELU, nn.GELU)
ATTENDS = (False, False, True, True)


torch.fx.wrap("pad_to_windows")
torch.fx.wrap("attend_in_windows")


class PointwiseMixer(nn.Module):
    """A 1x1 convolution with bias and an activation: the mixer of blocks without attention.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        act: Class of the activation.
    """

    input_layers = ("value",)

    def __init__(self, in_channels: int, out_channels: int, *, act: type[nn.Module]):
        super().__init__()
        self.value = nn.Conv2d(in_channels, out_channels, 1)
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.value(x))  # B C' H W


class WindowMixer(nn.Module):
    """Attention in windows, the mixer of later blocks: B C H W -> B V H W.

    EMOv2 projects and activates the values before the attention, EMO (`raw_values`) after it.

    Args:
        channels: Channels of the input, a multiple of `head_dim`.
        out_channels: Channels of the output.
        side: Side of a window.
        head_dim: Channels of a head's queries and keys.
        act: Class of the activation.
        block_windows: Whether to add the attention in block windows to that in grid windows.
        raw_values: Project values after the attention, not before.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        *,
        side: int,
        head_dim: int,
        act: type[nn.Module],
        block_windows: bool,
        raw_values: bool = False,
    ):
        super().__init__()
        self.side, self.block_windows, self.raw_values = side, block_windows, raw_values
        self.num_heads = channels // head_dim
        self.scale = head_dim**-0.5
        self.qk = nn.Conv2d(channels, 2 * channels, 1)
        self.value = nn.Conv2d(channels, out_channels, 1)
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2], x.shape[3]
        x = pad_to_windows(x, self.side)
        v = x if self.raw_values else self.act(self.value(x))
        y = attend_in_windows(
            self.qk(x), v, self.side, self.num_heads, self.scale, self.block_windows
        )
        y = y[:, :, :height, :width]  # B V H W
        return self.act(self.value(y)) if self.raw_values else y

    def fused(self) -> "WindowMixer":
        """Fold the scale of the products into the queries."""
        return scale_queries(self, "qk", self.qk.out_channels // 2)


class MobileBlock(Absorbing):
    """Norm, expanding mixer, depthwise convolution with a shortcut, projection (fig. 3, sec. 3.3).

    Both shortcuts require stride 1, and as many output channels as input channels. The norm is not
    folded into attention, which pads with zeros after it.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        hidden: Output channels of the mixer.
        norm: Norm of the input.
        mixer: Token mixer from `in_channels` to `hidden` channels.
        kernel_size: Kernel size of the depthwise convolution.
        stride: Stride of the depthwise convolution.
        layer_scale: Initial layer scale; None: no layer scale.
        drop_path: Probability of dropping the branch in training.
    """

    absorbs_before = {"mixer": "norm"}
    absorbs_after = {"project": "scale"}

    __jit_unused_properties__ = ["droppable"]  # TorchScript would compile it

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        hidden: int,
        norm: nn.Module,
        mixer: nn.Module,
        kernel_size: int,
        stride: int = 1,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.residual = stride == 1 and in_channels == out_channels
        self.norm = norm
        self.mixer = mixer
        self.local = ConvNorm(
            hidden, hidden, kernel_size=kernel_size, stride=stride, groups=hidden, act=nn.SiLU
        )
        self.project = nn.Conv2d(hidden, out_channels, 1, bias=False)
        self.scale: nn.Module = nn.Identity()
        if layer_scale is not None:
            self.scale = LayerScale(out_channels, init=layer_scale, spatial=True)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.mixer(self.norm(x))  # B hidden H W
        z = self.local(y)
        if self.residual:
            return x + self.drop_path(self.scale(self.project(y + z)))
        return self.scale(self.project(z))  # B C H/stride W/stride

    def prunable(self) -> list[Group]:
        """Declare the hidden channels: of attended values, as many in each head."""
        mixer = self.mixer
        attends = isinstance(mixer, WindowMixer) and not mixer.raw_values
        parts: Any = mixer.num_heads if attends else 1
        made = ("mixer.value", "local")
        return [hidden_channels(self, made=made, read=("project",), parts=parts)]

    @property
    def droppable(self) -> bool:
        """Whether the block adds a branch to its input, and does nothing else."""
        return self.residual


class EMO(Backbone):
    """A convolutional stage, then four stages of mobile blocks; the last two attend.

    Args:
        depths: Number of blocks in each of the last four stages.
        dims: Channels of the last four stages.
        ratios: Expansion of the blocks of each stage; the first block has twice as much.
        head_dims: Channels of a head's queries and keys in each stage.
        version: 1: EMO. 2: EMOv2, whose stem is simpler and which projects values before attention.
        kernels: Kernel size of the depthwise convolutions in each stage.
        block_windows: Attend in block windows as well as in grid windows.
        window_size: Side of the windows of attention.
        layer_scale: Initial layer scale; None: no layer scale.
    """

    def __init__(
        self,
        *,
        depths: tuple[int, ...],
        dims: tuple[int, ...],
        ratios: tuple[float, ...],
        head_dims: tuple[int, ...],
        version: int = 1,
        kernels: tuple[int, ...] = (3, 3, 5, 5),
        block_windows: bool = False,
        window_size: int = 7,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str = "avg",
        layer_scale: float | None = None,
    ):
        whole_number(window_size, "window_size", 1)
        stem = STEM if version == 1 else dims[0] // 2
        stages, before = [Stage([_stem_block(stem, gated=version == 1)])], stem
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            units = []
            for j, rate in enumerate(rates):
                hidden = int(before * ratios[i] * (1 if j else 2))
                mixer: nn.Module = PointwiseMixer(before, hidden, act=ACTS[i])
                if j and ATTENDS[i]:
                    mixer = WindowMixer(
                        before,
                        hidden,
                        side=window_size,
                        head_dim=head_dims[i],
                        act=ACTS[i],
                        block_windows=block_windows,
                        raw_values=version == 1,
                    )
                unit = MobileBlock(
                    before,
                    dims[i],
                    hidden=hidden,
                    norm=LayerNorm2d(before) if ATTENDS[i] else nn.BatchNorm2d(before),
                    mixer=mixer,
                    kernel_size=kernels[i],
                    stride=1 if j else 2,
                    layer_scale=layer_scale,
                    drop_path=rate,
                )
                units.append(unit)
                before = dims[i]
            stages.append(Stage(units))
        act = None if version == 1 else nn.SiLU
        super().__init__(
            stem=ConvNorm(in_chans, stem, kernel_size=3, stride=2, bias=True, act=act),
            stages=stages,
            norm=LayerNorm2d(dims[-1]),
            head=ClassifierHead(dims[-1], num_classes, pool=global_pool, drop_rate=drop_rate),
            channels=(stem, *dims),
            strides=(2, 4, 8, 16, 32),
            in_chans=in_chans,
        )
        self.apply(_init)


def _stem_block(channels: int, *, gated: bool) -> nn.Sequential:
    """Return a mobile block without norm, mixer or shortcut; in version 1 it has a gate."""
    return nn.Sequential(
        ConvNorm(channels, channels, kernel_size=3, groups=channels, act=nn.SiLU),
        *([SqueezeExcite(channels, channels, act=nn.SiLU)] if gated else []),
        nn.Conv2d(channels, channels, 1, bias=False),
    )


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
        module.eps = 1e-6
    init_linear(module)


ROWS = (
    (r"stage([1-4])\.(\d+)\.norm\.(?:norm\.)?", r"stages.\1.blocks.\2.norm."),
    (r"stage([1-4])\.(\d+)\.(?:eops\.0\.)?qk\.conv\.", r"stages.\1.blocks.\2.mixer.qk."),
    (
        r"stage([1-4])\.(\d+)\.(?:eops\.0\.)?(?:v|net)\.conv\.",
        r"stages.\1.blocks.\2.mixer.value.",
    ),
    (r"stage([1-4])\.(\d+)\.conv_local\.", r"stages.\1.blocks.\2.local."),
    (r"stage([1-4])\.(\d+)\.proj\.conv\.", r"stages.\1.blocks.\2.project."),
    (r"stage([1-4])\.(\d+)\.ls\.", r"stages.\1.blocks.\2.scale."),
    (r"norm\.norm\.", "norm."),
    (r"head\.", "head.fc."),
)
STEM1 = (
    (r"stage0\.0\.convs\.0\.0\.", "stem.conv."),
    (r"stage0\.0\.convs\.0\.1\.", "stem.norm."),
    (r"stage0\.1\.conv_local\.", "stages.0.blocks.0.0."),
    (r"stage0\.1\.se\.conv_(\w+)\.", r"stages.0.blocks.0.1.\1."),
    (r"stage0\.1\.proj\.conv\.", "stages.0.blocks.0.2."),
)
STEM2 = (
    (r"stage0\.0\.", "stem."),
    (r"stage0\.1\.", "stages.0.blocks.0.0."),
    (r"stage0\.2\.conv\.", "stages.0.blocks.0.1."),
)
KEY_STYLES = (
    KeyStyle("zhangzjn/EMO", "stage0.0.convs.0.0.weight", rows=(*STEM1, *ROWS)),
    KeyStyle("zhangzjn/EMOv2", "stage0.0.conv.weight", rows=(*STEM2, *ROWS)),
)

_HALVES, _WHOLES = (2, 2.5, 3, 3.5), (2, 3, 4, 4)
# fmt: off
VARIANTS = {
    "emo_1m": dict(depths=(2, 2, 8, 3), dims=(32, 48,  80, 168), ratios=_HALVES,
                   head_dims=(16, 16, 20, 21)),
    "emo_2m": dict(depths=(3, 3, 9, 3), dims=(32, 48, 120, 200), ratios=_HALVES,
                   head_dims=(16, 16, 20, 20)),
    "emo_5m": dict(depths=(3, 3, 9, 3), dims=(48, 72, 160, 288), ratios=_WHOLES,
                   head_dims=(24, 24, 32, 32)),
    "emo_6m": dict(depths=(3, 3, 9, 3), dims=(48, 72, 160, 320), ratios=(2, 3, 4, 5),
                   head_dims=(16, 24, 20, 32)),
}
SIZES = {
    "1m":  dict(depths=(2, 2,  8, 3), dims=(32,  48,  80, 180), ratios=_HALVES,
                head_dims=(16, 16, 20, 20)),
    "2m":  dict(depths=(3, 3,  9, 3), dims=(32,  48, 120, 200), ratios=_HALVES,
                head_dims=(16, 16, 20, 20)),
    "5m":  dict(depths=(3, 3,  9, 3), dims=(48,  72, 160, 288), ratios=_WHOLES,
                head_dims=(16, 24, 32, 32)),
    "20m": dict(depths=(3, 3, 13, 3), dims=(64, 128, 320, 448), ratios=_WHOLES,
                head_dims=(16, 32, 32, 32)),
    "50m": dict(depths=(5, 8, 20, 7), dims=(64, 128, 384, 512), ratios=_WHOLES,
                head_dims=(16, 32, 32, 32)),
}
# fmt: on
EMO2 = dict(version=2, kernels=(5, 5, 5, 5), block_windows=True, layer_scale=1e-6)
VARIANTS |= {f"emo2_{size}_k5_hybrid": EMO2 | arguments for size, arguments in SIZES.items()}
VARIANTS |= {
    f"emo2_{size}_k5_hybrid_{pixels}": dict(EMO2 | SIZES[size], window_size=8)
    for pixels, sizes in ((256, ("1m", "2m", "5m", "20m")), (512, ("1m", "2m", "5m")))
    for size in sizes
}
EMO1 = dict(version=2, layer_scale=1e-6)
VARIANTS |= {f"emo1_{size}": EMO1 | SIZES[size] for size in ("1m", "2m", "5m", "20m")}

EMO.register_family(VARIANTS, KEY_STYLES)
