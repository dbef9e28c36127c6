"""The Haar transform on a CPU, compiled by Numba: one pass over the map, whatever its size.

The sums are formed in the order of the plain form, so that both give the same bits.
"""

from numba import njit
from torch import Tensor

from zoo.ops.threads import share_out

WORTH_A_THREAD = 1 << 19  # pixels, a quarter of a millisecond; waking a thread may take as long

_kernel = njit(nogil=True, cache=True, fastmath={"contract", "nsz"}, error_model="numpy")


@_kernel
def _forward(first, last, x, bands):
    """Bands (N, 4, h, w) of the maps x (N, 2h, 2w) from `first` to before `last`."""
    half = x.dtype.type(0.5)
    for n in range(first, last):
        for i in range(bands.shape[2]):
            top, bottom = x[n, 2 * i], x[n, 2 * i + 1]
            ll, lh, hl, hh = bands[n, 0, i], bands[n, 1, i], bands[n, 2, i], bands[n, 3, i]
            for j in range(bands.shape[3]):
                p, q = half * top[2 * j], half * top[2 * j + 1]
                r, t = half * bottom[2 * j], half * bottom[2 * j + 1]
                low_left, low_right, high_left, high_right = p + r, q + t, p - r, q - t
                ll[j] = low_left + low_right
                lh[j] = high_left + high_right
                hl[j] = low_left - low_right
                hh[j] = high_left - high_right


@_kernel
def _inverse(first, last, bands, x):
    """Maps x (N, 2h, 2w) of the bands (N, 4, h, w) from `first` to before `last`."""
    half = x.dtype.type(0.5)
    for n in range(first, last):
        for i in range(bands.shape[2]):
            top, bottom = x[n, 2 * i], x[n, 2 * i + 1]
            ll, lh, hl, hh = bands[n, 0, i], bands[n, 1, i], bands[n, 2, i], bands[n, 3, i]
            for j in range(bands.shape[3]):
                a, b, c, d = half * ll[j], half * lh[j], half * hl[j], half * hh[j]
                low_top, low_bottom, high_top, high_bottom = a + b, a - b, c + d, c - d
                top[2 * j] = low_top + high_top
                top[2 * j + 1] = low_top - high_top
                bottom[2 * j] = low_bottom + high_bottom
                bottom[2 * j + 1] = low_bottom - high_bottom


def haar(x: Tensor) -> Tensor:
    """..., 2h, 2w -> ..., 4, h, w."""
    *outer, height, width = x.shape
    bands = x.new_empty(*outer, 4, height // 2, width // 2)
    maps = x.detach().contiguous().view(-1, height, width)
    _share_out(_forward, maps, bands.view(-1, 4, height // 2, width // 2))
    return bands


def inverse_haar(bands: Tensor) -> Tensor:
    """..., 4, h, w -> ..., 2h, 2w."""
    *outer, _, height, width = bands.shape
    x = bands.new_empty(*outer, 2 * height, 2 * width)
    of_a_map = bands.detach().contiguous().view(-1, 4, height, width)
    _share_out(_inverse, of_a_map, x.view(-1, 2 * height, 2 * width))
    return x


def _share_out(kernel, source: Tensor, target: Tensor) -> None:
    least = max(1, WORTH_A_THREAD // max(1, target[0].numel())) if len(target) else 1
    share_out(kernel, len(target), (source.numpy(), target.numpy()), least)
