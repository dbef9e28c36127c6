"""The compiled Haar transform as two operators of PyTorch, each the derivative of the other.

The transform is orthonormal: its inverse is its transpose, so the gradient of one is the other.
"""

import torch
from torch import Tensor


@torch.library.custom_op("zoo::haar", mutates_args=())
def haar_op(x: Tensor) -> Tensor:
    """..., 2h, 2w -> ..., 4, h, w, on the CPU, in single or double precision."""
    from zoo.ops.wavelet import cpu

    return cpu.haar(x)


@torch.library.custom_op("zoo::inverse_haar", mutates_args=())
def inverse_haar_op(bands: Tensor) -> Tensor:
    """..., 4, h, w -> ..., 2h, 2w, on the CPU, in single or double precision."""
    from zoo.ops.wavelet import cpu

    return cpu.inverse_haar(bands)


@haar_op.register_fake
def _(x):
    *outer, height, width = x.shape
    return x.new_empty(*outer, 4, height // 2, width // 2)


@inverse_haar_op.register_fake
def _(bands):
    *outer, _, height, width = bands.shape
    return bands.new_empty(*outer, 2 * height, 2 * width)


haar_op.register_autograd(lambda ctx, gradient: inverse_haar_op(gradient))
inverse_haar_op.register_autograd(lambda ctx, gradient: haar_op(gradient))


@haar_op.register_vmap
def _(info, in_dims, x):
    return haar_op(x.movedim(in_dims[0], 0)), 0


@inverse_haar_op.register_vmap
def _(info, in_dims, bands):
    return inverse_haar_op(bands.movedim(in_dims[0], 0)), 0
