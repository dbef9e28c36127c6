"""The selective scan as a custom operator of PyTorch, `zoo::selective_scan`, with its backward.

torch.compile, torch.export, counters and autocast see one operator. It runs Triton on a GPU, Numba
on a CPU, and tiles of PyTorch operators if neither is installed.
"""

import importlib
import importlib.util
from functools import cache
from typing import Any

import torch
from torch import Tensor

from zoo.ops.scan.inputs import ScanInputs

COMPILED = {"numba": "cpu", "triton": "cuda"}  # compiled backends and the device of each
_MODULES = {"numba": "cpu", "triton": "gpu", "tiled": "tiled"}


@cache
def installed(name: str) -> bool:
    """Return whether a package can be imported, without importing it."""
    return importlib.util.find_spec(name) is not None


def resolve_backend(device: torch.device) -> str:
    """Return the fastest installed backend for tensors on `device`."""
    for backend, device_type in COMPILED.items():
        if device.type == device_type and installed(backend):
            return backend
    return "tiled"


def _load_backend(backend: str, device: torch.device) -> Any:
    """Import the module of a backend; `"auto"` chooses one for `device`."""
    name = resolve_backend(device) if backend == "auto" else backend
    return importlib.import_module(f"zoo.ops.scan.{_MODULES[name]}")


@torch.library.custom_op("zoo::selective_scan", mutates_args=())
def selective_scan_op(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    bias: Tensor,
    delta_softplus: bool,
    backend: str,
) -> Tensor:
    """Return y, B D L, of a scan with the tensors of `ScanInputs`."""
    inputs = ScanInputs(u, delta, A, B, C, D, bias)
    return _load_backend(backend, u.device).forward(inputs, delta_softplus)


@selective_scan_op.register_fake
def _(u, delta, A, B, C, D, bias, delta_softplus, backend):
    return torch.empty_like(u, memory_format=torch.contiguous_format)


@torch.library.custom_op("zoo::selective_scan_backward", mutates_args=())
def selective_scan_backward(
    dy: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    bias: Tensor,
    delta_softplus: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of the tensors of `ScanInputs`, given the gradient `dy` of y."""
    inputs = ScanInputs(u, delta, A, B, C, D, bias)
    gradients = _load_backend(backend, u.device).backward(dy, inputs, delta_softplus)
    return tuple(x.contiguous() for x in gradients)  # pyright: ignore[reportReturnType]


@selective_scan_backward.register_fake
def _(dy, u, delta, A, B, C, D, bias, delta_softplus, backend):
    contiguous = torch.contiguous_format
    return tuple(
        torch.empty_like(x, memory_format=contiguous) for x in (u, delta, A, B, C, D, bias)
    )


def _setup_context(ctx, inputs, output):
    *tensors, ctx.delta_softplus, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, dy):
    settings = ctx.delta_softplus, ctx.backend
    gradients = selective_scan_backward(dy.contiguous(), *ctx.saved_tensors, *settings)
    return *gradients, None, None


selective_scan_op.register_autograd(_backward, setup_context=_setup_context)
