"""The selective scan on a GPU, compiled by Triton.

A program processes a block of channels of one group in tiles of steps. Within a tile, the
recurrence is a parallel prefix scan over pairs (decay, input); the last state is carried to the
next tile. The backward pass stores the state before each tile, recomputes the states in the tile,
and runs the adjoint from the last tile to the first. Sums over channels (the gradients of B and C)
are computed in a fixed order, so results are reproducible.
"""

# In Triton kernels, indexing and calls do not have the types that pyright expects.
# pyright: reportArgumentType=false, reportCallIssue=false

import triton
import triton.language as tl
from torch import Tensor

from zoo.ops.scan.inputs import ScanInputs

STEPS = 16  # steps of a tile
ELEMENTS = 2048  # elements of a tile, T x D x N: a few of them fit into the registers of four warps
PROGRAMS = 512  # enough for a large GPU; more would only enlarge the partial sums


# T: steps of a tile. D: channels of a block. N: states, rounded up to a power of two; additional
# states are masked with decay 1 and input 0.


@triton.jit
def _chain(decay, value, next_decay, next_value):
    """Combine two consecutive sections of the recurrence."""
    return decay * next_decay, next_decay * value + next_value


@triton.jit
def _softplus(x):
    """Return log(1 + exp x); log(w) t / (w - 1) with w = 1 + t is accurate for small t."""
    t = tl.exp(-tl.abs(x))
    w = 1 + t
    small = tl.where(w == 1, t, tl.log(w) * (t / tl.where(w == 1, 1.0, w - 1)).to(x.dtype))
    return 0.5 * (x + tl.abs(x)) + small  # unlike max(x, 0), this keeps NaN


@triton.jit
def _steps(delta_ptr, bias, rows, at, valid, use_softplus: tl.constexpr):
    """Load step sizes, add bias and softplus, and return T D, with 0 where `valid` is false."""
    x = tl.load(delta_ptr + rows + at, mask=valid, other=0.0) + bias
    if use_softplus:
        x = _softplus(x)
    return tl.where(valid, x, 0.0).to(bias.dtype)


@triton.jit
def _block(group, block, width, D: tl.constexpr):
    """Return the channels of a block, and a mask of those that exist."""
    inside = block * D + tl.arange(0, D)
    return group * width + inside, inside < width


@triton.jit
def _forward(
    u_ptr, delta_ptr, A_ptr, B_ptr, C_ptr, skip_ptr, bias_ptr,
    y_ptr, before_ptr,
    groups, width, length, states,
    use_softplus: tl.constexpr, store_states: tl.constexpr,
    T: tl.constexpr, D: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Write y (B D L) or, if `store_states`, the state before each tile (B tiles D N)."""
    batch = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(width, D)
    group = tl.program_id(1) // blocks
    d, some = _block(group, tl.program_id(1) % blocks, width, D)
    channels = groups * width
    n = tl.arange(0, N)
    of_state = some[:, None] & (n < states)[None, :]
    A = tl.load(A_ptr + d[:, None] * states + n[None, :], mask=of_state, other=0.0)  # D N
    bias = tl.load(bias_ptr + d, mask=some, other=0.0)[None, :]
    skip = tl.load(skip_ptr + d, mask=some, other=0.0)[None, :]
    rows = ((batch * channels + d) * length)[None, :]
    weights = (((batch * groups + group) * states + n) * length)[None, :]
    tiles = tl.cdiv(length, T)
    t = tl.arange(0, T)
    h = tl.zeros((D, N), dtype=A.dtype)
    for tile in range(tiles):
        at = (tile * T + t)[:, None]
        valid = (at < length) & some[None, :]
        if store_states:
            place = ((batch * tiles + tile) * channels + d) * states
            tl.store(before_ptr + place[:, None] + n[None, :], h, mask=of_state)
        step = _steps(delta_ptr, bias, rows, at, valid, use_softplus)
        u = tl.load(u_ptr + rows + at, mask=valid, other=0.0)
        of_tile = (at < length) & (n < states)[None, :]
        B = tl.load(B_ptr + weights + at, mask=of_tile, other=0.0)  # T N
        decay = tl.exp(step[:, :, None] * A[None, :, :])
        given = (step * u)[:, :, None] * B[:, None, :]
        through, inside = tl.associative_scan((decay, given), 0, _chain)
        now = inside + through * h[None, :, :]
        if not store_states:
            C = tl.load(C_ptr + weights + at, mask=of_tile, other=0.0)
            y = tl.sum(now * C[:, None, :], 2) + skip * u
            tl.store(y_ptr + rows + at, y, mask=valid)
        h = tl.sum(tl.where((t == T - 1)[:, None, None], now, 0.0), 0)


@triton.jit
def _backward(
    dy_ptr, u_ptr, delta_ptr, A_ptr, B_ptr, C_ptr, skip_ptr, bias_ptr, before_ptr,
    du_ptr, ddelta_ptr, dA_ptr, dB_ptr, dC_ptr, dskip_ptr,
    groups, width, length, states, parts,
    use_softplus: tl.constexpr, T: tl.constexpr, D: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Write du, ddelta (B D L), dA (B D N), dskip (B D), dB and dC (B G parts N L)."""
    batch = tl.program_id(0).to(tl.int64)
    group, part = tl.program_id(1) // parts, tl.program_id(1) % parts
    channels = groups * width
    n = tl.arange(0, N)
    t = tl.arange(0, T)
    first = (t == 0)[:, None, None]
    weights = (((batch * groups + group) * states + n) * length)[None, :]
    sums = ((((batch * groups + group) * parts + part) * states + n) * length)[None, :]
    tiles = tl.cdiv(length, T)
    for block in range(part, tl.cdiv(width, D), parts):
        d, some = _block(group, block, width, D)
        of_state = some[:, None] & (n < states)[None, :]
        A = tl.load(A_ptr + d[:, None] * states + n[None, :], mask=of_state, other=0.0)
        bias = tl.load(bias_ptr + d, mask=some, other=0.0)[None, :]
        skip = tl.load(skip_ptr + d, mask=some, other=0.0)[None, :]
        rows = ((batch * channels + d) * length)[None, :]
        dA = tl.zeros((D, N), dtype=A.dtype)
        dskip = tl.zeros((D,), dtype=A.dtype)
        after = tl.zeros((D, N), dtype=A.dtype)  # the adjoint of the first step of the next tile
        for back in range(tiles):
            tile = tiles - 1 - back
            at = (tile * T + t)[:, None]
            valid = (at < length) & some[None, :]
            of_tile = (at < length) & (n < states)[None, :]
            place = ((batch * tiles + tile) * channels + d) * states
            h = tl.load(before_ptr + place[:, None] + n[None, :], mask=of_state, other=0.0)
            # The state before each step: those of the tile, shifted by one step.
            past = valid & (t > 0)[:, None]
            step = _steps(delta_ptr, bias, rows, at - 1, past, use_softplus)
            given = step * tl.load(u_ptr + rows + at - 1, mask=past, other=0.0)
            B = tl.load(B_ptr + weights + at - 1, mask=of_tile & (t > 0)[:, None], other=0.0)
            decay = tl.exp(step[:, :, None] * A[None, :, :])
            through, inside = tl.associative_scan(
                (decay, given[:, :, None] * B[:, None, :]), 0, _chain
            )
            before = inside + through * h[None, :, :]
            # The adjoint: lam[at] = C[at] dy[at] + a[at+1] lam[at+1].
            coming = (at + 1 < length) & some[None, :]
            step = _steps(delta_ptr, bias, rows, at + 1, coming, use_softplus)
            decay = tl.exp(step[:, :, None] * A[None, :, :])
            dy = tl.load(dy_ptr + rows + at, mask=valid, other=0.0)
            C = tl.load(C_ptr + weights + at, mask=of_tile, other=0.0)
            through, inside = tl.associative_scan(
                (decay, dy[:, :, None] * C[:, None, :]), 0, _chain, reverse=True
            )
            lam = inside + through * after[None, :, :]
            after = tl.sum(tl.where(first, lam, 0.0), 0)
            # The gradients.
            step = _steps(delta_ptr, bias, rows, at, valid, use_softplus)
            u = tl.load(u_ptr + rows + at, mask=valid, other=0.0)
            B = tl.load(B_ptr + weights + at, mask=of_tile, other=0.0)
            before = tl.exp(step[:, :, None] * A[None, :, :]) * before  # a[at] h[at-1]
            now = before + (step * u)[:, :, None] * B[:, None, :]
            dA += tl.sum(lam * before * step[:, :, None], 0)
            dskip += tl.sum(u * dy, 0)
            dB = tl.sum(lam * (step * u)[:, :, None], 1)
            dC = tl.sum(now * dy[:, :, None], 1)
            dB += tl.load(dB_ptr + sums + at, mask=of_tile, other=0.0)
            dC += tl.load(dC_ptr + sums + at, mask=of_tile, other=0.0)
            tl.store(dB_ptr + sums + at, dB, mask=of_tile)
            tl.store(dC_ptr + sums + at, dC, mask=of_tile)
            by_input = tl.sum(lam * B[:, None, :], 2)
            dstep = tl.sum(lam * before * A[None, :, :], 2) + by_input * u
            if use_softplus:
                x = tl.load(delta_ptr + rows + at, mask=valid, other=0.0) + bias
                dstep = dstep / (1 + tl.exp(-x))
            tl.store(ddelta_ptr + rows + at, dstep, mask=valid)
            tl.store(du_ptr + rows + at, step * by_input + skip * dy, mask=valid)
        tl.store(
            dA_ptr + ((batch * channels + d) * states)[:, None] + n[None, :], dA, mask=of_state
        )
        tl.store(dskip_ptr + batch * channels + d, dskip, mask=some)


def _tile(width: int, states: int) -> dict[str, int]:
    """Return the sizes of a tile: D channels of the `width` of a group, N states."""
    n = triton.next_power_of_2(states)
    d = max(1, min(triton.next_power_of_2(width), ELEMENTS // (STEPS * n)))
    return {"T": STEPS, "D": d, "N": n}


def _run_forward(inputs: ScanInputs, delta_softplus: bool, store_states: bool) -> Tensor:
    """Return y (B D L) or, if `store_states`, the state before each tile (B tiles D N)."""
    batch, channels, length = inputs.u.shape
    groups, states = inputs.B.shape[1:3]
    width = channels // groups
    tile = _tile(width, states)
    tiles = -(-length // STEPS)
    shape = (batch, tiles, channels, states) if store_states else inputs.u.shape
    out = inputs.u.new_empty(shape)
    if batch:
        grid = (batch, groups * -(-width // tile["D"]))
        sizes = (groups, width, length, states)
        options = {"use_softplus": delta_softplus, "store_states": store_states, **tile}
        _forward[grid](*inputs, out, out, *sizes, **options)
    return out


def forward(inputs: ScanInputs, delta_softplus: bool) -> Tensor:
    """Return y, B D L, for inputs on a GPU."""
    inputs = ScanInputs(*(x.contiguous() for x in inputs))
    return _run_forward(inputs, delta_softplus, store_states=False)


def backward(dy: Tensor, inputs: ScanInputs, delta_softplus: bool) -> ScanInputs:
    """Return the gradients of the inputs, given the gradient `dy` of the result."""
    inputs = ScanInputs(*(x.contiguous() for x in inputs))
    u = inputs.u
    batch, channels, length = u.shape
    groups, states = inputs.B.shape[1:3]
    width = channels // groups
    tile = _tile(width, states)
    parts = max(1, min(-(-width // tile["D"]), PROGRAMS // max(1, batch * groups)))
    du, ddelta = (x.new_empty(x.shape) for x in (u, u))
    dA, dD = u.new_empty(batch, channels, states), u.new_empty(batch, channels)
    dB, dC = (u.new_zeros(batch, groups, parts, states, length) for _ in range(2))
    if batch:
        before = _run_forward(inputs, delta_softplus, store_states=True)
        _backward[(batch, groups * parts)](
            dy.contiguous(),
            *inputs,
            before,
            *(du, ddelta, dA, dB, dC, dD),
            *(groups, width, length, states, parts),
            use_softplus=delta_softplus,
            **tile,
        )
    dbias = ddelta.sum((0, 2))
    return ScanInputs(du, ddelta, dA.sum(0), dB.sum(2), dC.sum(2), dD.sum(0), dbias)
