"""PyTorch itself: a model executed operator by operator, or compiled."""

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
    """The model as PyTorch executes it, operator by operator.

    The model that is handed in is never changed: where it has to be switched to evaluation, cast or
    laid out otherwise, a copy is.
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
        self.model = _as_asked(model, dtype, channels_last)
        sample = next(self.model.parameters(), torch.empty(0))
        self.dtype = str(sample.dtype).removeprefix("torch.")
        self.device = str(sample.device)
        self._like = sample
        self.load_s = time.perf_counter() - begin

    @classmethod
    def check_machine(cls) -> None:
        """PyTorch runs wherever it is installed."""

    def bind(self, batch: np.ndarray) -> Callable[[], Any]:
        order = torch.channels_last if self.layout == "NHWC" else torch.contiguous_format
        x = torch.from_numpy(np.ascontiguousarray(batch)).to(self._like).to(memory_format=order)
        call = functools.partial(self._executable(), x)
        return _finished(call, self._like.device) if self._like.is_cuda else call

    def __call__(self, batch: np.ndarray) -> list[np.ndarray]:
        with self.held():
            return [output.float().cpu().numpy() for output in flat(self.bind(batch)())]

    def _executable(self) -> Callable[..., Any]:
        return self.model

    def held(self) -> contextlib.AbstractContextManager[None]:
        return with_threads(self.threads)


class Compiled(Eager):
    """The model compiled by `torch.compile`, for the shape of the batch it is bound to.

    Compilation happens in the first call, which is why that call is reported apart.
    """

    name = "compile"

    def _executable(self) -> Callable[..., Any]:
        # torch compiles a class of models only so many times; after that it silently runs eagerly.
        torch.compiler.reset()
        return torch.compile(self.model, dynamic=False)


@contextlib.contextmanager
def with_threads(threads: int) -> Iterator[None]:
    """Infer with so many threads; afterwards there are as many as before."""
    before = torch.get_num_threads()
    if before != threads:
        torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            yield
    finally:
        if before != threads:
            torch.set_num_threads(before)


def flat(output: Any) -> list[torch.Tensor]:
    """List the tensors of a model's output: one, a list or tuple of them, or a dictionary."""
    if isinstance(output, torch.Tensor):
        return [output]
    parts = output.values() if isinstance(output, dict) else output
    return [tensor for part in parts for tensor in flat(part)]


def in_eval_mode(model: nn.Module) -> nn.Module:
    """Return the model itself if it is in evaluation mode throughout, else a copy that is."""
    return _as_asked(model, None, False)


def _as_asked(model: nn.Module, dtype: str | None, channels_last: bool) -> nn.Module:
    cast = dtype is not None and any(
        p.is_floating_point() and p.dtype != getattr(torch, dtype) for p in model.parameters()
    )
    if not (cast or channels_last or any(module.training for module in model.modules())):
        return model
    model = copy.deepcopy(model).eval()
    if cast:
        model = model.to(getattr(torch, str(dtype)))
    return model.to(memory_format=torch.channels_last) if channels_last else model  # type: ignore[call-overload]


def _finished(call: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """A call on a GPU returns before the work is done; the time must include the work."""

    def run() -> Any:
        output = call()
        torch.cuda.synchronize(device)
        return output

    return run
