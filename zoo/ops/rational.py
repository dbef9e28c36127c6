"""Rational functions of single values, with coefficients by groups of channels.

"Safe Pade, version A": P(x) / (1 + sum_i |b_i| |x|^i) has no poles (arXiv 1907.06732, eq. 3). KAT
(arXiv 2409.10594, eq. 11) gives each group of channels a denominator and all of them one numerator.
"""

import torch
from torch import Tensor

from zoo.errors import BadInput


def rational(x: Tensor, numerator: Tensor, denominator: Tensor) -> Tensor:
    """Evaluate (a0 + a1 x + a2 x^2 ...) / (1 + |b1| |x| + |b2| |x|^2 ...) on every value.

    Channels, the last axis, are cut into G consecutive groups. Computed in single precision at
    least: powers leave the range of half precision. While training without a compiler only `x` is
    kept for the backward pass. The derivative of |b| at 0 is taken as 1, so that coefficients which
    start at 0 move.

    Args:
        x: ... x C, of any floating type.
        numerator: 1 x (degree + 1) for all groups, or G x (degree + 1): a0, a1 ...
        denominator: G x degree: b1, b2 ...

    Returns:
        ... x C, in the type of `x`.

    Raises:
        BadInput: C is no multiple of G, or the numerator has another number of rows than 1 or G.
    """
    if torch.jit.is_scripting():
        return _plain(x, numerator, denominator)
    else:  # a scripted function may hold Python of any kind in the branch that it never takes
        groups = denominator.shape[0]
        if x.shape[-1] % groups != 0:
            raise BadInput(f"x has {x.shape[-1]} channels: a multiple of {groups} is needed")
        if numerator.shape[0] not in (1, groups):
            raise BadInput(f"numerator has {numerator.shape[0]} rows: 1 or {groups} are needed")
        recorded = torch.jit.is_tracing() or torch.compiler.is_compiling()
        learning = any(t.requires_grad for t in (x, numerator, denominator))
        if torch.is_grad_enabled() and learning and not recorded:
            return _Rational.apply(x, numerator, denominator)
        return _plain(x, numerator, denominator)


def _plain(x: Tensor, numerator: Tensor, denominator: Tensor) -> Tensor:
    dtype, wide = x.dtype, torch.promote_types(x.dtype, torch.float32)
    x, a, b = x.to(wide), numerator.to(wide), denominator.to(wide)
    x_GC = x.unflatten(-1, (b.shape[0], -1))
    p, q = _polynomial(x_GC, a), _polynomial(x_GC.abs(), _with_one(_magnitude(b)))
    return (p / q).flatten(-2).to(dtype)


def _magnitude(b: Tensor) -> Tensor:
    """|b|, with the derivative 1 at 0."""
    return torch.where(b < 0, -b, b)


def _with_one(b: Tensor) -> Tensor:
    """The coefficients of a denominator, that of the power 0 among them."""
    return torch.cat([torch.ones_like(b[:, :1]), b], dim=1)


def _polynomial(x: Tensor, coefficients: Tensor) -> Tensor:
    """Horner's rule; x is ... G C, coefficients are G x count, the constant first."""
    last = coefficients.shape[1] - 1
    value = coefficients[:, last:]
    for i in range(last - 1, -1, -1):
        value = torch.addcmul(coefficients[:, i : i + 1], value, x)
    return value.expand_as(x)


def _derivative(coefficients: Tensor) -> Tensor:
    """The coefficients of the derivative of a polynomial."""
    powers = torch.arange(1, coefficients.shape[1], device=coefficients.device)
    return coefficients[:, 1:] * powers


class _Rational(torch.autograd.Function):
    """`rational` with a backward pass that computes the powers of x anew."""

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
    """Sums of weights * x^i for i < count, for each group, or for all of them where `rows` is 1."""
    kept = [x.ndim - 2] if rows > 1 else []
    over = [axis for axis in range(x.ndim) if axis not in kept]
    sums = []
    for i in range(count):
        sums.append(weights.sum(over).reshape(rows))
        if i + 1 < count:
            weights = weights * x
    return torch.stack(sums, dim=1)
