"""SVT: a scattering vision transformer that mixes tokens by wavelets, then by attention.

Paper: Patro and Agneeswaran, "Scattering Vision Transformer: Spectral Mixing Matters"
       (arXiv 2311.01310), fig. 1 and 2, table 1.
Code:  github.com/badripatro/svt @ fcbc9b325f5d, svt.py (no licence file; nothing of it is here).
Here:  the wavelet transform is plain PyTorch and exports. The weights of its low band, and the
       matrices of the ablation with token mixing, are resampled for feature maps other than 56x56;
       the public code supports only 224 px. Training with token labels is not supported: the
       logits in training are those of evaluation.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.backbone import Backbone, Stage
from zoo.blocks.conv import ConvNorm
from zoo.blocks.drop import drop_path_rates
from zoo.blocks.folding import Absorbing
from zoo.blocks.heads import TokenHead, TokenLabelHead
from zoo.blocks.init import init_conv, init_linear
from zoo.blocks.mlp import MixFFN, Mlp
from zoo.blocks.norm import LayerNorm2d
from zoo.blocks.precision import outside_autocast
from zoo.blocks.sizes import grid_size, is_size
from zoo.blocks.tokens import to_row, to_tokens
from zoo.blocks.transformer import CrossAttention, SeparateQKVAttention, TransformerBlock
from zoo.keys import KeyStyle, numbered_blocks
from zoo.ops.wavelet import complex as transform

MLP_RATIOS = (8, 8, 4, 4)
BLOCKS = 4  # groups of channels that the complex layers mix

torch.fx.wrap("to_row")


def resized(table: Tensor, height: int, width: int) -> Tensor:
    """Resample a table ... x H x W as images; a table of the right size is returned unchanged."""
    if is_size(height, width, (table.shape[-2], table.shape[-1])):
        return table
    image = table.reshape(1, -1, table.shape[-2], table.shape[-1])
    image = F.interpolate(image, [height, width], mode="bilinear", align_corners=False)
    return image.view(table.shape[:-2] + image.shape[-2:])


def resized_matrices(table: Tensor, rows: int, side: int) -> Tensor:
    """Resample a matrix for each row, 2 x rows x side x side, as the kernel of an integral.

    Values are divided by the growth of the side, which keeps sums over a row unchanged.
    """
    if is_size(rows, side, (table.shape[1], table.shape[2])):
        return table
    volume = F.interpolate(table[None], [rows, side, side], mode="trilinear", align_corners=False)
    return volume[0] * (table.shape[2] / side)


def complex_matrix(weight: Tensor) -> Tensor:
    """Convert complex 2 x K x in x out to real K x 2out x 2in, with both parts interleaved."""
    real, imaginary = weight.transpose(-1, -2).unbind(0)  # K out in
    rows = [torch.stack([real, -imaginary], -1), torch.stack([imaginary, real], -1)]
    return torch.stack(rows, dim=2).flatten(3).flatten(1, 2)


def mix_channels(bands: Tensor, batch: int, weights: list[Tensor]) -> Tensor:
    """A perceptron across the channels of each block: complex layers, ReLU on each part.

    Args:
        bands: Complex bands, BC x 2 x 6 x h x w.
        batch: Number of images, B.
        weights: Weight (2 x 4 x C/4 x C/4) and bias (2 x 4 x C/4) of each of the two layers.
    """
    blocks = weights[0].shape[1]
    inner = weights[0].shape[2] * 2
    x = bands.reshape(batch, blocks, inner, -1)
    x = F.relu(complex_matrix(weights[0]) @ x + weights[1].permute(1, 2, 0).flatten(1)[..., None])
    x = complex_matrix(weights[2]) @ x + weights[3].permute(1, 2, 0).flatten(1)[..., None]
    return x.view(bands.shape)


def mix_columns(bands: Tensor, weights: list[Tensor]) -> Tensor:
    """A perceptron along each row of positions, with separate layers for each row.

    Args:
        bands: Complex bands, BC x 2 x 6 x h x w.
        weights: Weight (2 x h x w x w) and bias (2 x h x w) of each of the two layers.
    """
    rows, side = bands.shape[3], bands.shape[4]
    x = bands.permute(3, 0, 2, 4, 1).reshape(rows, -1, 2 * side)  # h BC6 2w
    for i in range(2):
        matrix = complex_matrix(resized_matrices(weights[2 * i], rows, side))
        shift = resized(weights[2 * i + 1], rows, side).permute(1, 2, 0).flatten(1)
        x = x @ matrix.transpose(1, 2) + shift[:, None]
        if i == 0:
            x = F.relu(x)
    shape = (rows, bands.shape[0], bands.shape[2], side, 2)
    return x.view(shape).permute(1, 4, 2, 0, 3)


def scattering(
    x: Tensor, tables: list[Tensor], channels: list[Tensor], columns: list[Tensor]
) -> Tensor:
    """Transform, weight the low band, mix the complex bands, transform back: B C H W -> B C H W.

    Computes in single precision at least, also under autocast. An odd side is padded with its
    last row or column, and cropped afterwards.

    Args:
        x: Feature maps.
        tables: Filters of the transform, those of its inverse, and a weight for each value of the
            low band, C x H x W.
        channels: Weights of `mix_channels`.
        columns: Weights of `mix_columns`; empty if positions are not mixed.
    """
    if torch.jit.is_scripting():
        return _scattering(x, tables, channels, columns)
    else:
        return outside_autocast(_scattering, x, tables, channels, columns)


def _scattering(
    x: Tensor, tables: list[Tensor], channels: list[Tensor], columns: list[Tensor]
) -> Tensor:
    dtype, wide = x.dtype, torch.promote_types(x.dtype, torch.float32)
    height, width = x.shape[2], x.shape[3]
    analysis, synthesis, low = tables[0].to(wide), tables[1].to(wide), tables[2].to(wide)
    x = F.pad(x.to(wide), [0, width % 2, 0, height % 2], mode="replicate")
    smooth, bands = transform.analyse(x, analysis)
    smooth = smooth * resized(low, x.shape[2], x.shape[3])
    bands = mix_channels(bands, x.shape[0], [weight.to(wide) for weight in channels])
    if len(columns) > 0:
        bands = mix_columns(bands, [weight.to(wide) for weight in columns])
    return transform.synthesise(smooth, bands, synthesis)[:, :, :height, :width].to(dtype)


torch.fx.wrap("scattering")


class ComplexLayers(nn.Module):
    """Weights and biases of several two-layer complex perceptrons.

    Args:
        shape: Number of perceptrons, and width of their layers.
    """

    def __init__(self, shape: tuple[int, int]):
        super().__init__()
        times, width = shape
        self.weight1 = nn.Parameter(0.02 * torch.randn(2, times, width, width))
        self.bias1 = nn.Parameter(0.02 * torch.randn(2, times, width))
        self.weight2 = nn.Parameter(0.02 * torch.randn(2, times, width, width))
        self.bias2 = nn.Parameter(0.02 * torch.randn(2, times, width))

    def forward(self) -> list[Tensor]:
        return [self.weight1, self.bias1, self.weight2, self.bias2]  # 2 K C C and 2 K C, twice


class NoLayers(nn.Module):
    """A placeholder for `ComplexLayers` that has no weights."""

    def forward(self) -> list[Tensor]:
        tensors: list[Tensor] = []  # TorchScript needs the type
        return tensors


class Scattering(nn.Module):
    """Scattering mixer of SVT on B H W C: low band weighted, six complex bands mixed (fig. 2).

    Args:
        channels: Channels of input and output, a multiple of 4.
        grid: Size of the feature map that the tables are made for.
        columns: Whether to mix along rows of positions as well.
    """

    def __init__(self, channels: int, grid: tuple[int, int], *, columns: bool = False):
        super().__init__()
        inner, (height, width) = channels // BLOCKS, grid
        self.low = nn.Parameter(0.02 * torch.randn(channels, height, width))
        self.channels = ComplexLayers((BLOCKS, inner))
        sides = (height + 1) // 2, (width + 1) // 2
        self.columns = ComplexLayers(sides) if columns else NoLayers()
        analysis, synthesis = transform.filters()
        self.analysis: Tensor
        self.synthesis: Tensor
        self.register_buffer("analysis", analysis, persistent=False)
        self.register_buffer("synthesis", synthesis, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        maps = x.permute(0, 3, 1, 2)  # B C H W
        tables = [self.analysis, self.synthesis, self.low]
        y = scattering(maps, tables, self.channels(), self.columns())
        return y.permute(0, 2, 3, 1)  # B H W C


class HalfScattering(nn.Module):
    """Scattering on half of the channels, convolution on the others (an ablation of SVT).

    Args:
        channels: Channels of input and output, a multiple of 8.
        grid: Size of the feature map that the tables are made for.
    """

    def __init__(self, channels: int, grid: tuple[int, int]):
        super().__init__()
        half = channels // 2
        self.depthwise = nn.Conv2d(half, half, 3, padding=1, groups=half)
        self.scattering = Scattering(half, grid, columns=True)

    def forward(self, x: Tensor) -> Tensor:
        filtered, scattered = x.chunk(2, dim=-1)
        filtered = self.depthwise(filtered.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return torch.stack([filtered, self.scattering(scattered)], dim=-1).flatten(-2)  # B H W C


class Downsample(nn.Module):
    """A convolution to half the size, then a norm over channels."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.project = nn.Conv2d(in_channels, out_channels, 3, 2, 1)
        self.norm = LayerNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.project(x))  # B C H/2 W/2


class StageNorm(nn.Module):
    """The norm at the end of a stage; its output is a level of the feature pyramid."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = LayerNorm2d(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)  # B C H W


class ScatteringBlock(TransformerBlock):
    """A transformer block with scattering; the shift of its first norm cannot be folded."""

    absorbs_before = {"mlp": "norm2"}


class ClassAttention(Absorbing):
    """Class attention (CaiT, arXiv 2103.17239, section 2.2) and the last norm, as in VOLO.

    The class token is the mean of all tokens; it attends to them once. Other tokens do not attend.

    Args:
        channels: Channels of the feature map.
        num_heads: Number of attention heads.
    """

    absorbs_before = {"attention": "norm1", "mlp": "norm2"}

    def __init__(self, channels: int, num_heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.attention = CrossAttention(channels, num_heads)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = Mlp(channels, 4 * channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Convert B C H W to tokens B C 1 1+N, the class token first."""
        x_BNC = to_tokens(x)
        token_B1C = x_BNC.mean(1, keepdim=True)
        context = self.norm1(torch.cat([token_B1C, x_BNC], dim=1))
        token_B1C = token_B1C + self.attention(context[:, :1], context)
        token_B1C = token_B1C + self.mlp(self.norm2(token_B1C))
        return to_row(self.norm(torch.cat([token_B1C, x_BNC], dim=1)))


class SVT(Backbone):
    """Four stages at strides 4 to 32: scattering blocks, then attention (fig. 1).

    Args:
        depths: Number of blocks in each stage.
        dims: Channels of each stage.
        heads: Heads of each stage; the first number has no effect.
        stem: Channels inside the stem.
        columns: Use the ablation that scatters half of the channels and also mixes along rows.
        token_label: Add half of the largest logits over all tokens, as in published models.
        img_size: Image size in pixels that the weights of the first stage are made for.
    """

    def __init__(
        self,
        *,
        depths: tuple[int, ...],
        dims: tuple[int, ...],
        heads: tuple[int, ...],
        stem: int,
        columns: bool = False,
        token_label: bool = True,
        num_classes: int = 1000,
        in_chans: int = 3,
        img_size: int | tuple[int, int] = 224,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str = "token",
    ):
        grid, stages = grid_size(img_size, 4), []
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            blocks: list[nn.Module] = []
            for rate in rates:
                mlp = MixFFN(dims[i], MLP_RATIOS[i] * dims[i])
                if i:
                    mixer: nn.Module = SeparateQKVAttention(dims[i], heads[i])
                else:
                    mixer = HalfScattering(dims[0], grid) if columns else Scattering(dims[0], grid)
                kind = TransformerBlock if i else ScatteringBlock
                blocks.append(kind(dims[i], mixer, mlp, drop_path=rate, maps=True))
            closing = [StageNorm(dims[i])] if i < 3 else []
            down = Downsample(dims[i - 1], dims[i]) if i else None
            stages.append(Stage([*blocks, *closing], down))
        conv = partial(ConvNorm, out_channels=stem, act=nn.ReLU)
        head = TokenLabelHead if token_label else TokenHead
        super().__init__(
            stem=nn.Sequential(
                conv(in_chans, kernel_size=7, stride=2),
                conv(stem, kernel_size=3),
                conv(stem, kernel_size=3),
                Downsample(stem, dims[0]),
            ),
            stages=stages,
            norm=ClassAttention(dims[-1], heads[-1]),
            head=head(dims[-1], num_classes, pool=global_pool, drop_rate=drop_rate),
            channels=dims,
            strides=(4, 8, 16, 32),
            in_chans=in_chans,
            num_prefix_tokens=1,
        )
        self.apply(_init)


def _init(module: nn.Module) -> None:
    init_linear(module)
    init_conv(module)


ROWS = (
    (r".*\.(?:xfm|ifm)\.", None),  # wavelet filters, which are constants here
    (r"patch_embed1\.conv\.([036])\.", "stem.{1//3}.conv."),
    (r"patch_embed1\.conv\.([147])\.", "stem.{1//3}.norm."),
    (r"patch_embed1\.proj\.", "stem.3.project."),
    (r"patch_embed1\.norm\.", "stem.3.norm."),
    (r"patch_embed(\d)\.proj\.", "stages.{1-1}.downsample.project."),
    (r"patch_embed(\d)\.norm\.", "stages.{1-1}.downsample.norm."),
    (r"block1\.(\d+)\.attn\.conv\.", r"stages.0.blocks.\1.mixer.depthwise."),
    (r"block(\d)\.(\d+)\.attn\.", r"stages.{1-1}.blocks.\2.mixer."),
    (r"block(\d)\.(\d+)\.mlp\.dwconv\.dwconv\.", r"stages.{1-1}.blocks.\2.mlp.depthwise."),
    (r"block(\d)\.(\d+)\.", r"stages.{1-1}.blocks.\2."),
    (r"norm4\.", "norm.norm."),
    (r"post_network\.0\.attn\.", "norm.attention."),
    (r"post_network\.0\.", "norm."),
    (r"aux_head\.", "head.aux."),
    (r"head\.", "head.fc."),
)


def _rows(model: SVT) -> list[Any]:
    """Return the rows; names depend on the ablation and on the depth of each stage."""
    rows: list[Any] = []
    for s, j, block in numbered_blocks(model):
        if isinstance(block, StageNorm):
            rows += [(rf"norm{s + 1}\.", f"stages.{s}.blocks.{j}.norm.")]
        elif s == 0:
            inner = "scattering." if isinstance(block.mixer, HalfScattering) else ""
            old, new = rf"block1\.{j}\.attn\.complex_weight_", f"stages.0.blocks.{j}.mixer.{inner}"
            rows += [
                (old + r"ll$", f"{new}low"),
                (old + r"lh_(\d)$", rf"{new}channels.weight\1"),
                (old + r"lh_b(\d)$", rf"{new}channels.bias\1"),
                (old + r"lh_(\d)_t$", rf"{new}columns.weight\1"),
                (old + r"lh_b(\d)_t$", rf"{new}columns.bias\1"),
            ]
    return [*rows, *ROWS]


KEY_STYLES = (KeyStyle("badripatro/svt", "patch_embed1.conv.0.weight", rows=_rows),)

# fmt: off
_SMALL = dict(depths=(3, 4, 6, 3), dims=(64, 128, 320, 448), heads=(2, 4, 10, 14), stem=32)
VARIANTS = {
    "svt_s":    _SMALL,
    "svt_s_ct": _SMALL | dict(columns=True, token_label=False),
    "svt_b": dict(depths=(3, 4, 12, 3), dims=(64, 128, 320, 512), heads=(2, 4, 10, 16), stem=64),
    "svt_l": dict(depths=(3, 6, 18, 3), dims=(96, 192, 384, 512), heads=(3, 6, 12, 16), stem=64),
}
# fmt: on

SVT.register_family(VARIANTS, KEY_STYLES)
