"""The Haar transform in plain PyTorch: a butterfly of slices, for any device, type and exporter.

For the 2x2 block p q / r t of a map the four bands are

    LL = (p + q + r + t) / 2        LH = (p + q - r - t) / 2    (low along the width, high along
    HL = (p - q + r - t) / 2        HH = (p - q - r + t) / 2     the height, and so on)

First rows are added and subtracted, then columns: 2 additions and 1 product for each pixel. Halving
comes first; it is exact, and no sum is larger than its band.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def _is_even(side: int) -> bool:
    """Say whether a side is even for certain; one that a recorded graph leaves open is not."""
    return not torch.jit.is_tracing() and isinstance(side, int) and side % 2 == 0


def haar(x: Tensor) -> Tensor:
    """..., H, W -> ..., 4, ceil(H/2), ceil(W/2)."""
    x = 0.5 * x
    # Slicing an even side after one zero too many leaves it out again.
    below = x if _is_even(x.shape[-2]) else F.pad(x, [0, 0, 0, 1])
    top, bottom = x[..., 0::2, :], below[..., 1::2, :]
    low, high = top + bottom, top - bottom
    beside_low = low if _is_even(x.shape[-1]) else F.pad(low, [0, 1])
    beside_high = high if _is_even(x.shape[-1]) else F.pad(high, [0, 1])
    low_left, low_right = low[..., 0::2], beside_low[..., 1::2]
    high_left, high_right = high[..., 0::2], beside_high[..., 1::2]
    return torch.stack(
        [
            low_left + low_right,
            high_left + high_right,
            low_left - low_right,
            high_left - high_right,
        ],
        dim=-3,
    )


def inverse_haar(bands: Tensor) -> Tensor:
    """..., 4, h, w -> ..., 2h, 2w."""
    ll, lh, hl, hh = (0.5 * bands).unbind(-3)
    low_top, low_bottom, high_top, high_bottom = ll + lh, ll - lh, hl + hh, hl - hh
    pixels = torch.stack(
        [
            low_top + high_top,
            low_top - high_top,
            low_bottom + high_bottom,
            low_bottom - high_bottom,
        ],
        dim=-3,
    )
    if pixels.dim() == 3:
        return F.pixel_shuffle(pixels, 2).squeeze(-3)
    # Channels of one axis, as images have them: Core ML and ExecuTorch shuffle no more.
    return F.pixel_shuffle(pixels.flatten(-4, -3), 2)
