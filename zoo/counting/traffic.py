"""Measure the memory that a forward pass occupies and the bytes that it moves, per operator.

The model runs once under a dispatch mode that sees the input and output tensors of every operator,
but not the memory that an operator uses internally. A view moves no bytes. The figures are those of
eager execution; a runtime that fuses operators moves fewer bytes.
"""

import weakref
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from zoo.counting.hooks import module_callbacks


@dataclass(frozen=True)
class Traffic:
    """Bytes of one forward pass.

    Attributes:
        peak: The most that the input and all intermediate results occupied at the same time,
            without parameters and buffers.
        moved: Bytes that all operators read and wrote, including parameters.
        operators: Number of operators executed, not counting views.
        by_module: `moved` per module, keyed by dotted name. An operator counts only in the
            innermost module that called it.
    """

    peak: int
    moved: int
    operators: int
    by_module: dict[str, int]


def measure_traffic(model: nn.Module, example: Tensor) -> Traffic:
    """Run `model` once on `example` in its current mode and return its memory traffic."""
    mode = _TrafficMode(model)
    mode.track(example)
    with torch.no_grad(), module_callbacks(model, mode.running.append, mode.leave), mode:
        model(example)
    return Traffic(mode.peak, sum(mode.moved.values()), mode.operators, dict(mode.moved))


class _TrafficMode(TorchDispatchMode):
    """Tracks which storages are alive and how many bytes each operator reads and writes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.running = [""]  # names of the modules being executed, innermost last
        self.moved: Counter[str] = Counter()
        self.live = self.peak = self.operators = 0
        state = [*model.parameters(), *model.buffers()]
        self._state = [tensor.untyped_storage() for tensor in state]  # keeps the ids valid
        self._state_ids = {id(storage) for storage in self._state}
        self._tracked: dict[int, weakref.ref] = {}

    def leave(self) -> None:
        """Record that the innermost module has returned."""
        self.running.pop()

    def track(self, tensor: Tensor) -> None:
        """Count the storage of `tensor` as live memory until it is freed."""
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._tracked or key in self._state_ids:
            return
        size = storage.nbytes()

        def freed(reference: weakref.ref) -> None:
            if self._tracked.pop(key, None) is not None:
                self.live -= size

        self._tracked[key] = weakref.ref(storage, freed)
        self.live += size
        self.peak = max(self.peak, self.live)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        read = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        written = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        for tensor in written:
            self.track(tensor)
        if not _is_view(func, read, written):
            self.operators += 1
            self.moved[self.running[-1]] += sum(map(_bytes, [*read, *written]))
        return result


def _is_view(func: Any, read: list[Tensor], written: list[Tensor]) -> bool:
    """Return whether all outputs of an operator share the memory of its inputs."""
    if func._schema.is_mutable:
        return False
    inputs = {id(tensor.untyped_storage()) for tensor in read}
    return all(id(tensor.untyped_storage()) in inputs for tensor in written)


def _bytes(tensor: Tensor) -> int:
    """Return the bytes of a tensor; an expanded tensor has only those of its storage."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
