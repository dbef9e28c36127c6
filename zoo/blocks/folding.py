"""The arithmetic of re-parameterisation: affine maps absorbed by the linear operator beside them.

Every function returns new modules and leaves its arguments as they were. Products are formed in
float64 and rounded once, so that a chain of folds loses no precision.
"""

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Linear = TypeVar("Linear", nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
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


def batch_norm_affine(norm: Any) -> tuple[Tensor, Tensor]:
    """Return scale and shift (float64, one a channel) of a batch norm with fixed statistics."""
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError(f"{norm} keeps no running statistics: it has no fixed form to fold")
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
        layer: A linear layer or a convolution (not transposed).
        scale: One factor an output channel.
        shift: One summand an output channel, or none.
    """
    weight, scale = layer.weight.detach(), scale.detach().double()
    per_row = scale.reshape(-1, *[1] * (weight.ndim - 1))
    bias = None
    if layer.bias is not None:
        bias = layer.bias.detach().double() * scale
    if shift is not None:
        bias = shift.detach().double() + (0 if bias is None else bias)
    return rebuilt(
        layer,
        weight=(weight.double() * per_row).to(weight.dtype),
        bias=None if bias is None else bias.to(weight.dtype),
    )


def affine_inputs(layer: nn.Linear, scale: Tensor, shift: Tensor | None = None) -> nn.Linear:
    """Absorb `layer(scale * x + shift)`, one value an input feature, into `layer`."""
    weight = layer.weight.detach().double()
    bias = None if layer.bias is None else layer.bias.detach().double()
    if shift is not None:
        bias = weight @ shift.detach().double() + (0 if bias is None else bias)
    dtype = layer.weight.dtype
    return rebuilt(
        layer,
        weight=(weight * scale.detach().double()).to(dtype),
        bias=None if bias is None else bias.to(dtype),
    )


def fold_batch_norm(layer: Linear, norm: nn.Module) -> Linear:
    """Fold the batch norm that follows a linear layer or convolution into it."""
    return scale_outputs(layer, *batch_norm_affine(norm))


def split_affine(norm: nn.LayerNorm) -> tuple[nn.LayerNorm, Tensor, Tensor]:
    """Split a layer norm into one without affine part, and the scale and shift it had."""
    plain = rebuilt(norm, weight=None, bias=None)
    plain.elementwise_affine = False
    return plain, norm.weight, norm.bias


def mean_of(layers: list[nn.Linear]) -> nn.Linear:
    """Return the one linear layer that computes the mean of several on the same input."""
    weight = torch.stack([layer.weight.detach().double() for layer in layers]).mean(0)
    bias = torch.stack([layer.bias.detach().double() for layer in layers]).mean(0)
    dtype = layers[0].weight.dtype
    return rebuilt(layers[0], weight=weight.to(dtype), bias=bias.to(dtype))
