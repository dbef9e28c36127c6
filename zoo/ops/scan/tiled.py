"""The selective scan in tiles of PyTorch operators, for machines without a compiler.

The decays and inputs of a tile of steps are computed at once; then each step of the recurrence is
one multiply-add. The backward pass stores the state before each tile and recomputes the others, so
no tensor of size B x D x L x N is needed. The layout of a tile is T B G W N, as in
zoo/ops/scan/plain.py. Autograd does not see into the operator, so the gradients are written out.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.ops.scan.inputs import ScanInputs
from zoo.ops.scan.plain import by_step, read_out, terms, weights_by_step

TILE = 64  # steps of a tile


def _tiles(length: int) -> Iterator[slice]:
    return (slice(start, start + TILE) for start in range(0, length, TILE))


def _steps(delta: Tensor, bias: Tensor, delta_softplus: bool) -> Tensor:
    delta = delta + bias[:, None]
    return F.softplus(delta) if delta_softplus else delta


def _start(u: Tensor, B: Tensor) -> Tensor:
    return u.new_zeros(u.shape[0], B.shape[1], u.shape[1] // B.shape[1], B.shape[2])


def _states(h: Tensor, decays: Tensor, inputs: Tensor) -> Tensor:
    """Return the state after each step of a tile, given the state `h` before it."""
    states = torch.empty_like(inputs)
    for t in range(len(inputs)):
        h = torch.addcmul(inputs[t], decays[t], h, out=states[t])
    return states


def forward(inputs: ScanInputs, delta_softplus: bool) -> Tensor:
    """Return y, B D L."""
    u, delta, A, B, C, D, bias = inputs
    steps = _steps(delta, bias, delta_softplus)
    y = torch.empty_like(u, memory_format=torch.contiguous_format)
    h = _start(u, B)
    for tile in _tiles(u.shape[2]):
        states = _states(h, *terms(u[..., tile], steps[..., tile], A, B[..., tile]))
        y[..., tile] = read_out(states, C[..., tile]) + D[:, None] * u[..., tile]
        h = states[-1]
    return y


def backward(dy: Tensor, inputs: ScanInputs, delta_softplus: bool) -> ScanInputs:
    """Return the gradients of the inputs, given the gradient `dy` of the result.

    They are sums of products of the inputs, the states, and the gradient of h[l], which is
    lam[l] = C[l] dy[l] + a[l+1] lam[l+1].
    """
    u, delta, A, B, C, D, bias = inputs
    groups = B.shape[1]
    steps = _steps(delta, bias, delta_softplus)
    du, dsteps, dB, dC = (torch.empty_like(x) for x in (u, steps, B, C))
    dA = torch.zeros_like(A).unflatten(0, (groups, -1))
    before = _states_before_tiles(u, steps, A, B)
    carry = torch.zeros_like(before[0])  # a[l+1] lam[l+1]
    for tile, h in zip(reversed(list(_tiles(u.shape[2]))), reversed(before), strict=True):
        decays, values = terms(u[..., tile], steps[..., tile], A, B[..., tile])
        states = _states(h, decays, values)
        now, step, weight = (by_step(x[..., tile], groups) for x in (u, steps, dy))
        lam = weight * weights_by_step(C[..., tile])
        for t in range(len(lam) - 1, -1, -1):
            carry = lam[t].add_(carry) * decays[t]
        past = decays.mul_(lam).mul_(torch.cat([h.unsqueeze(0), states[:-1]]))  # lam a h[l-1]
        dA += (past * step).sum((0, 1))
        dB[..., tile] = (lam * (step * now)).sum(3).permute(1, 2, 3, 0)
        dC[..., tile] = (states * weight).sum(3).permute(1, 2, 3, 0)
        through = read_out(lam, B[..., tile])
        du[..., tile] = steps[..., tile] * through + D[:, None] * dy[..., tile]
        by_decay = (past * A.unflatten(0, (groups, -1))).sum(-1).flatten(2).permute(1, 2, 0)
        dsteps[..., tile] = by_decay + u[..., tile] * through
    if delta_softplus:
        dsteps *= torch.sigmoid(delta + bias[:, None])
    dD, dbias = (dy * u).sum((0, 2)), dsteps.sum((0, 2))
    return ScanInputs(du, dsteps, dA.flatten(0, 1), dB, dC, dD, dbias)


def _states_before_tiles(u: Tensor, steps: Tensor, A: Tensor, B: Tensor) -> list[Tensor]:
    before = [_start(u, B)]
    for tile in list(_tiles(u.shape[2]))[:-1]:
        inside = terms(u[..., tile], steps[..., tile], A, B[..., tile])
        before.append(_states(before[-1], *inside)[-1].clone())
    return before
