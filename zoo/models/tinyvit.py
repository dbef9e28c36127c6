"""TinyViT: inverted residuals, then attention in windows with a convolution between its parts.

Paper: Wu et al., "TinyViT: Fast Pretraining Distillation for Small Vision Transformers"
       (arXiv 2207.10666), section 3.2 and table 1.
Code:  github.com/microsoft/Cream, folder TinyViT, @ 4a13c4091e78 (MIT), and timm's tiny_vit.py
       (Apache-2.0), which compute the same function; both key styles are read.
Here:  the attention bias is looked up in every forward pass, not cached. Feature maps that are not
       multiples of the window are padded as in timm; the authors' code requires multiples of 32.
       Tables learnt for other windows are resampled on loading.
"""

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from zoo.backbone import Backbone, Stage
from zoo.blocks.attention import AttentionBias, BiasedAttention
from zoo.blocks.conv import ConvNorm
from zoo.blocks.drop import drop_path_rates
from zoo.blocks.folding import Absorbing
from zoo.blocks.heads import ClassifierHead
from zoo.blocks.init import init_linear
from zoo.blocks.inverted_residual import InvertedResidual
from zoo.blocks.mlp import Mlp
from zoo.blocks.sizes import contiguous_if_dynamic, is_size
from zoo.errors import BadInput
from zoo.keys import KeyStyle, prefixed

HEAD_DIM = 32


def to_windows(x: Tensor, side: int) -> Tensor:
    """Split B H W C into windows B*n side*side C; windows and pixels are ordered row by row.

    Args:
        x: The feature map.
        side: Side of a window.
    """
    batch, height, width, channels = x.shape
    rows, columns = (height + side - 1) // side, (width + side - 1) // side
    below, right = rows * side - height, columns * side - width
    if not is_size(below, right, (0, 0)):
        x = F.pad(x, (0, 0, 0, right, 0, below))
    strips = x.reshape(batch * rows, side, columns, side * channels)  # a row of windows each
    strips = contiguous_if_dynamic(strips.transpose(1, 2), columns)
    return strips.reshape(batch * rows * columns, side * side, channels)


def from_windows(windows: Tensor, side: int, batch: int, height: int, width: int) -> Tensor:
    """Merge windows B*n side*side C to B H W C, and crop the padding.

    Args:
        windows: Windows in the order of `to_windows`.
        side: Side of a window.
        batch: Number of feature maps.
        height: Height of a feature map.
        width: Width of a feature map.
    """
    rows, columns = (height + side - 1) // side, (width + side - 1) // side
    channels = windows.shape[2]
    strips = windows.reshape(batch * rows, columns, side, side * channels).transpose(1, 2)
    x = contiguous_if_dynamic(strips, columns).reshape(batch, rows * side, columns * side, channels)
    return x[:, :height, :width]


torch.fx.wrap("to_windows")
torch.fx.wrap("from_windows")


class WindowBias(AttentionBias):
    """An attention bias that is resampled for other windows as in timm (pixels as areas)."""

    def resampled(self, image: Tensor) -> Tensor:
        """Resample a square table: 1 heads side side -> 1 heads grid height grid width."""
        resized = F.interpolate(image.float(), self.grid, mode="bicubic", antialias=True)
        return resized.to(image.dtype)


class WindowAttention(Absorbing):
    """A norm, then self-attention in windows with an attention bias.

    A feature map is padded to multiples of the window, before the norm: a padded pixel equals the
    shift of the norm. Padding is not masked: it takes part in the attention.

    Args:
        channels: Channels of input and output, a multiple of `num_heads`.
        num_heads: Number of heads.
        side: Side of a window.
    """

    absorbs_before = {"attention": "norm"}

    def __init__(self, channels: int, num_heads: int, side: int):
        super().__init__()
        self.side = side
        self.norm = nn.LayerNorm(channels)
        self.attention = BiasedAttention(
            channels,
            WindowBias(num_heads, (side, side)),
            num_heads=num_heads,
            key_dim=channels // num_heads,
            value_ratio=1,
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width = x.shape[0], x.shape[2], x.shape[3]
        windows = to_windows(x.permute(0, 2, 3, 1), self.side)  # B*n N C
        windows = self.attention(self.norm(windows), self.side, self.side)
        x = from_windows(windows, self.side, batch, height, width)  # B H W C
        return x.permute(0, 3, 1, 2)


class ActivatedResidual(InvertedResidual):
    """An inverted residual whose sum is activated (section 3.2, "MBConv").

    Args:
        channels: Channels of input and output; four times as many inside.
        drop_path: Probability of dropping the branch in training.
    """

    def __init__(self, channels: int, *, drop_path: float):
        super().__init__(channels, channels, expansion=4, act=nn.GELU, drop_path=drop_path)
        self.act = nn.GELU()
        nn.init.zeros_(self.project.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return self.act(x + self.drop_path(y))  # B C H W


class WindowBlock(Absorbing):
    """Attention in windows, a depthwise convolution without shortcut, an MLP (section 3.2).

    Args:
        channels: Channels of input and output.
        side: Side of a window.
        drop_path: Probability of dropping a branch in training.
    """

    absorbs_before = {"mlp": "norm"}

    def __init__(self, channels: int, side: int, *, drop_path: float):
        super().__init__()
        self.window = WindowAttention(channels, channels // HEAD_DIM, side)
        self.local = ConvNorm(channels, channels, kernel_size=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, 4 * channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.local(x + self.drop_path(self.window(x)))  # B C H W
        x = x.permute(0, 2, 3, 1)  # B H W C
        x = x + self.drop_path(self.mlp(self.norm(x)))
        return x.permute(0, 3, 1, 2)  # B C H W


def _merging(in_channels: int, out_channels: int) -> nn.Sequential:
    """Return layers that halve a feature map: two 1x1 convolutions around a depthwise one."""
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
        depths: Number of blocks in each stage.
        window_sizes: Sides of the windows of stages 2 to 4.

    Raises:
        BadInput: `window_sizes` is not three positive numbers.
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
        rates = drop_path_rates(drop_path_rate, depths)
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


BLOCK = (
    (r"conv1\.", "expand."),
    (r"conv2\.", "depthwise."),
    (r"conv3\.", "project."),
    (r"local_conv\.", "local."),
    (r"attn\.attention_biases$", "window.attention.bias.table"),
    (r"attn\.attention_bias_idxs$", None),
    (r"attn\.norm\.", "window.norm."),
    (r"attn\.", "window.attention."),
    (r"mlp\.norm\.", "norm."),
    (r"mlp\.", "mlp."),
)
OLD, NEW = r"(?:stages|layers)\.(\d)\.blocks\.(\d+)\.", r"stages.\1.blocks.\2."
TIMM = (
    (r"patch_embed\.conv(\d)\.", "stem.{1-1}."),
    (r"stages\.(\d)\.downsample\.conv(\d)\.", r"stages.\1.downsample.{2-1}."),
    *prefixed(OLD, NEW, BLOCK),
    (r"head\.fc\.", "head.fc.linear."),
    (r"head\.norm\.", "head.fc.norm."),
)
AUTHORS = (
    (r"patch_embed\.seq\.([02])\.", "stem.{1//2}."),
    (r"layers\.(\d)\.downsample\.conv(\d)\.", "stages.{1+1}.downsample.{2-1}."),
    *prefixed(OLD, NEW, BLOCK),
    (r"norm_head\.", "head.fc.norm."),
    (r"head\.", "head.fc.linear."),
)
CONV_NORM = ((r"\.c\.", ".conv."), (r"\.bn\.", ".norm."))
KEY_STYLES = (
    KeyStyle("microsoft/Cream", "patch_embed.seq.0.c.weight", rows=AUTHORS, inside=CONV_NORM),
    KeyStyle("timm", "patch_embed.conv1.conv.weight", rows=TIMM, inside=CONV_NORM),
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

TinyViT.register_family(VARIANTS, KEY_STYLES)
