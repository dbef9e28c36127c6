"""Following which module is being executed."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn


@contextlib.contextmanager
def around_modules(
    model: nn.Module, enter: Callable[[str], None], leave: Callable[[], None]
) -> Iterator[None]:
    """Call `enter` with its dotted name before each module is executed, and `leave` after it.

    A module that raises is left, too. Scripted modules cannot be followed; they count as part of
    what calls them. The model's own hooks stay.
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
