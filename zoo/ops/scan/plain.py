"""The selective scan in plain PyTorch: the definition, and three algorithms for export.

Each algorithm takes u, delta (B D L), A (D N), B and C (B G N L) and returns y (B D L):

    a[l] = exp(delta[l] A),   h[l] = a[l] h[l-1] + delta[l] B[l] u[l],   y[l] = sum_n C[l] h[l]

h starts at 0, and channel d uses group d // (D / G) of B and C. `run` adds bias, softplus and skip.
No algorithm uses cumulative sums, because dividing by decays would overflow.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.errors import BadInput

Algorithm = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]

RADIX = 8  # chunk size of `multi_level`
CHUNK_SIZES = (RADIX, RADIX, 64, 64)  # chunk sizes of the levels of `any_length`
LAST = 64  # greatest number of steps after these levels
MAX_LENGTH = RADIX * RADIX * 64 * 64 * LAST


def sequential(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Compute the definition step by step (Mamba, arXiv 2312.00752, algorithm 2)."""
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


# The other algorithms process many steps at once. Their tensors have the steps on the first axis:
# L B G W N, where W = D / G is the number of channels of a group.


def by_step(x: Tensor, groups: int) -> Tensor:
    """Rearrange B D L to L B G W 1."""
    return x.permute(2, 0, 1).unflatten(2, (groups, -1)).unsqueeze(-1)


def weights_by_step(x: Tensor) -> Tensor:
    """Rearrange B G N L to L B G 1 N."""
    return x.permute(3, 0, 1, 2).unsqueeze(3)


def terms(u: Tensor, delta: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """Return the decay and the input of every step, both L B G W N."""
    groups = B.shape[1]
    step = by_step(delta, groups)
    a = torch.exp(step * A.unflatten(0, (groups, -1)))
    return a, step * by_step(u, groups) * weights_by_step(B)


def read_out(h: Tensor, C: Tensor) -> Tensor:
    """Return the weighted sums of the states: L B G W N to B D L."""
    return (h * weights_by_step(C)).sum(-1).flatten(2).permute(1, 2, 0)


def multi_level(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Scan chunks of 8 steps in parallel, and the states at their ends recursively.

    The number of operators grows with log L and the work with L, which suits the export of long
    sequences of a static length. Tensors have at most five axes, the limit of Core ML.
    """
    a, v = terms(u, delta, A, B)
    h = _states(a.flatten(1), v.flatten(1))
    return read_out(h.view(a.shape), C)


def _states(a: Tensor, v: Tensor) -> Tensor:
    """Return h[l] = a[l] h[l-1] + v[l] for all steps."""
    length = a.shape[0]
    if length <= RADIX + 1:
        return torch.cat(_scan_chunks(a.split(1), v.split(1))[0])
    missing = -length % RADIX
    if missing:  # pad with steps that change nothing: decay 1, input 0
        end = [0, 0] * (a.ndim - 1) + [0, missing]
        a, v = F.pad(a, end, value=1.0), F.pad(v, end)
    a, v = (x.unflatten(0, (-1, RADIX)) for x in (a, v))  # chunks x steps ...
    inside, products = _scan_chunks(a.split(1, dim=1), v.split(1, dim=1))
    ends = _states(products[-1].flatten(0, 1), inside[-1].flatten(0, 1))
    before = torch.cat([torch.zeros_like(ends[:1]), ends[:-1]]).unsqueeze(1)
    h = torch.cat(inside, dim=1) + torch.cat(products, dim=1) * before
    return h.flatten(0, 1)[:length]


def _scan_chunks(a: Sequence[Tensor], v: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return each step's state and product of decays, for chunks that start at state 0."""
    h, products = [v[0]], [a[0]]
    for decay, given in zip(a[1:], v[1:], strict=True):
        h.append(decay * h[-1] + given)
        products.append(products[-1] * decay)
    return h, products


def any_length(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Scan like `multi_level`, but with the same operators for every length.

    This suits programs with a dynamic length. It supports up to `MAX_LENGTH` = 2^24 steps, which is
    4096 x 4096 positions.

    Raises:
        BadInput: The length is static and greater than `MAX_LENGTH`.
    """
    length = u.shape[-1]
    if isinstance(length, int) and length > MAX_LENGTH:
        raise BadInput(
            f"u has {length} steps, but 'any_length' supports at most {MAX_LENGTH}; use "
            "'multi_level'"
        )
    a, v = terms(u, delta, A, B)
    h = _dynamic_states(a.flatten(1), v.flatten(1), CHUNK_SIZES)
    return read_out(h.view(v.shape), C)


def _dynamic_states(a: Tensor, v: Tensor, chunk_sizes: Sequence[int]) -> Tensor:
    """`_states` with operators that do not depend on the number of steps.

    Padding guarantees at least two chunks; with a single one, torch.export would specialise the
    program to that case.
    """
    if not chunk_sizes:
        return _doubled(a, v, LAST)[0]
    length, (chunk, *rest) = a.shape[0], chunk_sizes
    # Pad with steps that change nothing: decay 1, input 0.
    missing = [0, 0] * (a.ndim - 1) + [0, 2 * chunk - 1]
    a, v = F.pad(a, missing, value=1.0), F.pad(v, missing)
    if chunk == RADIX:  # one step of all chunks at a time
        ends = [j + 1 - chunk or None for j in range(chunk)]
        steps = [slice(j, end, chunk) for j, end in enumerate(ends)]
        inside, products = _scan_chunks([a[step] for step in steps], [v[step] for step in steps])
        before = _delayed(_dynamic_states(products[-1], inside[-1], rest), 1, 0.0)
        h = [state + product * before for state, product in zip(inside, products, strict=True)]
        return torch.stack(h, dim=1).flatten(0, 1)[:length]
    a, v = (x.unfold(0, chunk, chunk) for x in (a, v))
    a, v = (x.movedim(-1, 0) for x in (a, v))  # steps x chunks ...
    h, products = _doubled(a, v, chunk)
    before = _delayed(_dynamic_states(products[-1], h[-1], rest), 1, 0.0)
    return (h + products * before).transpose(0, 1).flatten(0, 1)[:length]


def _doubled(a: Tensor, v: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Scan chunks of up to `length` steps (a power of 2) by doubling (Hillis and Steele, 1986).

    Return the state and the product of decays of every step.
    """
    reach = 1
    while reach < length:
        v = torch.addcmul(v, a, _delayed(v, reach, 0.0))
        a = a * _delayed(a, reach, 1.0)
        reach *= 2
    return v, a


def _delayed(x: Tensor, steps: int, fill: float) -> Tensor:
    """Shift `x` by `steps` along the first axis, and fill the beginning with `fill`."""
    start = [0, 0] * (x.ndim - 1) + [steps, 0]
    return F.pad(x, start, value=fill)[:-steps]


def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Use the scan operator of PyTorch, which ONNX supports as `Scan`, for any length."""
    from torch._higher_order_ops.scan import scan as torch_scan

    groups = B.shape[1]
    A = A.unflatten(0, (groups, -1)).contiguous()  # the operator needs equal strides for all states

    # The body must not use sizes: dynamic ones cannot be passed to it.
    def step(h: Tensor, now: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        u_l, delta_l, B_l, C_l = now  # B G W 1, B G W 1, B G 1 N, B G 1 N
        h = torch.exp(delta_l * A) * h + (delta_l * u_l) * B_l
        return h, (h * C_l).sum(-1)

    start = u.new_zeros(u.shape[0], *A.shape)
    sequences = [by_step(u, groups), by_step(delta, groups), weights_by_step(B), weights_by_step(C)]
    _, y = torch_scan(step, start, tuple(x.contiguous() for x in sequences))
    return y.flatten(2).permute(1, 2, 0)


ALGORITHMS: dict[str, Algorithm] = {
    "sequential": sequential,
    "multi_level": multi_level,
    "any_length": any_length,
    "scan": scan,
}


def run(
    algorithm: Algorithm,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    bias: Tensor,
    delta_softplus: bool,
) -> Tensor:
    """Run an algorithm with bias, softplus (if requested) and skip."""
    delta = delta + bias[:, None]
    if delta_softplus:
        delta = F.softplus(delta)
    return algorithm(u, delta, A, B, C) + D[:, None] * u
