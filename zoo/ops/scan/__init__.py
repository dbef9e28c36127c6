"""The selective scan (S6) of Mamba, with several interchangeable backends."""

from typing import Any

import torch
from torch import Tensor

from zoo.errors import BadInput, unknown_value
from zoo.ops.scan import cost as cost  # registers the FLOPs of the operators
from zoo.ops.scan import operator, plain

BACKENDS = ("auto", *plain.ALGORITHMS, "tiled", *operator.COMPILED)


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
        h[l] = exp(step[l] A) h[l-1] + step[l] B[l] u[l],   with h = 0 before the first step
        y[l] = sum over n of C[l] h[l] + D u[l],            times silu(z[l]) if z is given

    16-bit inputs are computed in single precision, also under autocast.

    Args:
        u: Input, B x D x L.
        delta: Step sizes before bias and softplus, B x D x L.
        A: Decay rates, D x N, negative.
        B: Input weights, B x G x N x L, or B x N x L for G = 1. Channel d uses group d // (D / G).
        C: Output weights, with the shape of B.
        D: Skip weights, one per channel.
        z: Gate, B x D x L.
        delta_bias: Bias of the step sizes, one per channel.
        delta_softplus: Whether to apply softplus to the step sizes.
        backend: `"auto"` runs the fastest installed backend as one operator,
            `zoo::selective_scan`. `"numba"`, `"triton"` and `"tiled"` (no compiler) select one.
            `"sequential"`, `"multi_level"`, `"any_length"` and `"scan"` consist of PyTorch
            operators and can be exported.

    Returns:
        B x D x L, with the dtype of `u`.

    Raises:
        BadInput: Shapes do not match, or the backend is unknown, is not installed, or does not run
            on this device.
    """
    if torch.jit.is_scripting():
        return _scripted_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    else:
        return _checked_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, backend)


def _checked_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, backend) -> Tensor:
    _check_backend(backend, u.device)
    _check_shapes(u, delta, A, B, C, D, z, delta_bias)
    B, C = (x.unsqueeze(1) if x.ndim == 3 else x for x in (B, C))
    wide = torch.promote_types(u.dtype, torch.float32)
    skip = u.new_zeros(u.shape[1]) if D is None else D
    bias = u.new_zeros(u.shape[1]) if delta_bias is None else delta_bias
    inputs: Any = [x.to(wide) for x in (u, delta, A, B, C, skip, bias)]
    if backend in plain.ALGORITHMS:
        y = plain.run(plain.ALGORITHMS[backend], *inputs, delta_softplus=delta_softplus)
    else:
        y = torch.ops.zoo.selective_scan(*inputs, delta_softplus, backend)
    if z is not None:
        y = y * torch.nn.functional.silu(z.to(wide))
    return y.to(u.dtype)


def _scripted_scan(
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
    """`_checked_scan` in the subset of Python that TorchScript supports, with `backend="auto"`."""
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
    """Return the backends of the scan, and whether each can run on this machine."""
    return {
        **dict.fromkeys([*plain.ALGORITHMS, "tiled"], True),
        "numba": operator.installed("numba"),
        "triton": operator.installed("triton") and torch.cuda.is_available(),
    }


def auto_backend(device: str | torch.device = "cpu") -> str:
    """Return the backend that `"auto"` uses on `device`."""
    return operator.resolve_backend(torch.device(device))


def _check_backend(backend: str, device: torch.device) -> None:
    if backend not in BACKENDS:
        raise BadInput(unknown_value("backend", backend, BACKENDS))
    if backend not in operator.COMPILED:
        return
    if not operator.installed(backend):
        extra = "pip install 'zoo-vision[fast]'" if backend == "numba" else "pip install triton"
        raise BadInput(f"backend={backend!r} is not installed; run {extra}, or use 'auto'")
    if device.type != operator.COMPILED[backend]:
        raise BadInput(
            f"backend={backend!r} runs on {operator.COMPILED[backend]}, but the inputs are on "
            f"{device.type}; use 'auto'"
        )


def _check_shapes(u, delta, A, B, C, D, z, delta_bias) -> None:
    if u.ndim != 3 or not u.is_floating_point():
        raise BadInput(
            f"u has dtype {u.dtype} and shape {tuple(u.shape)}; expected floats B x D x L"
        )
    batch, channels, length = u.shape
    if length == 0:
        raise BadInput(f"u has no steps: its shape {tuple(u.shape)} has length 0")
    if A.ndim != 2 or A.shape[0] != channels or A.shape[1] == 0:
        raise BadInput(f"A has shape {tuple(A.shape)}; expected ({channels}, number of states)")
    groups, states = B.shape[1] if B.ndim == 4 else 1, A.shape[1]
    if groups == 0 or channels % groups:
        raise BadInput(
            f"B has {groups} groups, but {channels} channels are not divisible by {groups}"
        )
    grouped = (batch, groups, states, length)
    flat = (batch, states, length)
    expected = {
        "delta": (delta, (batch, channels, length)),
        "B": (B, flat if B.ndim == 3 else grouped),
        "C": (C, flat if C.ndim == 3 and groups == 1 else grouped),
        "D": (D, (channels,)),
        "z": (z, (batch, channels, length)),
        "delta_bias": (delta_bias, (channels,)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise BadInput(f"{name} has shape {tuple(tensor.shape)}; expected {shape}")
