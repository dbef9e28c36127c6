"""The selective scan as one operator of PyTorch: `zoo::selective_scan` and its backward.

torch.compile, torch.export, counters and autocast see one operator, whatever computes it: Triton on
a GPU, Numba on a CPU, plain PyTorch in tiles of steps where neither is installed.
"""

import importlib
import importlib.util
from functools import cache
from typing import Any

import torch
from torch import Tensor

COMPILED = {"numba": "cpu", "triton": "cuda"}  # and the device that each runs on
_MODULES = {"numba": "cpu", "triton": "gpu", "tiled": "tiled"}


@cache
def installed(name: str) -> bool:
    """Say whether the compiler behind a form can be imported."""
    return importlib.util.find_spec(name) is not None


def resolve(device: torch.device) -> str:
    """Return the fastest form there is for tensors on `device`."""
    for form, kind in COMPILED.items():
        if device.type == kind and installed(form):
            return form
    return "tiled"


def _module(backend: str, device: torch.device) -> Any:
    """Import the kernels of a form, those for `device` if it is `"auto"`."""
    form = resolve(device) if backend == "auto" else backend
    return importlib.import_module(f"zoo.ops.scan.{_MODULES[form]}")


@torch.library.custom_op("zoo::selective_scan", mutates_args=())
def selective_scan_op(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    bias: Tensor,
    soft: bool,
    backend: str,
) -> Tensor:
    """y (B, D, L) with bias, softplus (if `soft`) and skip; B and C are B G N L."""
    return _module(backend, u.device).forward(u, delta, A, B, C, D, bias, soft)


@selective_scan_op.register_fake
def _(u, delta, A, B, C, D, bias, soft, backend):
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
    soft: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of u, delta, A, B, C, D and bias."""
    backward = _module(backend, u.device).backward
    gradients = backward(dy, u, delta, A, B, C, D, bias, soft)
    return tuple(x.contiguous() for x in gradients)  # pyright: ignore[reportReturnType]


@selective_scan_backward.register_fake
def _(dy, u, delta, A, B, C, D, bias, soft, backend):
    contiguous = torch.contiguous_format
    return tuple(
        torch.empty_like(x, memory_format=contiguous) for x in (u, delta, A, B, C, D, bias)
    )


def _remember(ctx, inputs, output):
    *tensors, ctx.soft, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx, dy):
    gradients = selective_scan_backward(dy.contiguous(), *ctx.saved_tensors, ctx.soft, ctx.backend)
    return *gradients, None, None


selective_scan_op.register_autograd(_differentiate, setup_context=_remember)
