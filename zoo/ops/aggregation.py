"""Small kernel aggregation (SKA) of LSNet (arXiv 2503.23135): convolution with dynamic kernels."""

import torch
import torch.nn.functional as F
from torch import Tensor


def aggregate(x: Tensor, kernels: Tensor) -> Tensor:
    """Convolve each pixel with its own 3x3 kernel.

    Channel c uses kernel c mod G (eq. 7 of the paper and the public code): y[c, i, j] is the sum
    over p, q in 0..2 of x[c, i + p - 1, j + q - 1] * kernels[c mod G, 3 p + q, i, j], with zero
    padding. Sums use at least single precision.

    Args:
        x: B x C x H x W, where C is a multiple of G.
        kernels: B x G x 9 x H x W.

    Returns:
        B x C x H x W, with the dtype of `x`.
    """
    batch, channels, height, width = x.shape
    wide = torch.promote_types(x.dtype, torch.float32)
    groups = kernels.shape[1]
    shared = F.pad(x.to(wide), [1, 1, 1, 1])
    shared = shared.view(batch, channels // groups, groups, height + 2, width + 2)
    taps = [tap.unsqueeze(1) for tap in kernels.to(wide).unbind(2)]  # each B 1 G H W
    total = shared[..., :height, :width] * taps[0]
    for i in range(1, 9):
        row, column = i // 3, i % 3
        shifted = shared[..., row : row + height, column : column + width]
        total = torch.addcmul(total, shifted, taps[i])
    return total.flatten(1, 2).to(x.dtype)
