"""The compiled Haar transform and its inverse as custom operators of PyTorch.

The transform is orthonormal, so its inverse is its transpose: each operator is the backward pass of
the other.
"""

import torch
from torch import Tensor


@torch.library.custom_op("zoo::haar", mutates_args=())
def haar_op(x: Tensor) -> Tensor:
    """Transform ... x 2h x 2w to ... x 4 x h x w, on the CPU in single or double precision."""
    from zoo.ops.wavelet import cpu

    return cpu.haar(x)


@torch.library.custom_op("zoo::inverse_haar", mutates_args=())
def inverse_haar_op(bands: Tensor) -> Tensor:
    """Transform ... x 4 x h x w to ... x 2h x 2w, on the CPU in single or double precision."""
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
