"""PyTorch: a model run operator by operator, or compiled."""

import contextlib
import copy
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

DTYPES = ("float32", "bfloat16", "float16")


class Eager:
    """A model run by PyTorch operator by operator.

    Args:
        model: It is not changed. If it is in training mode, or has another type or memory layout
            than requested, a copy is converted.
        threads: Number of threads per call.
        dtype: Type to compute in; None: the model's own.
        channels_last: Store images and weights as NHWC.
        fused: Whether the model was re-parameterised.
    """

    name = "eager"
    packages: ClassVar[tuple[str, ...]] = ()
    layouts: ClassVar[tuple[str, ...]] = ("NCHW", "NHWC")
    dtypes: ClassVar[tuple[str, ...]] = DTYPES
    suffixes: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        model: nn.Module,
        *,
        threads: int,
        dtype: str | None,
        channels_last: bool,
        fused: bool | None,
    ) -> None:
        begin = time.perf_counter()
        self.version = torch.__version__
        self.threads = threads
        self.layout = "NHWC" if channels_last else "NCHW"
        self.fused = fused
        self.model = _converted(model, dtype, channels_last)
        sample = next(self.model.parameters(), torch.empty(0))
        self.dtype = str(sample.dtype).removeprefix("torch.")
        self.device = str(sample.device)
        self._like = sample
        self.load_s = time.perf_counter() - begin

    @classmethod
    def check_machine(cls) -> None:
        """Do nothing: PyTorch runs on every machine that it can be installed on."""

    def bind(self, batch: np.ndarray) -> Callable[[], Any]:
        order = torch.channels_last if self.layout == "NHWC" else torch.contiguous_format
        x = torch.from_numpy(np.ascontiguousarray(batch)).to(self._like).to(memory_format=order)
        call = functools.partial(self._function(), x)
        return _synchronised(call, self._like.device) if self._like.is_cuda else call

    def __call__(self, batch: np.ndarray) -> list[np.ndarray]:
        with self.process_settings():
            return [output.float().cpu().numpy() for output in flatten_outputs(self.bind(batch)())]

    def _function(self) -> Callable[..., Any]:
        return self.model

    def process_settings(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which PyTorch uses `threads` threads and inference mode."""
        return with_threads(self.threads)


class Compiled(Eager):
    """A model compiled by `torch.compile` for the shape of the batch in `bind`.

    The first call of `bind`'s function compiles, so it must be timed separately.
    """

    name = "compile"

    def _function(self) -> Callable[..., Any]:
        # Without a reset, torch compiles a class only a few times, then silently runs it eagerly.
        torch.compiler.reset()
        return torch.compile(self.model, dynamic=False)


@contextlib.contextmanager
def with_threads(threads: int) -> Iterator[None]:
    """Enter inference mode with `threads` threads; restore the number of threads afterwards."""
    before = torch.get_num_threads()
    if before != threads:
        torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            yield
    finally:
        if before != threads:
            torch.set_num_threads(before)


def flatten_outputs(output: Any) -> list[torch.Tensor]:
    """Return the tensors in a model's output: a tensor, or nested lists, tuples or dictionaries."""
    if isinstance(output, torch.Tensor):
        return [output]
    parts = output.values() if isinstance(output, dict) else output
    return [tensor for part in parts for tensor in flatten_outputs(part)]


def in_eval_mode(model: nn.Module) -> nn.Module:
    """Return the model itself if all its modules are in evaluation mode, else a copy that is."""
    return _converted(model, None, False)


def _converted(model: nn.Module, dtype: str | None, channels_last: bool) -> nn.Module:
    """Return the model itself if it fits the arguments and is in evaluation mode, else a copy."""
    cast = dtype is not None and any(
        p.is_floating_point() and p.dtype != getattr(torch, dtype) for p in model.parameters()
    )
    if not (cast or channels_last or any(module.training for module in model.modules())):
        return model
    model = copy.deepcopy(model).eval()
    if cast:
        model = model.to(getattr(torch, str(dtype)))
    return model.to(memory_format=torch.channels_last) if channels_last else model  # type: ignore[call-overload]


def _synchronised(call: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """Return `call` followed by a wait for the GPU, which computes asynchronously."""

    def run() -> Any:
        output = call()
        torch.cuda.synchronize(device)
        return output

    return run
