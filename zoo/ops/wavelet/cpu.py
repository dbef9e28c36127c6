"""The Haar transform on the CPU, compiled by Numba, in one pass over each feature map.

Sums have the same order as in the plain backend, so both backends give bit-identical results.
"""

from numba import njit
from torch import Tensor

from zoo.ops.threads import parallel_for

PIXELS_PER_THREAD = 1 << 19  # about 0.25 ms of work; waking a thread may take as long

_kernel = njit(nogil=True, cache=True, fastmath={"contract", "nsz"}, error_model="numpy")


@_kernel
def _forward(first, last, x, bands):
    """Write the bands (N, 4, h, w) of x (N, 2h, 2w) for indices in range(first, last)."""
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
    """Write x (N, 2h, 2w), given its bands (N, 4, h, w), for indices in range(first, last)."""
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
    """Transform ... x 2h x 2w to ... x 4 x h x w."""
    *outer, height, width = x.shape
    bands = x.new_empty(*outer, 4, height // 2, width // 2)
    maps = x.detach().contiguous().view(-1, height, width)
    _run(_forward, maps, bands.view(-1, 4, height // 2, width // 2))
    return bands


def inverse_haar(bands: Tensor) -> Tensor:
    """Transform ... x 4 x h x w to ... x 2h x 2w."""
    *outer, _, height, width = bands.shape
    x = bands.new_empty(*outer, 2 * height, 2 * width)
    flat_bands = bands.detach().contiguous().view(-1, 4, height, width)
    _run(_inverse, flat_bands, x.view(-1, 2 * height, 2 * width))
    return x


def _run(kernel, source: Tensor, target: Tensor) -> None:
    """Run a kernel on all feature maps, on several threads if there is enough work."""
    maps_per_thread = PIXELS_PER_THREAD // max(1, target[0].numel()) if len(target) else 1
    parallel_for(kernel, len(target), (source.numpy(), target.numpy()), max(1, maps_per_thread))
