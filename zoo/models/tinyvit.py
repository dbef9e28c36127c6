"""TinyViT: inverted residuals, then attention in windows with a convolution between its parts.

Paper: Wu et al., "TinyViT: Fast Pretraining Distillation for Small Vision Transformers"
       (arXiv 2207.10666), section 3.2 and table 1.
Code:  github.com/microsoft/Cream, folder TinyViT, @ 4a13c4091e78 (MIT), and timm's tiny_vit.py
       (Apache-2.0), which compute the same function; both key styles are read.
Here:  the attention bias is looked up in every forward, never cached. Maps that are no multiples of
       the window are padded as in timm; the authors' code takes multiples of 32 alone. Tables
       learnt in other windows are resampled on loading.
"""

import re
from functools import partial

from torch import Tensor, nn

from zoo.backbone import Backbone, Stage
from zoo.blocks.attention import OffsetBias
from zoo.blocks.conv import ConvNorm
from zoo.blocks.drop import DropPath, linear_rates
from zoo.blocks.folding import rebuilt, split_affine
from zoo.blocks.heads import ClassifierHead
from zoo.blocks.init import init_linear
from zoo.blocks.inverted_residual import InvertedResidual
from zoo.blocks.mlp import Mlp
from zoo.blocks.windows import WindowAttention, resample_window_table
from zoo.errors import BadInput
from zoo.keys import KeyStyle, State, rename
from zoo.registry import register

HEAD_DIM = 32


class ActivatedResidual(InvertedResidual):
    """An inverted residual whose sum is activated (section 3.2, "MBConv").

    Args:
        channels: Channels of input and output; four times as many between.
        drop_path: Probability of leaving the branch out while training.
    """

    def __init__(self, channels: int, *, drop_path: float):
        super().__init__(channels, channels, expansion=4, act=nn.GELU, drop_path=drop_path)
        self.act = nn.GELU()
        nn.init.zeros_(self.project.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.filter(self.expand(x)))
        return self.act(x + self.drop_path(y))


class WindowBlock(nn.Module):
    """Attention in windows, a depthwise convolution without shortcut, an MLP (section 3.2).

    Args:
        channels: Channels of input and output.
        side: Of a window.
        drop_path: Probability of leaving a branch out while training.
    """

    def __init__(self, channels: int, side: int, *, drop_path: float):
        super().__init__()
        self.window = WindowAttention(channels, channels // HEAD_DIM, side)
        self.local = ConvNorm(channels, channels, kernel_size=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, 4 * channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.local(x + self.drop_path(self.window(x)))
        x = x.permute(0, 2, 3, 1)  # B H W C
        x = x + self.drop_path(self.mlp(self.norm(x)))
        return x.permute(0, 3, 1, 2)

    def fused(self) -> "WindowBlock":
        """The affine part of the norm in the MLP."""
        if not self.norm.elementwise_affine:
            return self
        norm, *affine = split_affine(self.norm)
        return rebuilt(self, norm=norm, mlp=self.mlp.after_affine(*affine))


def _merging(in_channels: int, out_channels: int) -> nn.Sequential:
    """Halve a map and change its channels: two 1x1 convolutions around a depthwise one."""
    return nn.Sequential(
        ConvNorm(in_channels, out_channels, act=nn.GELU),
        ConvNorm(
            out_channels, out_channels, kernel_size=3, stride=2, groups=out_channels, act=nn.GELU
        ),
        ConvNorm(out_channels, out_channels),
    )


class TinyViT(Backbone):
    """A stage of inverted residuals, three of attention in windows (table 1).

    Args:
        dims: Channels of each stage.
        depths: Blocks of each stage.
        window_sizes: Sides of the windows of stages 2 to 4; any map is padded to multiples.
        num_classes: Number of logits; 0 leaves the classifier out.
        in_chans: Channels of the image.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0.
        global_pool: `"avg"`, `"max"` or `""`.

    Raises:
        BadInput: Window sizes that cannot be.
    """

    def __init__(
        self,
        *,
        dims: tuple[int, ...],
        depths: tuple[int, ...] = (2, 2, 6, 2),
        window_sizes: tuple[int, ...] = (7, 14, 7),
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str = "avg",
    ):
        if len(window_sizes) != 3 or not all(type(s) is int and s > 0 for s in window_sizes):
            raise BadInput(f"window_sizes={window_sizes!r}: give the sides of stages 2 to 4")
        rates = linear_rates(drop_path_rate, depths)
        stages = [Stage([ActivatedResidual(dims[0], drop_path=rate) for rate in rates[0]])]
        for i, side in enumerate(window_sizes, start=1):
            blocks = [WindowBlock(dims[i], side, drop_path=rate) for rate in rates[i]]
            stages.append(Stage(blocks, _merging(dims[i - 1], dims[i])))
        super().__init__(
            stem=nn.Sequential(
                ConvNorm(in_chans, dims[0] // 2, kernel_size=3, stride=2, act=nn.GELU),
                ConvNorm(dims[0] // 2, dims[0], kernel_size=3, stride=2),
            ),
            stages=stages,
            norm=nn.Identity(),
            head=ClassifierHead(
                dims[-1], num_classes, pool=global_pool, drop_rate=drop_rate, norm="layer"
            ),
            channels=dims,
            strides=(4, 8, 16, 32),
            in_chans=in_chans,
        )
        self.apply(init_linear)


def _resampled(state: State, model: TinyViT) -> State:
    """Fit tables learnt in other windows to those of `model`; also for our own keys."""
    for name, module in model.named_modules():
        key = f"{name}.table"
        if isinstance(module, OffsetBias) and key in state:
            state[key] = resample_window_table(state[key], module.grid[0])
    return state


_PARTS = {
    "conv1": "expand", "conv2": "filter", "conv3": "project", "local_conv": "local",
    "attn.attention_biases": "window.attention.bias.table", "attn.norm": "window.norm",
    "attn.qkv": "window.attention.qkv", "attn.proj": "window.attention.proj", "mlp.norm": "norm",
}  # fmt: skip
_HEAD = [(r"head\.fc\.", "head.fc.linear."), (r"head\.norm\.", "head.fc.norm.")]


def _from_timm(state: State, model: TinyViT) -> State:
    state = {key: value for key, value in state.items() if not key.endswith("attention_bias_idxs")}
    rules = [
        (r"patch_embed\.conv(\d)\.", lambda fit: f"stem.{int(fit[1]) - 1}."),
        (
            r"(stages\.\d\.downsample)\.conv(\d)\.",
            lambda fit: f"{fit[1]}.{int(fit[2]) - 1}.",
        ),
        *(
            (rf"(stages\.\d\.blocks\.\d+)\.{re.escape(old)}(?=\.|$)", rf"\1.{new}")
            for old, new in _PARTS.items()
        ),
        *_HEAD,
    ]
    state = rename(state, rules)
    return _resampled({key.replace(".bn.", ".norm."): v for key, v in state.items()}, model)


def _from_original(state: State, model: TinyViT) -> State:
    rules = [
        (r"patch_embed\.seq\.0\.", "patch_embed.conv1."),
        (r"patch_embed\.seq\.2\.", "patch_embed.conv2."),
        (r"layers\.(\d)\.downsample\.", lambda fit: f"stages.{int(fit[1]) + 1}.downsample."),
        (r"layers\.", "stages."),
        (r"norm_head\.", "head.norm."),
        (r"head\.", "head.fc."),
    ]
    state = {key.replace(".c.", ".conv."): value for key, value in rename(state, rules).items()}
    return _from_timm(state, model)


TinyViT.key_styles = (
    KeyStyle("microsoft/Cream", "patch_embed.seq.0.c.weight", _from_original),
    KeyStyle("timm", "patch_embed.conv1.conv.weight", _from_timm),
    KeyStyle("zoo", "stem.0.conv.weight", _resampled),
)

_DIMS_21M = (96, 192, 384, 576)
# fmt: off
VARIANTS = {
    "tiny_vit_5m_224":  dict(dims=(64, 128, 160, 320)),
    "tiny_vit_11m_224": dict(dims=(64, 128, 256, 448)),
    "tiny_vit_21m_224": dict(dims=_DIMS_21M),
    "tiny_vit_21m_384": dict(dims=_DIMS_21M, window_sizes=(12, 24, 12)),
    "tiny_vit_21m_512": dict(dims=_DIMS_21M, window_sizes=(16, 32, 16)),
}
# fmt: on

for _name, _arguments in VARIANTS.items():
    register(_name, partial(TinyViT, **_arguments))
