"""The arithmetic of re-parameterisation: affine maps absorbed by the linear operator beside them.

Every function returns new modules and leaves its arguments as they were. Products are formed in
float64 and rounded once, so that a chain of folds loses no precision.
"""

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

Linear = TypeVar(
    "Linear",
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)
Module = TypeVar("Module", bound=nn.Module)


def rebuilt(module: Module, **changes: nn.Module | Tensor | None) -> Module:
    """Return a shallow copy of `module` in which the named children or parameters are others."""
    copied = copy.copy(module)
    for store in ("_modules", "_parameters", "_buffers"):
        copied.__dict__[store] = dict(getattr(module, store))
    for name, value in changes.items():
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
            value = nn.Parameter(value)
        setattr(copied, name, value)
    return copied


def is_fixed_batch_norm(module: nn.Module | None) -> bool:
    """Say whether `module` is a batch norm with running statistics and nothing else.

    Synchronised and frozen ones are; subclasses that do more (an activation, say) are not.
    """
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, FrozenBatchNorm2d)
    return type(module) in kinds and getattr(module, "running_mean", None) is not None


def batch_norm_affine(norm: Any) -> tuple[Tensor, Tensor]:
    """Return scale and shift (float64, one a channel) of a batch norm with fixed statistics."""
    assert is_fixed_batch_norm(norm), norm
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    shift = -norm.running_mean.double() * scale
    if norm.weight is not None:
        scale, shift = scale * norm.weight.double(), shift * norm.weight.double()
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    return scale.detach(), shift.detach()


def scale_outputs(layer: Linear, scale: Tensor, shift: Tensor | None = None) -> Linear:
    """Absorb `scale * layer(x) + shift`, one value an output channel, into `layer`.

    Args:
        layer: A linear layer or a convolution, also a transposed one.
        scale: One factor an output channel.
        shift: One summand an output channel, or none.
    """
    weight, scale = layer.weight.detach(), scale.detach().double()
    bias = None
    if layer.bias is not None:
        bias = layer.bias.detach().double() * scale
    if shift is not None:
        bias = shift.detach().double() + (0 if bias is None else bias)
    return rebuilt(
        layer,
        weight=(weight.double() * _along_outputs(layer, scale)).to(weight.dtype),
        bias=None if bias is None else bias.to(weight.dtype),
    )


def _along_outputs(layer: nn.Module, values: Tensor) -> Tensor:
    """Shape values, one an output channel, so that they multiply the weight of `layer`."""
    weight: Any = layer.weight
    if not isinstance(layer, _TRANSPOSED):
        return values.reshape(-1, *[1] * (weight.ndim - 1))
    # in x out / groups: each input channel meets the output channels of its own group
    rows = values.reshape(layer.groups, -1).repeat_interleave(len(weight) // layer.groups, dim=0)
    return rows.reshape(*rows.shape, *[1] * (weight.ndim - 2))


def affine_inputs(layer: Linear, scale: Tensor, shift: Tensor | None = None) -> Linear:
    """Absorb `layer(scale * x + shift)`, one value an input feature, into `layer`.

    Args:
        layer: A linear layer, or a 1x1 convolution of one group.
        scale: One factor an input feature.
        shift: One summand an input feature, or none.
    """
    weight = layer.weight.detach().double()
    bias = None if layer.bias is None else layer.bias.detach().double()
    if shift is not None:
        bias = weight.flatten(1) @ shift.detach().double() + (0 if bias is None else bias)
    per_column = scale.detach().double().reshape(-1, *[1] * (weight.ndim - 2))
    dtype = layer.weight.dtype
    return rebuilt(
        layer,
        weight=(weight * per_column).to(dtype),
        bias=None if bias is None else bias.to(dtype),
    )


def merge_pointwise(layer: nn.ConvTranspose2d, pointwise: nn.Conv2d) -> nn.ConvTranspose2d:
    """Return the transposed convolution that computes `pointwise(layer(x))`.

    Args:
        layer: Of one group.
        pointwise: A 1x1 convolution of one group.
    """
    assert layer.groups == pointwise.groups == 1
    assert pointwise.kernel_size == pointwise.stride == (1, 1)
    mix = pointwise.weight.detach().double().flatten(1)  # out x middle
    bias = torch.zeros(len(mix), dtype=mix.dtype, device=mix.device)
    if layer.bias is not None:
        bias = mix @ layer.bias.detach().double()
    if pointwise.bias is not None:
        bias = bias + pointwise.bias.detach().double()
    weight, dtype = layer.weight.detach().double(), layer.weight.dtype
    mixed = torch.einsum("imhw,om->iohw", weight, mix).to(dtype)
    # Laid out as written: ExecuTorch refuses weights in another order.
    merged = rebuilt(layer, weight=mixed.contiguous(), bias=bias.to(dtype))
    merged.out_channels = pointwise.out_channels
    return merged


def fold_batch_norm(layer: Linear, norm: nn.Module) -> Linear:
    """Fold the batch norm that follows a linear layer or convolution into it."""
    return scale_outputs(layer, *batch_norm_affine(norm))


def split_affine(norm: nn.LayerNorm) -> tuple[nn.LayerNorm, Tensor, Tensor]:
    """Split a layer norm into one without affine part, and the scale and shift it had."""
    plain = rebuilt(norm, weight=None, bias=None)
    plain.elementwise_affine = False
    return plain, norm.weight, norm.bias


def add_identity(conv: nn.Conv2d) -> nn.Conv2d:
    """Absorb `x + conv(x)` into a convolution that keeps size and channels."""
    kernel = conv.weight.detach().double().clone()
    inputs = kernel.shape[1]  # channels of one group
    middle = [side // 2 for side in kernel.shape[2:]]
    for channel in range(kernel.shape[0]):
        kernel[(channel, channel % inputs, *middle)] += 1
    return rebuilt(conv, weight=kernel.to(conv.weight.dtype))


def mean_of(layers: list[nn.Linear]) -> nn.Linear:
    """Return the one linear layer that computes the mean of several on the same input."""
    weight = torch.stack([layer.weight.detach().double() for layer in layers]).mean(0)
    bias = torch.stack([layer.bias.detach().double() for layer in layers]).mean(0)
    dtype = layers[0].weight.dtype
    return rebuilt(layers[0], weight=weight.to(dtype), bias=bias.to(dtype))
