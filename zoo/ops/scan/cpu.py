"""The selective scan on the CPU, compiled by Numba.

A unit of work is a block of sixteen channels of one group, which are the lanes of a vector. A state
stays in a register during a tile of steps, so no array of size B x D x L x N is needed.
Exponentials are polynomials, because calls to the math library do not vectorise. Units run on
several threads; the results do not depend on the number of threads.
"""

from typing import Any

import numpy as np
from numba import njit
from torch import Tensor

from zoo.ops.lanes import LANES, exponential, load, sigmoid, softplus, store, total, transpose
from zoo.ops.scan.inputs import ScanInputs
from zoo.ops.threads import parallel_for

TILE = 64  # steps of a tile
UPDATES_PER_THREAD = 1 << 17  # about 30 us of state updates; waking a thread takes as long

# Fused multiply-adds are allowed, but not reordering sums. Divisions do not check for zero.
_kernel: Any = njit(nogil=True, cache=True, fastmath={"contract", "nsz"}, error_model="numpy")


@_kernel
def _locate(unit, groups, blocks, width):
    """Return batch, group, block, first channel and number of channels of a unit of work."""
    batch, rest = divmod(unit, groups * blocks)
    group, block = divmod(rest, blocks)
    first = group * width + block * LANES
    return batch, group, block, first, min(LANES, (group + 1) * width - first)


@_kernel
def _gather(rows, start, length, lanes, steps, tile, square):
    """Transpose `lanes` rows into a tile: tile[t, j] = rows[start + j length + t].

    Lanes beyond the last row are 0.
    """
    whole = steps - steps % LANES
    square[lanes * LANES :] = 0
    for t in range(0, whole, LANES):
        for j in range(lanes):
            store(square, j * LANES, load(rows, start + j * length + t))
        transpose(square, tile, t * LANES)
    for t in range(whole, steps):
        for j in range(lanes):
            tile[t * LANES + j] = rows[start + j * length + t]
        for j in range(lanes, LANES):
            tile[t * LANES + j] = 0


@_kernel
def _scatter(tile, rows, start, length, lanes, steps, square):
    """Write a tile back to rows, as the inverse of `_gather`."""
    whole = steps - steps % LANES
    for t in range(0, whole, LANES):
        for j in range(LANES):
            store(square, j * LANES, load(tile, (t + j) * LANES))
        transpose(square, square, 0)
        for j in range(lanes):
            store(rows, start + j * length + t, load(square, j * LANES))
    for t in range(whole, steps):
        for j in range(lanes):
            rows[start + j * length + t] = tile[t * LANES + j]


@_kernel
def _channels(values, first, lanes, states, out):
    """Copy the values of a block of channels: out[n, j] = values[first + j, n], or 0."""
    out[:] = 0
    for j in range(lanes):
        for n in range(states):
            out[n * LANES + j] = values[(first + j) * states + n]


@_kernel
def _steps_of(u, bias, use_softplus, steps, delta, product):
    """Add bias and softplus to `delta` in place, and write its product with u, for a tile."""
    offset = load(bias, 0)
    for p in range(0, steps * LANES, LANES):
        x = load(delta, p) + offset
        if use_softplus:
            x = softplus(x)
        store(delta, p, x)
        store(product, p, x * load(u, p))


@_kernel
def _weights(values, start, length, states, steps, tile):
    """Copy the weights of a tile of steps: tile[n, t] = values[start + n length + t]."""
    for n in range(states):
        for t in range(steps):
            tile[n * TILE + t] = values[start + n * length + t]


@_kernel
def _forward(first_unit, last_unit, u, raw, A, B, C, D, bias, use_softplus, sizes, y):
    """Write y for the units in range(first_unit, last_unit); all arrays are flat."""
    channels, length, groups, states = sizes
    dtype = u.dtype
    width = channels // groups
    blocks = -(-width // LANES)
    h, a = np.empty(states * LANES, dtype), np.empty(states * LANES, dtype)
    b_t, c_t = np.empty(states * TILE, dtype), np.empty(states * TILE, dtype)
    bias_j, skip = np.empty(LANES, dtype), np.empty(LANES, dtype)
    u_t, delta = np.empty(TILE * LANES, dtype), np.empty(TILE * LANES, dtype)
    product, out = np.empty(TILE * LANES, dtype), np.empty(TILE * LANES, dtype)
    square = np.empty(LANES * LANES, dtype)
    for unit in range(first_unit, last_unit):
        batch, group, _, first, lanes = _locate(unit, groups, blocks, width)
        rows = (batch * channels + first) * length
        weights = (batch * groups + group) * states * length
        _channels(A, first, lanes, states, a)
        _channels(bias, first, lanes, 1, bias_j)
        _channels(D, first, lanes, 1, skip)
        h[:] = 0
        for start in range(0, length, TILE):
            steps = min(TILE, length - start)
            _gather(u, rows + start, length, lanes, steps, u_t, square)
            _gather(raw, rows + start, length, lanes, steps, delta, square)
            _steps_of(u_t, bias_j, use_softplus, steps, delta, product)
            _weights(B, weights + start, length, states, steps, b_t)
            _weights(C, weights + start, length, states, steps, c_t)
            passed = load(skip, 0)
            for p in range(0, steps * LANES, LANES):
                store(out, p, load(u_t, p) * passed)
            for n in range(states):
                rate, state = load(a, n * LANES), load(h, n * LANES)
                for t in range(steps):
                    p = t * LANES
                    keep = exponential(load(delta, p) * rate)
                    state = keep * state + load(product, p) * b_t[n * TILE + t]
                    store(out, p, load(out, p) + state * c_t[n * TILE + t])
                store(h, n * LANES, state)
            _scatter(out, y, rows + start, length, lanes, steps, square)


@_kernel
def _backward(
    first_unit,
    last_unit,
    dy,
    u,
    raw,
    A,
    B,
    C,
    D,
    bias,
    use_softplus,
    sizes,
    du,
    draw,
    dA,
    dB,
    dC,
    dD,
):
    """Write the gradients for the units in range(first_unit, last_unit); all arrays are flat.

    A first pass stores the state before each tile. Then, from the last tile to the first, the
    states in the tile are recomputed, and the adjoint runs backwards:

        lam[l] = C[l] dy[l] + a[l+1] lam[l+1]

    dB and dC are sums over the channels of a block, with one slice per block; dA and dD are sums
    over the steps.
    """
    channels, length, groups, states = sizes
    dtype = u.dtype
    width = channels // groups
    blocks, tiles = -(-width // LANES), -(-length // TILE)
    before = np.empty(tiles * states * LANES, dtype)
    inside = np.empty((TILE + 1) * LANES, dtype)  # the state before each step of a tile
    decay = np.empty(TILE * LANES, dtype)
    h, a = np.empty(states * LANES, dtype), np.empty(states * LANES, dtype)
    lam, grad_a = np.empty(states * LANES, dtype), np.empty(states * LANES, dtype)
    b_t, c_t = np.empty(states * TILE, dtype), np.empty(states * TILE, dtype)
    bias_j, skip = np.empty(LANES, dtype), np.empty(LANES, dtype)
    u_t, delta = np.empty(TILE * LANES, dtype), np.empty(TILE * LANES, dtype)
    raw_t, dy_t = np.empty(TILE * LANES, dtype), np.empty(TILE * LANES, dtype)
    product, nothing = np.empty(TILE * LANES, dtype), np.zeros(LANES, dtype)
    du_t, draw_t = np.empty(TILE * LANES, dtype), np.empty(TILE * LANES, dtype)
    square = np.empty(LANES * LANES, dtype)
    for unit in range(first_unit, last_unit):
        batch, group, block, first, lanes = _locate(unit, groups, blocks, width)
        rows = (batch * channels + first) * length
        weights = (batch * groups + group) * states * length
        sums = ((batch * groups + group) * blocks + block) * states * length
        _channels(A, first, lanes, states, a)
        _channels(bias, first, lanes, 1, bias_j)
        _channels(D, first, lanes, 1, skip)
        h[:] = 0
        lam[:] = 0
        grad_a[:] = 0
        for start in range(0, length, TILE):
            for i in range(states * LANES):
                before[start // TILE * states * LANES + i] = h[i]
            if start + TILE >= length:
                break
            _gather(u, rows + start, length, lanes, TILE, u_t, square)
            _gather(raw, rows + start, length, lanes, TILE, delta, square)
            _steps_of(u_t, bias_j, use_softplus, TILE, delta, product)
            _weights(B, weights + start, length, states, TILE, b_t)
            for n in range(states):
                rate, state = load(a, n * LANES), load(h, n * LANES)
                for t in range(TILE):
                    p = t * LANES
                    keep = exponential(load(delta, p) * rate)
                    state = keep * state + load(product, p) * b_t[n * TILE + t]
                store(h, n * LANES, state)
        zeros = load(nothing, 0)
        grad_skip = zeros
        for tile in range(tiles - 1, -1, -1):
            start = tile * TILE
            steps = min(TILE, length - start)
            _gather(u, rows + start, length, lanes, steps, u_t, square)
            _gather(raw, rows + start, length, lanes, steps, delta, square)
            _gather(dy, rows + start, length, lanes, steps, dy_t, square)
            raw_t[:] = delta
            _steps_of(u_t, bias_j, use_softplus, steps, delta, product)
            _weights(B, weights + start, length, states, steps, b_t)
            _weights(C, weights + start, length, states, steps, c_t)
            du_t[:] = 0
            draw_t[:] = 0
            for n in range(states):
                rate, state = load(a, n * LANES), load(before, (tile * states + n) * LANES)
                store(inside, 0, state)
                for t in range(steps):
                    p = t * LANES
                    keep = exponential(load(delta, p) * rate)
                    state = keep * state + load(product, p) * b_t[n * TILE + t]
                    store(decay, p, keep)
                    store(inside, p + LANES, state)
                adjoint, grad_rate = load(lam, n * LANES), load(grad_a, n * LANES)
                for t in range(steps - 1, -1, -1):
                    p = t * LANES
                    slope = load(dy_t, p)
                    adjoint = adjoint + slope * c_t[n * TILE + t]
                    dB[sums + n * length + start + t] = total(adjoint * load(product, p))
                    dC[sums + n * length + start + t] = total(load(inside, p + LANES) * slope)
                    store(du_t, p, load(du_t, p) + adjoint * b_t[n * TILE + t])
                    adjoint = adjoint * load(decay, p)
                    past = adjoint * load(inside, p)
                    store(draw_t, p, load(draw_t, p) + past * rate)
                    grad_rate = grad_rate + past * load(delta, p)
                store(lam, n * LANES, adjoint)
                store(grad_a, n * LANES, grad_rate)
            offset, passed = load(bias_j, 0), load(skip, 0)
            for p in range(0, steps * LANES, LANES):
                through, x, slope = load(du_t, p), load(u_t, p), load(dy_t, p)
                change = load(draw_t, p) + through * x
                if use_softplus:
                    change = change * sigmoid(load(raw_t, p) + offset)
                store(draw_t, p, change)
                store(du_t, p, load(delta, p) * through + passed * slope)
                grad_skip = grad_skip + x * slope
            _scatter(du_t, du, rows + start, length, lanes, steps, square)
            _scatter(draw_t, draw, rows + start, length, lanes, steps, square)
        store(skip, 0, grad_skip)
        for j in range(lanes):
            dD[batch * channels + first + j] = skip[j]
            for n in range(states):
                dA[(batch * channels + first + j) * states + n] = grad_a[n * LANES + j]


def _flat(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    return tuple(tensor.detach().contiguous().view(-1).numpy() for tensor in tensors)


def _run(kernel: Any, inputs: ScanInputs, arguments: tuple[Any, ...]) -> None:
    """Run a kernel on all units of work."""
    batch, _, length = inputs.u.shape
    groups, states = inputs.B.shape[1:3]
    units = batch * groups * _blocks(inputs)
    updates = LANES * length * states
    parallel_for(kernel, units, arguments, min_per_thread=-(-UPDATES_PER_THREAD // updates))


def _sizes(inputs: ScanInputs) -> tuple[int, int, int, int]:
    """Return the numbers of channels, steps, groups and states."""
    _, channels, length = inputs.u.shape
    _, groups, states, _ = inputs.B.shape
    return channels, length, groups, states


def _blocks(inputs: ScanInputs) -> int:
    """Return the number of blocks of channels per group."""
    return -(-(inputs.u.shape[1] // inputs.B.shape[1]) // LANES)


def forward(inputs: ScanInputs, delta_softplus: bool) -> Tensor:
    """Return y, B D L, for inputs on the CPU."""
    y = inputs.u.new_empty(inputs.u.shape)
    _run(_forward, inputs, (*_flat(*inputs), delta_softplus, _sizes(inputs), *_flat(y)))
    return y


def backward(dy: Tensor, inputs: ScanInputs, delta_softplus: bool) -> ScanInputs:
    """Return the gradients of the inputs, given the gradient `dy` of the result."""
    u = inputs.u
    batch, channels, length = u.shape
    groups, states = inputs.B.shape[1:3]
    du, ddelta = u.new_empty(u.shape), u.new_empty(u.shape)
    dA, dD = u.new_empty(batch, channels, states), u.new_empty(batch, channels)
    dB, dC = (u.new_empty(batch, groups, _blocks(inputs), states, length) for _ in range(2))
    outputs = _flat(du, ddelta, dA, dB, dC, dD)
    arguments = (*_flat(dy, *inputs), delta_softplus, _sizes(inputs), *outputs)
    _run(_backward, inputs, arguments)
    dbias = ddelta.sum((0, 2))
    return ScanInputs(du, ddelta, dA.sum(0), dB.sum(2), dC.sum(2), dD.sum(0), dbias)
