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

from zoo.errors import BadInput

Form = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]

RADIX = 8  # steps of a chunk of `multi_level` and `any_length`
LEVELS, LAST = (RADIX, RADIX, 64, 64), 64  # chunks of `any_length`, and steps that are left
LONGEST = RADIX * RADIX * 64 * 64 * LAST


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


def any_length(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """In about 40 rounds whatever the length is: the form for programs that leave it open.

    As `multi_level`, with as many levels as 2^24 steps need: 4096 x 4096 positions, whose states
    would fill 64 GiB for 1024 of them at each.

    Raises:
        BadInput: More steps than that, where their number is known.
    """
    length = u.shape[-1]
    if isinstance(length, int) and length > LONGEST:
        raise BadInput(f"u has {length} steps: 'any_length' takes {LONGEST}; take 'multi_level'")
    a, v = terms(u, delta, A, B)
    h = _open_states(a.flatten(1), v.flatten(1), LEVELS)
    return read_out(h.view(v.shape), C)


def _open_states(a: Tensor, v: Tensor, levels: Sequence[int]) -> Tensor:
    """`_states` without a look at how many there are: slices that always fit.

    Each level leaves a share of the steps. There are two chunks at least: where one could be all,
    a program would be for one or for more.
    """
    if not levels:
        return _doubled(a, v, LAST)[0]
    length, (chunk, *rest) = a.shape[0], levels
    # Those behind the end change nothing: decay 1, input 0.
    missing = [0, 0] * (a.ndim - 1) + [0, 2 * chunk - 1]
    a, v = F.pad(a, missing, value=1.0), F.pad(v, missing)
    if chunk == RADIX:  # step by step
        ends = [j + 1 - chunk or None for j in range(chunk)]
        steps = [slice(j, end, chunk) for j, end in enumerate(ends)]
        inside, products = _runs([a[step] for step in steps], [v[step] for step in steps])
        before = _later(_open_states(products[-1], inside[-1], rest), 1, 0.0)
        h = [state + product * before for state, product in zip(inside, products, strict=True)]
        return torch.stack(h, dim=1).flatten(0, 1)[:length]
    a, v = (x.unfold(0, chunk, chunk) for x in (a, v))
    a, v = (x.movedim(-1, 0) for x in (a, v))  # chunk n ...
    h, products = _doubled(a, v, chunk)
    before = _later(_open_states(products[-1], h[-1], rest), 1, 0.0)
    return (h + products * before).transpose(0, 1).flatten(0, 1)[:length]


def _doubled(a: Tensor, v: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Return the states after at most `length` steps, a power of 2, and the products of decays."""
    reach = 1
    while reach < length:
        v = torch.addcmul(v, a, _later(v, reach, 0.0))
        a = a * _later(a, reach, 1.0)
        reach *= 2
    return v, a


def _later(x: Tensor, steps: int, fill: float) -> Tensor:
    """Move all steps back by `steps`; `fill` comes before."""
    start = [0, 0] * (x.ndim - 1) + [steps, 0]
    return F.pad(x, start, value=fill)[:-steps]


def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """By torch's scan operator: one ONNX Scan, so that an exported model takes any length."""
    from torch._higher_order_ops.scan import scan as torch_scan

    groups = B.shape[1]
    A = A.unflatten(0, (groups, -1)).contiguous()  # every state in the layout of the first

    # No size is named in a step: a program could not pass an open one to its body.
    def step(h: Tensor, now: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        u_l, delta_l, B_l, C_l = now  # B G W 1, B G W 1, B G 1 N, B G 1 N
        h = torch.exp(delta_l * A) * h + (delta_l * u_l) * B_l
        return h, (h * C_l).sum(-1)

    start = u.new_zeros(u.shape[0], *A.shape)
    over = [by_step(u, groups), by_step(delta, groups), weights_by_step(B), weights_by_step(C)]
    _, y = torch_scan(step, start, tuple(x.contiguous() for x in over))
    return y.flatten(2).permute(1, 2, 0)


FORMS: dict[str, Form] = {
    "sequential": sequential,
    "two_level": two_level,
    "multi_level": multi_level,
    "doubling": doubling,
    "any_length": any_length,
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
