"""Computations that autocast must leave alone."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def outside_autocast(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """Call a function on tensors as they are, also under autocast; the first one says the device.

    A scripted function calls it in a branch under `torch.jit.is_scripting()`, and is a leaf for
    symbolic tracing.
    """
    kind = arguments[0].device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        with torch.autocast(kind, enabled=False):
            return function(*arguments)
    return function(*arguments)
