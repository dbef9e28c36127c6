"""Computations that autocast must not touch."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def outside_autocast(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """Call a function with autocast disabled, on the device of the first argument.

    TorchScript does not support it: callers branch on `torch.jit.is_scripting()`.
    """
    kind = arguments[0].device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        with torch.autocast(kind, enabled=False):
            return function(*arguments)
    return function(*arguments)
