"""ExecuTorch with XNNPACK, what runs on phones, on this machine's CPU."""

import contextlib
import functools
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from zoo.errors import BadInput, first_line


def bindings() -> tuple[Any, Any]:
    """Import ExecuTorch's bindings, which warn that they are new: the module and its runtime."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime

        return portable_lib, Runtime.get()


class ExecuTorch:
    """A program of ExecuTorch (`.pte`), for the sizes that it was exported for."""

    name = "executorch"
    packages: ClassVar[tuple[str, ...]] = ("executorch",)
    layouts: ClassVar[tuple[str, ...]] = ("NCHW",)
    dtypes: ClassVar[tuple[str, ...]] = ("float32",)
    suffixes: ClassVar[tuple[str, ...]] = (".pte",)

    def __init__(
        self,
        artefact: Path,
        *,
        threads: int,
        dtype: str | None,
        channels_last: bool,
        fused: bool | None,
    ) -> None:
        import importlib.metadata

        _, runtime = bindings()
        self.version = importlib.metadata.version("executorch")
        self.threads = threads
        self.layout = "NCHW"
        self.device = "cpu"
        self.dtype = "float32"
        self.fused = fused
        begin = time.perf_counter()
        _size_pool(threads)
        try:
            self.program = runtime.load_program(artefact)
            self.method: Any = self.program.load_method("forward")
        except Exception as error:  # whatever its bindings raise on a file that is none
            raise BadInput(f"ExecuTorch cannot load {artefact}: {first_line(error)}") from error
        if self.method is None:
            raise BadInput(f"ExecuTorch cannot load {artefact}: it has no method 'forward'")
        self.load_s = time.perf_counter() - begin

    @classmethod
    def check_machine(cls) -> None:
        """ExecuTorch runs wherever it is installed."""

    def bind(self, batch: np.ndarray) -> Callable[[], Any]:
        import torch

        return functools.partial(
            self.method.execute, [torch.from_numpy(np.ascontiguousarray(batch))]
        )

    def __call__(self, batch: np.ndarray) -> list[np.ndarray]:
        with self.held():
            # The next call writes where this one's results lie.
            return [output.float().numpy().copy() for output in self.bind(batch)()]

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Nothing has to be held: the pool of threads keeps its size."""
        yield


_sized: int | None = None  # threads of the pool, once it has been given a size


def _size_pool(threads: int) -> None:
    """Give the process's pool of threads its size, which it then keeps.

    Replacing it under programs that were loaded before crashes the process (ExecuTorch 1.5.1).
    """
    global _sized
    if _sized is None:
        portable_lib, _ = bindings()
        if portable_lib._threadpool_get_thread_count() != threads:
            portable_lib._unsafe_reset_threadpool(threads)
        _sized = threads
    if _sized != threads:
        raise BadInput(
            f"threads={threads}: ExecuTorch runs on {_sized} in this process, which cannot be "
            "changed any more; start another process"
        )
