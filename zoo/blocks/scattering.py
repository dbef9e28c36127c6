"""Mixing in the bands of a complex wavelet transform (SVT, arXiv 2311.01310, section 3)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.blocks.precision import outside_autocast
from zoo.blocks.sizes import is_size
from zoo.ops.wavelet import complex as transform

BLOCKS = 4  # groups of channels that the complex layers mix, each for itself


def resized(table: Tensor, height: int, width: int) -> Tensor:
    """Resample a table ... x H x W, read as images; one of the size asked for stays as it is."""
    if is_size(height, width, (table.shape[-2], table.shape[-1])):
        return table
    image = table.reshape(1, -1, table.shape[-2], table.shape[-1])
    image = F.interpolate(image, [height, width], mode="bilinear", align_corners=False)
    return image.view(table.shape[:-2] + image.shape[-2:])


def resized_matrices(table: Tensor, rows: int, side: int) -> Tensor:
    """Resample 2 x rows x side x side, a matrix for each row, as the kernel of an integral.

    What is summed over keeps its weight: values shrink as the side grows.
    """
    if is_size(rows, side, (table.shape[1], table.shape[2])):
        return table
    volume = F.interpolate(table[None], [rows, side, side], mode="trilinear", align_corners=False)
    return volume[0] * (table.shape[2] / side)


def complex_matrix(weight: Tensor) -> Tensor:
    """2 x K x in x out, real and imaginary -> K x 2out x 2in, real, parts beside each other."""
    real, imaginary = weight.transpose(-1, -2).unbind(0)  # K out in
    rows = [torch.stack([real, -imaginary], -1), torch.stack([imaginary, real], -1)]
    return torch.stack(rows, dim=2).flatten(3).flatten(1, 2)


def mix_channels(bands: Tensor, batch: int, weights: list[Tensor]) -> Tensor:
    """A perceptron across the channels of each block: complex layers, ReLU on each part.

    Args:
        bands: BC x 2 x 6 x h x w.
        batch: B.
        weights: Weight and bias of the first layer, then of the second: 2 x 4 x C/4 x C/4, 2 x 4 x
            C/4.
    """
    blocks = weights[0].shape[1]
    inner = weights[0].shape[2] * 2
    x = bands.reshape(batch, blocks, inner, -1)
    x = F.relu(complex_matrix(weights[0]) @ x + weights[1].permute(1, 2, 0).flatten(1)[..., None])
    x = complex_matrix(weights[2]) @ x + weights[3].permute(1, 2, 0).flatten(1)[..., None]
    return x.view(bands.shape)


def mix_columns(bands: Tensor, weights: list[Tensor]) -> Tensor:
    """A perceptron along each row of positions, with layers of its own for each row.

    Args:
        bands: BC x 2 x 6 x h x w.
        weights: Of two layers: 2 x h x w x w, 2 x h x w.
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
    x: Tensor,
    analysis: Tensor,
    synthesis: Tensor,
    low: Tensor,
    channels: list[Tensor],
    columns: list[Tensor],
) -> Tensor:
    """Weight the low band, mix the complex ones, go back: B C H W -> B C H W.

    In single precision at least, also under autocast. An odd side is continued by its last row or
    column, which is left out again.

    Args:
        x: Maps.
        analysis: Filters of the transform.
        synthesis: Filters of its inverse.
        low: A weight for each value of the low band, C x H x W; resampled for other sizes.
        channels: Weights of `mix_channels`.
        columns: Weights of `mix_columns`, or none.
    """
    if torch.jit.is_scripting():
        return _scattering(x, analysis, synthesis, low, channels, columns)
    else:  # a scripted function may hold Python of any kind in the branch that it never takes
        return outside_autocast(_scattering, x, analysis, synthesis, low, channels, columns)


def _scattering(
    x: Tensor,
    analysis: Tensor,
    synthesis: Tensor,
    low: Tensor,
    channels: list[Tensor],
    columns: list[Tensor],
) -> Tensor:
    dtype, wide = x.dtype, torch.promote_types(x.dtype, torch.float32)
    height, width = x.shape[2], x.shape[3]
    x = F.pad(x.to(wide), [0, width % 2, 0, height % 2], mode="replicate")
    smooth, bands = transform.analyse(x, analysis.to(wide))
    smooth = smooth * resized(low.to(wide), x.shape[2], x.shape[3])
    bands = mix_channels(bands, x.shape[0], [weight.to(wide) for weight in channels])
    if len(columns) > 0:
        bands = mix_columns(bands, [weight.to(wide) for weight in columns])
    x = transform.synthesise(smooth, bands, synthesis.to(wide))
    return x[:, :, :height, :width].to(dtype)


torch.fx.wrap("scattering")


class ComplexLayers(nn.Module):
    """Weights and biases of two complex layers, many times over.

    Args:
        shape: How many times, and the width of a layer.
    """

    def __init__(self, shape: tuple[int, int]):
        super().__init__()
        times, width = shape
        self.weight1 = nn.Parameter(0.02 * torch.randn(2, times, width, width))
        self.bias1 = nn.Parameter(0.02 * torch.randn(2, times, width))
        self.weight2 = nn.Parameter(0.02 * torch.randn(2, times, width, width))
        self.bias2 = nn.Parameter(0.02 * torch.randn(2, times, width))

    def forward(self) -> list[Tensor]:
        return [self.weight1, self.bias1, self.weight2, self.bias2]


class NoLayers(nn.Module):
    """No weights."""

    def forward(self) -> list[Tensor]:
        nothing: list[Tensor] = []
        return nothing


class Scattering(nn.Module):
    """Scattering mixer of SVT on B H W C: low band weighted, six complex bands mixed (fig. 2).

    Args:
        channels: Channels of input and output, a multiple of 4.
        grid: Size of the map that the tables are made for.
        columns: Mix along the rows of positions, too.
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
        maps = x.permute(0, 3, 1, 2)
        y = scattering(
            maps, self.analysis, self.synthesis, self.low, self.channels(), self.columns()
        )
        return y.permute(0, 2, 3, 1)


class HalfScattering(nn.Module):
    """The ablation of SVT: half of the channels scattered, half filtered, then interleaved.

    Args:
        channels: Channels of input and output, a multiple of 8.
        grid: Size of the map that the tables are made for.
    """

    def __init__(self, channels: int, grid: tuple[int, int]):
        super().__init__()
        half = channels // 2
        self.filter = nn.Conv2d(half, half, 3, padding=1, groups=half)
        self.scattering = Scattering(half, grid, columns=True)

    def forward(self, x: Tensor) -> Tensor:
        filtered, scattered = x.chunk(2, dim=-1)
        filtered = self.filter(filtered.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return torch.stack([filtered, self.scattering(scattered)], dim=-1).flatten(-2)
