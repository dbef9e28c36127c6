"""The first level of the dual-tree complex wavelet transform, with the filters "near_sym_b".

Kingsbury, "Complex wavelets for shift invariant analysis and filtering of signals" (2001), sections
4 and 7. At this level both trees share one undecimated filtering, and the real and imaginary parts
of a complex band are sums and differences within 2x2 cells. The six orientations are 15, 45, 75,
105, 135 and 165 degrees. The code consists of convolutions, slices and a gather, so it runs on any
device, with any dtype and in any exported format.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

REACH = 9  # number of samples beyond an edge that the longest filter reads

# The left half of each symmetric filter, including its centre.
# fmt: off
_LOW = tuple(n / 5120 for n in (-9, 0, 114, -240, -247, 1520, 2844))
_HIGH = tuple(
    n / 5734400
    for n in (-405, 0, 7695, -10800, -41040, 136800, 319080, -296400, -1718930, 3208000)
)
# fmt: on


def filters() -> tuple[Tensor, Tensor]:
    """Return the analysis and the synthesis filters, 2 x 19 each, low-pass first.

    The synthesis filters are the analysis filters, swapped and with every second sign inverted.
    """
    low, high = _mirrored(_LOW), _mirrored(_HIGH)
    signs = torch.tensor([(-1.0) ** abs(n) for n in range(-REACH, REACH + 1)])
    return torch.stack([low, high]), torch.stack([signs * high, signs * low])


def _mirrored(half: tuple[float, ...]) -> Tensor:
    left = [0.0] * (REACH + 1 - len(half)) + list(half)
    return torch.tensor(left + left[-2::-1])


def analyse(x: Tensor, taps: Tensor) -> tuple[Tensor, Tensor]:
    """Split feature maps into a low band and six complex bands of half the size.

    Edges are extended by half-sample symmetry, which repeats the edge sample. Height and width must
    be even.

    Args:
        x: B x C x H x W, any floating-point dtype.
        taps: The analysis filters of `filters`, 2 x 19.

    Returns:
        The low band, B x C x H x W, and the complex bands, BC x 2 x 6 x H/2 x W/2. Axis 1 contains
        the real and imaginary parts, axis 2 the orientations. B and C share one axis because Core
        ML supports at most five.
    """
    batch, channels, height, width = x.shape
    reach = taps.shape[1] // 2
    maps = x.reshape(batch * channels, 1, height, width)
    # Low and high along the width.
    maps = F.conv2d(extend(maps, -1, reach), taps[:, None, None, :])
    both = torch.cat([taps, taps.flip(0)])[:, None, :, None]
    # ll, lh, hh, hl: first along the width, then along the height.
    maps = F.conv2d(extend(maps, -2, reach), both, groups=2)
    even, odd = maps[:, 1:, 0::2], maps[:, 1:, 1::2]  # rows
    a, b, c, d = even[..., 0::2], even[..., 1::2], odd[..., 0::2], odd[..., 1::2]
    first = torch.stack([a - d, b + c], 1)  # BC 2 3 h w; lh, hh, hl
    second = torch.stack([a + d, b - c], 1).flip(2)
    return maps[:, 0].view_as(x), 0.5**0.5 * torch.cat([first, second], dim=2)


def synthesise(low: Tensor, bands: Tensor, taps: Tensor) -> Tensor:
    """Reconstruct feature maps from their bands, as the inverse of `analyse`.

    Args:
        low: Low band, B x C x H x W.
        bands: Complex bands, BC x 2 x 6 x H/2 x W/2.
        taps: The synthesis filters of `filters`, 2 x 19.

    Returns:
        B x C x H x W.
    """
    height, width = low.shape[2], low.shape[3]
    reach = taps.shape[1] // 2
    first, second = bands[:, :, :3], bands[:, :, 3:].flip(2)  # lh, hh, hl
    plus, minus = 0.5**0.5 * (first + second), 0.5**0.5 * (first - second)  # BC 2 3 h w
    cells = torch.stack([plus[:, 0], plus[:, 1], minus[:, 1], -minus[:, 0]], dim=2)
    high = F.pixel_shuffle(cells.flatten(1, 2), 2)
    maps = torch.cat([low.reshape(-1, 1, height, width), high], dim=1)
    both = torch.stack([taps, taps.flip(0)])[:, :, :, None]
    maps = F.conv2d(extend(maps, -2, reach), both, groups=2)
    return F.conv2d(extend(maps, -1, reach), taps[None, :, None, :]).view_as(low)


def extend(x: Tensor, axis: int, reach: int) -> Tensor:
    """Add `reach` samples at both ends of an axis by half-sample symmetry, as often as needed."""
    side = x.shape[axis]
    if isinstance(side, int) and side >= reach:  # copies of runs are faster than a gather
        start, end = x.narrow(axis, 0, reach), x.narrow(axis, side - reach, reach)
        return torch.cat([start.flip([axis]), x, end.flip([axis])], dim=axis)
    index = torch.arange(-reach, side + reach, device=x.device)
    index = torch.maximum(index, -1 - index)  # ExecuTorch has no remainder of negative numbers
    index = index % torch.full_like(index, 2 * side)  # in ONNX the divisor must be a tensor
    return x.index_select(axis, torch.minimum(index, 2 * side - 1 - index))
