"""What a forward pass keeps in memory at once, and moves through it, operator by operator.

One pass is run under a dispatch mode that sees every operator with its tensors. What an operator
uses inside is not seen, and a view moves nothing. Bytes are those that operators executed one by
one read and write; a runtime that merges them moves less.
"""

import weakref
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from zoo.counting.hooks import around_modules


@dataclass(frozen=True)
class Traffic:
    """Bytes of one forward pass.

    Attributes:
        peak: The most that the input and all intermediate results took at one time; parameters and
            buffers are not in it.
        moved: Read and written by all operators, parameters included.
        operators: Operators executed, views left out.
        by_module: `moved`, by the innermost module that called the operator, by its dotted name.
    """

    peak: int
    moved: int
    operators: int
    by_module: dict[str, int]


def observe(model: nn.Module, example: Tensor) -> Traffic:
    """Run `model` once on `example`, as it is, and return what went through memory."""
    mode = _Watch(model)
    mode.hold(example)
    with torch.no_grad(), around_modules(model, mode.inside.append, mode.leave), mode:
        model(example)
    return Traffic(mode.peak, sum(mode.moved.values()), mode.operators, dict(mode.moved))


class _Watch(TorchDispatchMode):
    """Follows which storages are alive, and what each operator reads and writes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inside = [""]  # the names of the modules that are being executed, innermost last
        self.moved: Counter[str] = Counter()
        self.live = self.peak = self.operators = 0
        fixed = [*model.parameters(), *model.buffers()]
        self.fixed = {id(tensor.untyped_storage()) for tensor in fixed}
        self._fixed = [tensor.untyped_storage() for tensor in fixed]  # so that the ids stay theirs
        self.held: dict[int, weakref.ref] = {}

    def leave(self) -> None:
        """Say that the innermost module is done."""
        self.inside.pop()

    def hold(self, tensor: Tensor) -> None:
        """Count the storage of a tensor until it is freed."""
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self.held or key in self.fixed:
            return
        size = storage.nbytes()

        def freed(reference: weakref.ref) -> None:
            if self.held.pop(key, None) is not None:
                self.live -= size

        self.held[key] = weakref.ref(storage, freed)
        self.live += size
        self.peak = max(self.peak, self.live)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        read = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        written = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        for tensor in written:
            self.hold(tensor)
        if not _is_view(func, read, written):
            self.operators += 1
            self.moved[self.inside[-1]] += sum(map(_bytes, [*read, *written]))
        return result


def _is_view(func: Any, read: list[Tensor], written: list[Tensor]) -> bool:
    """Say whether an operator only looks at its inputs in another way."""
    if func._schema.is_mutable:
        return False
    known = {id(tensor.untyped_storage()) for tensor in read}
    return all(id(tensor.untyped_storage()) in known for tensor in written)


def _bytes(tensor: Tensor) -> int:
    """A tensor that repeats itself by a stride of 0 is read from the few bytes that it has."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
