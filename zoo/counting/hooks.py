"""Callbacks before and after each module of a model runs."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn


@contextlib.contextmanager
def module_callbacks(
    model: nn.Module, enter: Callable[[str], None], leave: Callable[[], None]
) -> Iterator[None]:
    """Call `enter(name)` before each module of `model` runs, and `leave()` after it.

    `leave` is also called if the module raises. TorchScript modules take no hooks: their work
    counts as that of the module that calls them. Hooks that the model already has are kept.
    """
    handles = []
    try:
        for name, module in model.named_modules():

            def before(module: nn.Module, inputs: Any, name: str = name) -> None:
                enter(name)

            def after(module: nn.Module, inputs: Any, output: Any) -> None:
                leave()

            if not isinstance(module, torch.jit.ScriptModule):
                handles.append(module.register_forward_pre_hook(before, prepend=True))
                handles.append(module.register_forward_hook(after, always_call=True))
        yield
    finally:
        for handle in handles:
            handle.remove()
