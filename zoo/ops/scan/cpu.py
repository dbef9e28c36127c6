"""The selective scan on a CPU, compiled by Numba: forward and backward in one pass each.

Sixteen channels of one group are worked on side by side, so that every inner loop is over sixteen
neighbours in memory and vectorises whatever the number of states is; the state stays in registers
and first-level cache, and nothing of size B x D x L x N is ever made. Exponentials are polynomials:
a call to the library's would not vectorise. Blocks of channels are shared out over threads; the
results do not depend on how many there are.
"""

import math
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload
from torch import Tensor

from zoo.ops.threads import share_out

LANES = 16  # channels side by side
TILE = 64  # steps whose inputs are gathered at a time, and whose states the backward pass keeps

# Products may be contracted; in the kernels the order of a sum is free too. What is no number stays
# none, so that a diverged model is seen. Divisions do not check for zero: that would not vectorise.
_EXACT: Any = {"fastmath": {"contract", "nsz"}, "error_model": "numpy"}
_kernel = njit(nogil=True, cache=True, fastmath={"contract", "nsz", "reassoc"}, error_model="numpy")


def _float_of_bits_rule(context: Any, bits: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


_float_of_bits: Any = intrinsic(_float_of_bits_rule)


_LOW, _HIGH = np.float32(-87.3), np.float32(88.0)
_LOG2E, _HALF, _ONE, _TWO = (np.float32(x) for x in (1.4426950408889634, 0.5, 1.0, 2.0))
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_E2, _E3, _E4, _E5, _E6, _E7 = (np.float32(1 / math.factorial(k)) for k in range(2, 8))
_L3, _L5, _L7, _L9, _L11, _L13, _L15 = (np.float32(1 / k) for k in range(3, 16, 2))
_SHIFT, _BIAS = np.int32(23), np.int32(127)


def exponential(x: float) -> float:
    """Return exp(x); in single precision within 2e-7, over the range where that is a number."""
    return math.exp(x)


@overload(exponential, inline="always", jit_options=_EXACT)
def _exponential(x):
    if x != types.float32:
        return lambda x: math.exp(x)

    def polynomial(x):
        x = min(max(x, _LOW), _HIGH)
        power = np.int32(x * _LOG2E + math.copysign(_HALF, x))  # to the nearest
        whole = np.float32(power)
        r = (x - whole * _LN2_HIGH) - whole * _LN2_LOW  # |r| <= ln 2 / 2
        p = ((((_E7 * r + _E6) * r + _E5) * r + _E4) * r + _E3) * r + _E2
        return (p * (r * r) + r + _ONE) * _float_of_bits((power + _BIAS) << _SHIFT)

    return polynomial


def softplus(x: float) -> float:
    """Return log(1 + exp(x))."""
    return x if x > 20 else math.log1p(math.exp(x))


@overload(softplus, inline="always", jit_options=_EXACT)
def _softplus(x):
    if x != types.float32:
        return lambda x: x if x > 20.0 else math.log1p(math.exp(x))

    def series(x):
        t = exponential(-abs(x))
        s = t / (_TWO + t)  # log(1 + t) = 2 artanh(t / (2 + t))
        q = s * s
        p = ((((((_L15 * q + _L13) * q + _L11) * q + _L9) * q + _L7) * q + _L5) * q + _L3) * q
        # not max(x, 0), which would make a number of what is none
        return _HALF * (x + abs(x)) + _TWO * (s + s * p)

    return series


def sigmoid(x: float) -> float:
    """Return 1 / (1 + exp(-x)), the derivative of softplus."""
    return 1 / (1 + math.exp(-x))


@overload(sigmoid, inline="always", jit_options=_EXACT)
def _sigmoid(x):
    if x != types.float32:
        return lambda x: 1.0 / (1.0 + math.exp(-x))
    return lambda x: _ONE / (_ONE + exponential(-x))


@_kernel
def _place(unit, groups, blocks, width):
    """Return batch, group, first channel and number of channels of a unit of work."""
    batch, rest = divmod(unit, groups * blocks)
    group, block = divmod(rest, blocks)
    first = group * width + block * LANES
    return batch, group, block, first, min(LANES, (group + 1) * width - first)


@_kernel
def _gather(row, first, lanes, start, steps, tile):
    """Lay `lanes` rows of `row` (D L) side by side: tile[t, j] = row[first + j, start + t]."""
    for j in range(lanes):
        for t in range(steps):
            tile[t, j] = row[first + j, start + t]


@_kernel
def _scatter(tile, row, first, lanes, start, steps):
    for j in range(lanes):
        for t in range(steps):
            row[first + j, start + t] = tile[t, j]


@_kernel
def _steps_of(raw, u, bias, soft, steps, delta, product):
    """From the raw steps to delta and delta * u, for a tile."""
    for t in range(steps):
        for j in range(LANES):
            x = raw[t, j] + bias[j]
            if soft:
                x = softplus(x)
            delta[t, j] = x
            product[t, j] = x * u[t, j]


@_kernel
def _forward(first_unit, last_unit, u, raw, A, B, C, D, bias, soft, y):
    """y of the units from `first_unit` to before `last_unit`; B and C are B G L N."""
    dtype = u.dtype
    states, groups, length = A.shape[1], B.shape[1], u.shape[2]
    width = u.shape[1] // groups
    blocks = -(-width // LANES)
    h = np.empty((states, LANES), dtype)
    a = np.zeros((states, LANES), dtype)
    bias_j = np.zeros(LANES, dtype)
    u_t, raw_t, delta, product, out = np.zeros((5, TILE, LANES), dtype)
    for unit in range(first_unit, last_unit):
        batch, group, _, first, lanes = _place(unit, groups, blocks, width)
        h[:] = 0
        for j in range(lanes):
            bias_j[j] = bias[first + j]
            for n in range(states):
                a[n, j] = A[first + j, n]
        for start in range(0, length, TILE):
            steps = min(TILE, length - start)
            _gather(u[batch], first, lanes, start, steps, u_t)
            _gather(raw[batch], first, lanes, start, steps, raw_t)
            _steps_of(raw_t, u_t, bias_j, soft, steps, delta, product)
            out[:] = 0
            for t in range(steps):
                for n in range(states):
                    b, c = B[batch, group, start + t, n], C[batch, group, start + t, n]
                    for j in range(LANES):
                        state = exponential(delta[t, j] * a[n, j]) * h[n, j] + product[t, j] * b
                        h[n, j] = state
                        out[t, j] += c * state
            for j in range(lanes):
                skip = D[first + j]
                for t in range(steps):
                    out[t, j] += skip * u_t[t, j]
            _scatter(out, y[batch], first, lanes, start, steps)


@_kernel
def _backward(first_unit, last_unit, dy, u, raw, A, B, C, D, bias, soft, du, draw, dA, dB, dC, dD):
    """Gradients of the units from `first_unit` to before `last_unit`.

    A first pass keeps the state before each tile. Then, from the last tile to the first, the states
    inside are computed again and the adjoint runs backwards:

        lam[l] = C[l] dy[l] + a[l+1] lam[l+1]

    dB and dC are sums over the channels of a block, one slice a block; dA and dD over the steps.
    """
    dtype = u.dtype
    states, groups, length = A.shape[1], B.shape[1], u.shape[2]
    width = u.shape[1] // groups
    blocks, tiles = -(-width // LANES), -(-length // TILE)
    before = np.empty((tiles, states, LANES), dtype)
    inside = np.empty((TILE + 1, states, LANES), dtype)  # inside[t] is the state before step t
    decay = np.empty((TILE, states, LANES), dtype)
    h = np.empty((states, LANES), dtype)
    lam = np.empty((states, LANES), dtype)
    grad_a = np.empty((states, LANES), dtype)
    a = np.zeros((states, LANES), dtype)
    bias_j, grad_skip, skip = np.zeros((3, LANES), dtype)
    u_t, raw_t, dy_t, delta, product, du_t, draw_t = np.zeros((7, TILE, LANES), dtype)
    for unit in range(first_unit, last_unit):
        batch, group, block, first, lanes = _place(unit, groups, blocks, width)
        h[:] = 0
        lam[:] = 0
        grad_a[:] = 0
        grad_skip[:] = 0
        for j in range(lanes):
            bias_j[j] = bias[first + j]
            skip[j] = D[first + j]
            for n in range(states):
                a[n, j] = A[first + j, n]
        if lanes < LANES:
            dy_t[:] = 0
        for tile in range(tiles):
            before[tile] = h
            start = tile * TILE
            steps = min(TILE, length - start)
            if tile == tiles - 1:
                break
            _gather(u[batch], first, lanes, start, steps, u_t)
            _gather(raw[batch], first, lanes, start, steps, raw_t)
            _steps_of(raw_t, u_t, bias_j, soft, steps, delta, product)
            for t in range(steps):
                for n in range(states):
                    b = B[batch, group, start + t, n]
                    for j in range(LANES):
                        h[n, j] = exponential(delta[t, j] * a[n, j]) * h[n, j] + product[t, j] * b
        for tile in range(tiles - 1, -1, -1):
            start = tile * TILE
            steps = min(TILE, length - start)
            _gather(u[batch], first, lanes, start, steps, u_t)
            _gather(raw[batch], first, lanes, start, steps, raw_t)
            _gather(dy[batch], first, lanes, start, steps, dy_t)
            _steps_of(raw_t, u_t, bias_j, soft, steps, delta, product)
            inside[0] = before[tile]
            for t in range(steps):
                for n in range(states):
                    b = B[batch, group, start + t, n]
                    for j in range(LANES):
                        keep = exponential(delta[t, j] * a[n, j])
                        decay[t, n, j] = keep
                        inside[t + 1, n, j] = keep * inside[t, n, j] + product[t, j] * b
            for t in range(steps - 1, -1, -1):
                du_t[t] = 0
                draw_t[t] = 0
                for n in range(states):
                    b, c = B[batch, group, start + t, n], C[batch, group, start + t, n]
                    sum_b = dtype.type(0)
                    sum_c = dtype.type(0)
                    for j in range(LANES):
                        adjoint = lam[n, j] + c * dy_t[t, j]
                        sum_b += adjoint * product[t, j]
                        sum_c += inside[t + 1, n, j] * dy_t[t, j]
                        du_t[t, j] += adjoint * b
                        adjoint = adjoint * decay[t, n, j]
                        lam[n, j] = adjoint
                        past = adjoint * inside[t, n, j]
                        draw_t[t, j] += past * a[n, j]
                        grad_a[n, j] += past * delta[t, j]
                    dB[batch, group, block, start + t, n] = sum_b
                    dC[batch, group, block, start + t, n] = sum_c
                for j in range(LANES):
                    through_b = du_t[t, j]
                    slope = draw_t[t, j] + through_b * u_t[t, j]
                    if soft:
                        slope *= sigmoid(raw_t[t, j] + bias_j[j])
                    draw_t[t, j] = slope
                    du_t[t, j] = delta[t, j] * through_b + skip[j] * dy_t[t, j]
                    grad_skip[j] += u_t[t, j] * dy_t[t, j]
            _scatter(du_t, du[batch], first, lanes, start, steps)
            _scatter(draw_t, draw[batch], first, lanes, start, steps)
        for j in range(lanes):
            dD[batch, first + j] = grad_skip[j]
            for n in range(states):
                dA[batch, first + j, n] = grad_a[n, j]


def _arrays(tensors: tuple[Tensor, ...]) -> tuple[np.ndarray, ...]:
    return tuple(tensor.detach().contiguous().numpy() for tensor in tensors)


def _units(u: Tensor, B: Tensor) -> tuple[int, int]:
    """Return the number of blocks of a group, and of all units of work."""
    groups = B.shape[1]
    blocks = -(-(u.shape[1] // groups) // LANES)
    return blocks, u.shape[0] * groups * blocks


def forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor, soft: bool
) -> Tensor:
    """Return y (B, D, L); all tensors of one floating type, on the CPU."""
    y = torch.empty_like(u, memory_format=torch.contiguous_format)
    inputs = _arrays((u, delta, A, B.transpose(2, 3), C.transpose(2, 3), D, bias))
    share_out(_forward, _units(u, B)[1], (*inputs, soft, y.numpy()))
    return y


def backward(
    dy: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    bias: Tensor,
    soft: bool,
) -> tuple[Tensor, ...]:
    """Return the gradients of u, delta, A, B, C, D and bias."""
    batch, channels, length = u.shape
    groups, states = B.shape[1], B.shape[2]
    blocks, units = _units(u, B)
    du, ddelta = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (u, delta))
    dA, dD = u.new_empty(batch, channels, states), u.new_empty(batch, channels)
    dB, dC = (u.new_empty(batch, groups, blocks, length, states) for _ in range(2))
    inputs = _arrays((dy, u, delta, A, B.transpose(2, 3), C.transpose(2, 3), D, bias))
    share_out(
        _backward,
        units,
        (*inputs, soft, *(x.numpy() for x in (du, ddelta, dA, dB, dC, dD))),
    )
    dB, dC = (x.sum(2).transpose(2, 3) for x in (dB, dC))
    return du, ddelta, dA.sum(0), dB, dC, dD.sum(0), ddelta.sum((0, 2))
