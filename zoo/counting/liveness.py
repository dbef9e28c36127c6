"""Keep all operators in a trace, also those whose results the model does not return.

PyTorch drops operators from a trace if no output depends on them. Their cost is real, however: the
model runs them, and `zoo/counting/traffic.py` sees them.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves


@contextlib.contextmanager
def all_results_returned(model: nn.Module) -> Iterator[None]:
    """Make calls of `model` in this context return a tuple that depends on all that was computed.

    The tuple starts with the tensors of the original output, whatever type holds them. The hook
    that does this is registered before any hook that is registered in the context.
    """
    mode = _DependOnResults()

    def extended(module: nn.Module, arguments: Any, output: Any) -> tuple[Tensor, ...]:
        tensors = [x for x in tree_leaves(output) if isinstance(x, Tensor)]
        return (*tensors, *mode.dependents)

    handle = model.register_forward_hook(extended)
    try:
        with mode:
            yield
    finally:
        handle.remove()


class _DependOnResults(TorchFunctionMode):
    """Makes an empty tensor of each result: it depends on the result, but uses no memory."""

    def __init__(self) -> None:
        super().__init__()
        self.dependents: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if torch._C._get_tracing_state() is not None and getattr(func, "__name__", "") != "__get__":
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor) and leaf.is_floating_point():
                    self.dependents.append(leaf.new_empty(0))
        return result
