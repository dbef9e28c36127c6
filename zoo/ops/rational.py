"""Elementwise rational functions with coefficients per group of channels.

The function is the "safe Pade activation unit", version A: P(x) / (1 + sum_i |b_i| |x|^i), which
has no poles (arXiv 1907.06732, eq. 3). In KAT (arXiv 2409.10594, eq. 11) each group of channels has
its own denominator, and all groups share one numerator.
"""

import torch
from torch import Tensor

from zoo.errors import BadInput


def rational(x: Tensor, numerator: Tensor, denominator: Tensor) -> Tensor:
    """Evaluate (a0 + a1 x + a2 x^2 ...) / (1 + |b1| |x| + |b2| |x|^2 ...) elementwise.

    The channels, on the last axis, form G consecutive groups. The computation uses at least single
    precision, because powers overflow half precision. In eager training, only the arguments are
    saved for the backward pass. The derivative of |b| at 0 is defined as 1; otherwise coefficients
    that start at 0 would never change.

    Args:
        x: ... x C, any floating-point dtype.
        numerator: Coefficients a0, a1 ..., 1 x (degree + 1) for all groups or G x (degree + 1).
        denominator: Coefficients b1, b2 ..., G x degree.

    Returns:
        ... x C, with the dtype of `x`.

    Raises:
        BadInput: C is not divisible by G, or the numerator has neither 1 nor G rows.
    """
    if torch.jit.is_scripting():
        return _plain(x, numerator, denominator)
    else:
        groups = denominator.shape[0]
        if x.shape[-1] % groups != 0:
            raise BadInput(f"the {x.shape[-1]} channels of x are not divisible by {groups} groups")
        if numerator.shape[0] not in (1, groups):
            raise BadInput(f"numerator has {numerator.shape[0]} rows, but it needs 1 or {groups}")
        traced = torch.jit.is_tracing() or torch.compiler.is_compiling()
        differentiable = any(t.requires_grad for t in (x, numerator, denominator))
        if torch.is_grad_enabled() and differentiable and not traced:
            return _Rational.apply(x, numerator, denominator)
        return _plain(x, numerator, denominator)


def _plain(x: Tensor, numerator: Tensor, denominator: Tensor) -> Tensor:
    dtype, wide = x.dtype, torch.promote_types(x.dtype, torch.float32)
    x, a, b = x.to(wide), numerator.to(wide), denominator.to(wide)
    x_GC = x.unflatten(-1, (b.shape[0], -1))
    p, q = _polynomial(x_GC, a), _polynomial(x_GC.abs(), _with_one(_magnitude(b)))
    return (p / q).flatten(-2).to(dtype)


def _magnitude(b: Tensor) -> Tensor:
    """Return |b|, with derivative 1 at 0."""
    return torch.where(b < 0, -b, b)


def _with_one(b: Tensor) -> Tensor:
    """Prepend the constant coefficient 1 to the coefficients of a denominator."""
    return torch.cat([torch.ones_like(b[:, :1]), b], dim=1)


def _polynomial(x: Tensor, coefficients: Tensor) -> Tensor:
    """Evaluate polynomials by Horner's rule; x is ... G C, coefficients are G x count, a0 first."""
    last = coefficients.shape[1] - 1
    value = coefficients[:, last:]
    for i in range(last - 1, -1, -1):
        value = torch.addcmul(coefficients[:, i : i + 1], value, x)
    return value.expand_as(x)


def _derivative(coefficients: Tensor) -> Tensor:
    """Return the coefficients of the derivative of a polynomial."""
    powers = torch.arange(1, coefficients.shape[1], device=coefficients.device)
    return coefficients[:, 1:] * powers


class _Rational(torch.autograd.Function):
    """`rational` with a backward pass that recomputes the powers of x."""

    @staticmethod
    def forward(ctx, x, numerator, denominator):
        ctx.save_for_backward(x, numerator, denominator)
        return _plain(x, numerator, denominator)

    @staticmethod
    def backward(ctx, *gradients):
        x, numerator, denominator = ctx.saved_tensors
        wide = torch.promote_types(x.dtype, torch.float32)
        a, b = numerator.to(wide), denominator.to(wide)
        b_with_one = _with_one(_magnitude(b))
        x_GC = x.to(wide).unflatten(-1, (b.shape[0], -1))
        size_GC, outer = x_GC.abs(), gradients[0].to(wide).unflatten(-1, (b.shape[0], -1))
        q = _polynomial(size_GC, b_with_one)
        by_p = outer / q
        by_q = -by_p * _polynomial(x_GC, a) / q
        dx = da = db = None
        if ctx.needs_input_grad[0]:
            slope = _polynomial(size_GC, _derivative(b_with_one)) * x_GC.sign()
            dx = by_p * _polynomial(x_GC, _derivative(a)) + by_q * slope
            dx = dx.flatten(-2).to(x.dtype)
        if ctx.needs_input_grad[1]:
            da = _moments(by_p, x_GC, a.shape[1], a.shape[0]).to(numerator.dtype)
        if ctx.needs_input_grad[2]:
            moments = _moments(by_q, size_GC, b.shape[1] + 1, b.shape[0])[:, 1:]
            db = torch.where(b < 0, -moments, moments).to(denominator.dtype)
        return dx, da, db


def _moments(weights: Tensor, x: Tensor, count: int, rows: int) -> Tensor:
    """Return sums of weights * x^i for i < count: per group, or over all groups if rows is 1."""
    kept = [x.ndim - 2] if rows > 1 else []
    over = [axis for axis in range(x.ndim) if axis not in kept]
    sums = []
    for i in range(count):
        sums.append(weights.sum(over).reshape(rows))
        if i + 1 < count:
            weights = weights * x
    return torch.stack(sums, dim=1)
