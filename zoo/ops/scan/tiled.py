"""The selective scan as an operator of plain PyTorch, for machines without a compiler.

Decays and inputs of a tile of steps are made at once, so that a step of the recurrence is one
multiply-add; the backward pass keeps the state before each tile and computes the others again.
Nothing of size B x D x L x N is ever made, and nothing is left to autograd, which does not look
inside an operator. The layout of a tile is T B G W N, as in zoo/ops/scan/plain.py.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.ops.scan.plain import by_step, read_out, terms, weights_by_step

TILE = 64  # steps


def _tiles(length: int) -> Iterator[slice]:
    return (slice(start, start + TILE) for start in range(0, length, TILE))


def _steps(delta: Tensor, bias: Tensor, soft: bool) -> Tensor:
    delta = delta + bias[:, None]
    return F.softplus(delta) if soft else delta


def _start(u: Tensor, B: Tensor) -> Tensor:
    return u.new_zeros(u.shape[0], B.shape[1], u.shape[1] // B.shape[1], B.shape[2])


def _states(h: Tensor, decays: Tensor, inputs: Tensor) -> Tensor:
    """Return the state after each step of a tile; `h` is the one before."""
    states = torch.empty_like(inputs)
    for t in range(len(inputs)):
        h = torch.addcmul(inputs[t], decays[t], h, out=states[t])
    return states


def forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor, soft: bool
) -> Tensor:
    """Return y (B, D, L)."""
    steps = _steps(delta, bias, soft)
    y = torch.empty_like(u, memory_format=torch.contiguous_format)
    h = _start(u, B)
    for tile in _tiles(u.shape[2]):
        states = _states(h, *terms(u[..., tile], steps[..., tile], A, B[..., tile]))
        y[..., tile] = read_out(states, C[..., tile]) + D[:, None] * u[..., tile]
        h = states[-1]
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
    """Return the gradients of u, delta, A, B, C, D and bias.

    With lam[l] = C[l] dy[l] + a[l+1] lam[l+1], the gradient of h[l], they are sums of products of
    lam, the states before and after each step, and the inputs.
    """
    groups = B.shape[1]
    steps = _steps(delta, bias, soft)
    du, dsteps, dB, dC = (torch.empty_like(x) for x in (u, steps, B, C))
    dA = torch.zeros_like(A).unflatten(0, (groups, -1))
    before = _states_before_tiles(u, steps, A, B)
    carry = torch.zeros_like(before[0])  # a[l+1] lam[l+1]
    for tile, h in zip(reversed(list(_tiles(u.shape[2]))), reversed(before), strict=True):
        decays, inputs = terms(u[..., tile], steps[..., tile], A, B[..., tile])
        states = _states(h, decays, inputs)
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
    if soft:
        dsteps *= torch.sigmoid(delta + bias[:, None])
    return du, dsteps, dA.flatten(0, 1), dB, dC, (dy * u).sum((0, 2)), dsteps.sum((0, 2))


def _states_before_tiles(u: Tensor, steps: Tensor, A: Tensor, B: Tensor) -> list[Tensor]:
    before = [_start(u, B)]
    for tile in list(_tiles(u.shape[2]))[:-1]:
        inside = terms(u[..., tile], steps[..., tile], A, B[..., tile])
        before.append(_states(before[-1], *inside)[-1].clone())
    return before
