"""The selective scan in plain PyTorch: the definition, and four forms that can be exported.

All take u, delta (B, D, L), A (D, N), B and C (B, G, N, L) and return y (B, D, L) with

    a[l] = exp(delta[l] A),   h[l] = a[l] h[l-1] + delta[l] B[l] u[l],   y[l] = sum_n C[l] h[l]

for each channel d, whose B and C are those of group d // (D / G); h starts at 0. Bias, softplus
and skip are put around them by `around`, the gate by the caller. None divides by a decay: the form
with cumulative sums overflows and is not here.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Form = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]

RADIX = 8  # steps of a chunk of `multi_level`


def sequential(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Step by step, as the definition reads (Mamba, arXiv 2312.00752, alg. 2); never B D L N."""
    batch, groups, states, length = B.shape
    channels = u.shape[1]
    B, C = (x.repeat_interleave(channels // groups, dim=1) for x in (B, C))  # B D N L
    h = u.new_zeros(batch, channels, states)
    y = []
    for step in range(length):
        decay = torch.exp(delta[:, :, step, None] * A)
        h = decay * h + (delta[:, :, step] * u[:, :, step]).unsqueeze(-1) * B[..., step]
        y.append((h * C[..., step]).sum(-1))
    return torch.stack(y, dim=-1)


# The other forms work on all steps at once, step by step along the first axis, so that what belongs
# to one step lies together: L B G W N, with W = D / G channels in a group.


def by_step(x: Tensor, groups: int) -> Tensor:
    """B D L -> L B G W 1."""
    return x.permute(2, 0, 1).unflatten(2, (groups, -1)).unsqueeze(-1)


def weights_by_step(x: Tensor) -> Tensor:
    """B G N L -> L B G 1 N."""
    return x.permute(3, 0, 1, 2).unsqueeze(3)


def terms(u: Tensor, delta: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """Return the decays and inputs of all steps, each L B G W N."""
    groups = B.shape[1]
    step = by_step(delta, groups)
    a = torch.exp(step * A.unflatten(0, (groups, -1)))
    return a, step * by_step(u, groups) * weights_by_step(B)


def read_out(h: Tensor, C: Tensor) -> Tensor:
    """L B G W N -> B D L: the states weighted and summed."""
    return (h * weights_by_step(C)).sum(-1).flatten(2).permute(1, 2, 0)


def doubling(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """In log2 L rounds, each reaching twice as far back (Hillis and Steele, 1986)."""
    a, h = terms(u, delta, A, B)
    reach, length = 1, u.shape[-1]
    while reach < length:
        h = torch.cat([h[:reach], h[reach:] + a[reach:] * h[:-reach]])
        a = torch.cat([a[:reach], a[reach:] * a[:-reach]])
        reach *= 2
    return read_out(h, C)


def two_level(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """In about 2 sqrt(L) rounds: all chunks at once step by step, then the carry between them."""
    return _chunked(u, delta, A, B, C, max(2, int(u.shape[-1] ** 0.5)))


def multi_level(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """In about 8 log8 L rounds: chunks of 8, the carries between them likewise, and so on.

    As few operators as `doubling` within a small factor, and work that grows with L alone: the form
    for exporting long sequences.
    """
    return _chunked(u, delta, A, B, C, RADIX)


def _chunked(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk: int) -> Tensor:
    """The scan by `_states`, in tensors of at most five axes: Core ML takes no more."""
    a, v = terms(u, delta, A, B)
    h = _states(a.flatten(1), v.flatten(1), chunk)
    return read_out(h.view(a.shape), C)


def _states(a: Tensor, v: Tensor, chunk: int) -> Tensor:
    """Return h[l] = a[l] h[l-1] + v[l], all steps: in chunks, whose ends are scanned likewise."""
    length = a.shape[0]
    if length <= chunk + 1:
        return torch.cat(_runs(a.split(1), v.split(1))[0])
    missing = -length % chunk
    if missing:  # steps that change nothing: decay 1, input 0
        end = [0, 0] * (a.ndim - 1) + [0, missing]
        a, v = F.pad(a, end, value=1.0), F.pad(v, end)
    a, v = (x.unflatten(0, (-1, chunk)) for x in (a, v))  # n x chunk ...
    inside, products = _runs(a.split(1, dim=1), v.split(1, dim=1))
    ends = _states(products[-1].flatten(0, 1), inside[-1].flatten(0, 1), chunk)
    before = torch.cat([torch.zeros_like(ends[:1]), ends[:-1]]).unsqueeze(1)
    h = torch.cat(inside, dim=1) + torch.cat(products, dim=1) * before
    return h.flatten(0, 1)[:length]


def _runs(a: Sequence[Tensor], v: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the states of every chunk, started at 0, and the products of its decays."""
    h, products = [v[0]], [a[0]]
    for decay, given in zip(a[1:], v[1:], strict=True):
        h.append(decay * h[-1] + given)
        products.append(products[-1] * decay)
    return h, products


def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """By torch's scan operator: one ONNX Scan, so that an exported model takes any length."""
    from torch._higher_order_ops.scan import scan as torch_scan

    groups, channels = B.shape[1], u.shape[1]

    def step(h: Tensor, now: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        u_l, delta_l, B_l, C_l = now  # B D, B D, B G N, B G N
        B_l, C_l = (x.repeat_interleave(channels // groups, dim=1) for x in (B_l, C_l))
        h = torch.exp(delta_l.unsqueeze(-1) * A) * h + (delta_l * u_l).unsqueeze(-1) * B_l
        return h, (h * C_l).sum(-1)

    start = u.new_zeros(u.shape[0], channels, A.shape[1])
    A = A.contiguous()  # the operator wants every state in the layout of the first
    over = [x.movedim(-1, 0).contiguous() for x in (u, delta, B, C)]
    _, y = torch_scan(step, start, tuple(over))
    return y.movedim(0, -1)


FORMS: dict[str, Form] = {
    "sequential": sequential,
    "two_level": two_level,
    "multi_level": multi_level,
    "doubling": doubling,
    "scan": scan,
}


def around(
    form: Form,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    bias: Tensor,
    soft: bool,
) -> Tensor:
    """Run `form` on delta with bias and, if `soft`, softplus; add the skip."""
    delta = delta + bias[:, None]
    if soft:
        delta = F.softplus(delta)
    return form(u, delta, A, B, C) + D[:, None] * u
