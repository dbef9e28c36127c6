"""One level of the dual-tree complex wavelet transform, with the biorthogonal pair "near_sym_b".

Kingsbury, "Complex wavelets for shift invariant analysis and filtering of signals" (2001), sections
4 and 7: both trees share a filtering without decimation at this level; the two values of a complex
band are sums and differences inside cells of 2x2. Six orientations: 15, 45, 75, 105, 135, 165
degrees. Convolutions, slices and a gather, for any device, type and exporter.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

REACH = 9  # samples beyond an edge that the longest filter reads

# The left half of each symmetric filter, its centre last.
# fmt: off
_LOW = tuple(n / 5120 for n in (-9, 0, 114, -240, -247, 1520, 2844))
_HIGH = tuple(
    n / 5734400
    for n in (-405, 0, 7695, -10800, -41040, 136800, 319080, -296400, -1718930, 3208000)
)
# fmt: on


def filters() -> tuple[Tensor, Tensor]:
    """Return the filters of analysis and of synthesis, low-pass first: 2 x 19 each.

    Those of synthesis are those of analysis exchanged, every second sign turned.
    """
    low, high = _whole(_LOW), _whole(_HIGH)
    signs = torch.tensor([(-1.0) ** abs(n) for n in range(-REACH, REACH + 1)])
    return torch.stack([low, high]), torch.stack([signs * high, signs * low])


def _whole(half: tuple[float, ...]) -> Tensor:
    left = [0.0] * (REACH + 1 - len(half)) + list(half)
    return torch.tensor(left + left[-2::-1])


def dual_tree(x: Tensor) -> tuple[Tensor, Tensor]:
    """Split maps into a low band of the same size and six complex bands of half the size.

    Edges are continued by half-sample symmetry (the edge sample comes twice). Sides must be even.

    Args:
        x: B x C x H x W, of any floating type.

    Returns:
        Low band, B x C x H x W; bands, B x C x 2 x 6 x H/2 x W/2: real and imaginary parts, then
        orientations.
    """
    low, bands = analyse(x, filters()[0].to(x))
    return low, bands.unflatten(0, x.shape[:2])


def inverse_dual_tree(low: Tensor, bands: Tensor) -> Tensor:
    """Put maps together from the bands of `dual_tree`: its inverse on what it gives.

    Args:
        low: B x C x H x W.
        bands: B x C x 2 x 6 x H/2 x W/2.

    Returns:
        B x C x H x W.
    """
    return synthesise(low, bands.flatten(0, 1), filters()[1].to(low))


def analyse(x: Tensor, taps: Tensor) -> tuple[Tensor, Tensor]:
    """`dual_tree` with given filters, 2 x 19; the bands are BC x 2 x 6 x H/2 x W/2.

    Of five axes, since Core ML takes no more.
    """
    batch, channels, height, width = x.shape
    reach = taps.shape[1] // 2
    maps = x.reshape(batch * channels, 1, height, width)
    maps = F.conv2d(
        continued(maps, -1, reach), taps[:, None, None, :]
    )  # low and high along the width
    both = torch.cat([taps, taps.flip(0)])[:, None, :, None]
    maps = F.conv2d(
        continued(maps, -2, reach), both, groups=2
    )  # ll, lh, hh, hl: width, then height
    a, b, c, d = F.pixel_unshuffle(maps[:, 1:], 2).unflatten(1, (3, 4)).unbind(2)
    first = torch.stack([a - d, b + c], 1)  # BC 2 3 h w; lh, hh, hl
    second = torch.stack([a + d, b - c], 1).flip(2)
    return maps[:, 0].view_as(x), 0.5**0.5 * torch.cat([first, second], dim=2)


def synthesise(low: Tensor, bands: Tensor, taps: Tensor) -> Tensor:
    """`inverse_dual_tree` with given filters, 2 x 19, and bands as `analyse` gives them."""
    height, width = low.shape[2], low.shape[3]
    reach = taps.shape[1] // 2
    first, second = bands[:, :, :3], bands[:, :, 3:].flip(2)  # lh, hh, hl
    plus, minus = 0.5**0.5 * (first + second), 0.5**0.5 * (first - second)  # BC 2 3 h w
    cells = torch.stack([plus[:, 0], plus[:, 1], minus[:, 1], -minus[:, 0]], dim=2)
    high = F.pixel_shuffle(cells.flatten(1, 2), 2)
    maps = torch.cat([low.reshape(-1, 1, height, width), high], dim=1)
    both = torch.stack([taps, taps.flip(0)])[:, :, :, None]
    maps = F.conv2d(continued(maps, -2, reach), both, groups=2)
    return F.conv2d(continued(maps, -1, reach), taps[None, :, None, :]).view_as(low)


def continued(x: Tensor, axis: int, reach: int) -> Tensor:
    """Continue maps beyond both edges of an axis by half-sample symmetry, as often as it takes."""
    side = x.shape[axis]
    place = torch.arange(-reach, side + reach, device=x.device)
    place = torch.maximum(place, -1 - place)  # ExecuTorch takes remainders of no negative numbers
    place = place % torch.full_like(place, 2 * side)  # a tensor: ONNX takes no size as a modulus
    return x.index_select(axis, torch.minimum(place, 2 * side - 1 - place))
