"""The Haar transform in plain PyTorch, for any device, dtype and export format.

The four bands of a 2x2 block with rows (p, q) and (r, t) are

    LL = (p + q + r + t) / 2        LH = (p + q - r - t) / 2
    HL = (p - q + r - t) / 2        HH = (p - q - r + t) / 2

The first letter is the filter along the width, the second the filter along the height. Rows are
added and subtracted first, then columns, which takes 2 additions and 1 product per pixel. Halving
the input first is exact and keeps intermediate sums from overflowing.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def _is_even(side: int) -> bool:
    """Return whether a side is known to be even; the dynamic size of a traced graph is not."""
    return not torch.jit.is_tracing() and isinstance(side, int) and side % 2 == 0


def haar(x: Tensor) -> Tensor:
    """Transform ... x H x W to ... x 4 x ceil(H/2) x ceil(W/2)."""
    x = 0.5 * x
    # If the side is even, slicing drops the padding again.
    padded = x if _is_even(x.shape[-2]) else F.pad(x, [0, 0, 0, 1])
    top, bottom = x[..., 0::2, :], padded[..., 1::2, :]
    low, high = top + bottom, top - bottom
    padded_low = low if _is_even(x.shape[-1]) else F.pad(low, [0, 1])
    padded_high = high if _is_even(x.shape[-1]) else F.pad(high, [0, 1])
    low_left, low_right = low[..., 0::2], padded_low[..., 1::2]
    high_left, high_right = high[..., 0::2], padded_high[..., 1::2]
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
    """Transform ... x 4 x h x w to ... x 2h x 2w."""
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
    # Core ML and ExecuTorch support pixel_shuffle only with one channel axis.
    return F.pixel_shuffle(pixels.flatten(-4, -3), 2)
