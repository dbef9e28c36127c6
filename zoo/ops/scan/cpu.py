"""The selective scan on a CPU, compiled by Numba: forward and backward in one pass each.

Sixteen channels of one group are worked on side by side, as the lanes of a vector, whatever the
number of states is; a state stays in a register over a tile of steps, and nothing of size
B x D x L x N is ever made. Exponentials are polynomials: a call to the library's would not
vectorise. Blocks of channels are shared out over threads; the results do not depend on how many
there are.
"""

from typing import Any

import numpy as np
from numba import njit
from torch import Tensor

from zoo.ops.lanes import LANES, exponential, load, sigmoid, softplus, store, total, transpose
from zoo.ops.threads import share_out

TILE = 64  # steps whose inputs are gathered at a time, and whose states the backward pass keeps
WORTH_A_THREAD = 1 << 17  # updates of a state, some 30 microseconds: waking a thread takes as long

# Products may be contracted, sums keep their order. Divisions do not check for zero.
_kernel: Any = njit(nogil=True, cache=True, fastmath={"contract", "nsz"}, error_model="numpy")


@_kernel
def _place(unit, groups, blocks, width):
    """Return batch, group, block, first channel and number of channels of a unit of work."""
    batch, rest = divmod(unit, groups * blocks)
    group, block = divmod(rest, blocks)
    first = group * width + block * LANES
    return batch, group, block, first, min(LANES, (group + 1) * width - first)


@_kernel
def _gather(rows, start, length, lanes, steps, tile, square):
    """Lay `lanes` rows of flat `rows` side by side: tile[t, j] = rows[start + j length + t].

    The lanes beyond the last row are 0.
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
    """Undo `_gather`."""
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
    """Lay the numbers of a block of channels side by side: out[n, j] = values[first + j, n]."""
    out[:] = 0
    for j in range(lanes):
        for n in range(states):
            out[n * LANES + j] = values[(first + j) * states + n]


@_kernel
def _steps_of(u, bias, soft, steps, delta, product):
    """From the raw steps in `delta` to the steps, and to their products with u, for a tile."""
    offset = load(bias, 0)
    for p in range(0, steps * LANES, LANES):
        x = load(delta, p) + offset
        if soft:
            x = softplus(x)
        store(delta, p, x)
        store(product, p, x * load(u, p))


@_kernel
def _weights(values, start, length, states, steps, tile):
    """Copy the weights of all states over a tile of steps, so that they lie together."""
    for n in range(states):
        for t in range(steps):
            tile[n * TILE + t] = values[start + n * length + t]


@_kernel
def _forward(first_unit, last_unit, u, raw, A, B, C, D, bias, soft, sizes, y):
    """y of the units from `first_unit` to before `last_unit`; all arrays are flat."""
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
        batch, group, _, first, lanes = _place(unit, groups, blocks, width)
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
            _steps_of(u_t, bias_j, soft, steps, delta, product)
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
    first_unit, last_unit, dy, u, raw, A, B, C, D, bias, soft, sizes, du, draw, dA, dB, dC, dD
):
    """Gradients of the units from `first_unit` to before `last_unit`; all arrays are flat.

    A first pass keeps the state before each tile. Then, from the last tile to the first, the states
    inside are computed again and the adjoint runs backwards:

        lam[l] = C[l] dy[l] + a[l+1] lam[l+1]

    dB and dC are sums over the channels of a block, one slice a block; dA and dD over the steps.
    """
    channels, length, groups, states = sizes
    dtype = u.dtype
    width = channels // groups
    blocks, tiles = -(-width // LANES), -(-length // TILE)
    before = np.empty(tiles * states * LANES, dtype)
    inside = np.empty((TILE + 1) * LANES, dtype)  # the states before each step of a tile
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
        batch, group, block, first, lanes = _place(unit, groups, blocks, width)
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
            _steps_of(u_t, bias_j, soft, TILE, delta, product)
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
            _steps_of(u_t, bias_j, soft, steps, delta, product)
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
                if soft:
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


def _share_out(kernel: Any, u: Tensor, B: Tensor, arguments: tuple[Any, ...]) -> None:
    """Run a kernel over all blocks of channels."""
    units = u.shape[0] * B.shape[1] * _blocks(u, B)
    updates = LANES * u.shape[2] * B.shape[2]
    share_out(kernel, units, arguments, least=-(-WORTH_A_THREAD // updates))


def _sizes(u: Tensor, B: Tensor) -> tuple[int, int, int, int]:
    """Return the numbers of channels, steps, groups and states."""
    return u.shape[1], u.shape[2], B.shape[1], B.shape[2]


def _blocks(u: Tensor, B: Tensor) -> int:
    """Return the number of blocks of channels of a group."""
    return -(-(u.shape[1] // B.shape[1]) // LANES)


def forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor, soft: bool
) -> Tensor:
    """Return y (B, D, L); all tensors of one floating type, on the CPU."""
    y = u.new_empty(u.shape)
    inputs = _flat(u, delta, A, B, C, D, bias)
    _share_out(_forward, u, B, (*inputs, soft, _sizes(u, B), *_flat(y)))
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
    du, ddelta = u.new_empty(u.shape), u.new_empty(u.shape)
    dA, dD = u.new_empty(batch, channels, states), u.new_empty(batch, channels)
    dB, dC = (u.new_empty(batch, groups, _blocks(u, B), states, length) for _ in range(2))
    inputs = _flat(dy, u, delta, A, B, C, D, bias)
    outputs = _flat(du, ddelta, dA, dB, dC, dD)
    _share_out(_backward, u, B, (*inputs, soft, _sizes(u, B), *outputs))
    return du, ddelta, dA.sum(0), dB.sum(2), dC.sum(2), dD.sum(0), ddelta.sum((0, 2))
