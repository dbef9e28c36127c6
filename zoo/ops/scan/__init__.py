"""Selective scan (S6): one function, one meaning, several forms."""

from typing import Any

import torch
from torch import Tensor

from zoo.errors import BadInput
from zoo.ops.scan import cost as cost  # says what the operators cost
from zoo.ops.scan import operator, plain

FORMS = ("auto", *plain.FORMS, "tiled", *operator.COMPILED)


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = True,
    backend: str = "auto",
) -> Tensor:
    """Run the selective state-space recurrence of Mamba (arXiv 2312.00752, section 3.2).

        step[l] = softplus(delta[l] + delta_bias)
        h[l] = exp(step[l] A) h[l-1] + step[l] B[l] u[l],   h before the first step is 0
        y[l] = sum over n of C[l] h[l] + D u[l],            times silu(z[l]) if z is given

    Sixteen-bit inputs are computed in single precision, also under autocast; the result has the
    type of `u`.

    Args:
        u: Input, B x D x L.
        delta: Raw step sizes, B x D x L.
        A: Decay rates, D x N, negative.
        B: Input weights, B x G x N x L; channel d takes group d // (D / G). B x N x L means G = 1.
        C: Output weights, of the shape of B.
        D: Skip, one factor a channel.
        z: Gate, B x D x L.
        delta_bias: One summand a channel.
        delta_softplus: Whether the steps pass through softplus.
        backend: `"auto"` takes the fastest form installed, as one operator (`zoo::selective_scan`);
            `"numba"`, `"triton"` and `"tiled"`, which needs no compiler, ask for one.
            `"sequential"`, `"two_level"`, `"multi_level"`, `"doubling"` and `"scan"` are operators
            of PyTorch, for exporting and for reading.

    Returns:
        B x D x L.

    Raises:
        BadInput: Shapes that do not fit, an unknown form, or one that is not installed.
    """
    if torch.jit.is_scripting():
        return _scripted(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    else:  # a scripted function may hold Python of any kind in the branch that it never takes
        return _checked(u, delta, A, B, C, D, z, delta_bias, delta_softplus, backend)


def _checked(u, delta, A, B, C, D, z, delta_bias, delta_softplus, backend) -> Tensor:
    _check_backend(backend, u.device)
    _check_shapes(u, delta, A, B, C, D, z, delta_bias)
    B, C = (x.unsqueeze(1) if x.ndim == 3 else x for x in (B, C))
    wide = torch.promote_types(u.dtype, torch.float32)
    skip = u.new_zeros(u.shape[1]) if D is None else D
    bias = u.new_zeros(u.shape[1]) if delta_bias is None else delta_bias
    inputs: Any = [x.to(wide) for x in (u, delta, A, B, C, skip, bias)]
    if backend in plain.FORMS:
        y = plain.around(plain.FORMS[backend], *inputs, soft=delta_softplus)
    else:
        y = torch.ops.zoo.selective_scan(*inputs, delta_softplus, backend)
    if z is not None:
        y = y * torch.nn.functional.silu(z.to(wide))
    return y.to(u.dtype)


def _scripted(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> Tensor:
    """The same in the part of Python that TorchScript knows, always by `backend="auto"`."""
    wide = torch.promote_types(u.dtype, torch.float32)
    skip = u.new_zeros([u.shape[1]]) if D is None else D
    bias = u.new_zeros([u.shape[1]]) if delta_bias is None else delta_bias
    y = torch.ops.zoo.selective_scan(
        u.to(wide),
        delta.to(wide),
        A.to(wide),
        (B.unsqueeze(1) if B.ndim == 3 else B).to(wide),
        (C.unsqueeze(1) if C.ndim == 3 else C).to(wide),
        skip.to(wide),
        bias.to(wide),
        delta_softplus,
        "auto",
    )
    if z is not None:
        y = y * torch.nn.functional.silu(z.to(wide))
    return y.to(u.dtype)


def backends() -> dict[str, bool]:
    """Return the forms of the scan, and whether each can run here."""
    return {
        **dict.fromkeys([*plain.FORMS, "tiled"], True),
        "numba": operator.installed("numba"),
        "triton": operator.installed("triton") and torch.cuda.is_available(),
    }


def running(device: str | torch.device = "cpu") -> str:
    """Return the form that `backend="auto"` takes on `device`; reports state it."""
    return operator.resolve(torch.device(device))


def _check_backend(backend: str, device: torch.device) -> None:
    if backend not in FORMS:
        raise BadInput(f"backend={backend!r}: there are {', '.join(FORMS)}")
    if backend not in operator.COMPILED:
        return
    if not operator.installed(backend):
        extra = "pip install 'zoo-vision[fast]'" if backend == "numba" else "pip install triton"
        raise BadInput(f"backend={backend!r} is not installed: {extra}, or take 'auto'")
    if device.type != operator.COMPILED[backend]:
        raise BadInput(
            f"backend={backend!r} runs on {operator.COMPILED[backend]}, the inputs are on "
            f"{device.type}; take 'auto'"
        )


def _check_shapes(u, delta, A, B, C, D, z, delta_bias) -> None:
    if u.ndim != 3 or not u.is_floating_point():
        raise BadInput(f"u is {u.dtype} of the shape {tuple(u.shape)}, expected floats B x D x L")
    batch, channels, length = u.shape
    if length == 0:
        raise BadInput(f"u has no steps: its shape is {tuple(u.shape)}")
    if A.ndim != 2 or A.shape[0] != channels or A.shape[1] == 0:
        raise BadInput(f"A has the shape {tuple(A.shape)}, expected ({channels}, states)")
    groups, states = B.shape[1] if B.ndim == 4 else 1, A.shape[1]
    if groups == 0 or channels % groups:
        raise BadInput(f"B has {groups} groups, into which {channels} channels do not fall")
    grouped = (batch, groups, states, length)
    flat = (batch, states, length)
    wanted = {
        "delta": (delta, (batch, channels, length)),
        "B": (B, flat if B.ndim == 3 else grouped),
        "C": (C, flat if C.ndim == 3 and groups == 1 else grouped),
        "D": (D, (channels,)),
        "z": (z, (batch, channels, length)),
        "delta_bias": (delta_bias, (channels,)),
    }
    for name, (tensor, shape) in wanted.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise BadInput(f"{name} has the shape {tuple(tensor.shape)}, expected {shape}")
