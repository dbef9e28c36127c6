"""ExecuTorch with XNNPACK on this machine's CPU; phones use the same runtime."""

import functools
import importlib.metadata
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from zoo.errors import BadInput
from zoo.runtimes.base import FileRuntime


def import_bindings() -> tuple[Any, Any]:
    """Import ExecuTorch's Python bindings without the warning that they are experimental.

    Returns:
        The module `portable_lib`, and the process's `executorch.runtime.Runtime`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime

        return portable_lib, Runtime.get()


class ExecuTorch(FileRuntime):
    """An ExecuTorch program (`.pte`); it only takes the shape that it was exported for."""

    name = "executorch"
    packages: ClassVar[tuple[str, ...]] = ("executorch",)
    suffixes: ClassVar[tuple[str, ...]] = (".pte",)

    def _start(self) -> str:
        _set_pool_size(self.threads)
        return importlib.metadata.version("executorch")

    def _load(self, file: Path) -> None:
        _, runtime = import_bindings()
        self.program = runtime.load_program(file)
        self.method: Any = self.program.load_method("forward")
        if self.method is None:
            raise ValueError("it has no method 'forward'")

    def bind(self, batch: np.ndarray) -> Callable[[], Any]:
        import torch

        x = torch.from_numpy(np.ascontiguousarray(batch))
        return functools.partial(self.method.execute, [x])

    def __call__(self, batch: np.ndarray) -> list[np.ndarray]:
        # Copied, because the next call reuses the memory of the outputs.
        return [output.float().numpy().copy() for output in self.bind(batch)()]


_pool_size: int | None = None  # threads in ExecuTorch's pool; None until it is set


def _set_pool_size(threads: int) -> None:
    """Set the number of threads of this process's pool, which can be done only once.

    Resizing the pool crashes the process if a program was loaded before (ExecuTorch 1.5.1).

    Raises:
        BadInput: The pool has another size already.
    """
    global _pool_size
    if _pool_size is None:
        portable_lib, _ = import_bindings()
        if portable_lib._threadpool_get_thread_count() != threads:
            portable_lib._unsafe_reset_threadpool(threads)
        _pool_size = threads
    if _pool_size != threads:
        raise BadInput(
            f"threads={threads}: ExecuTorch already uses {_pool_size} in this process and cannot "
            "change that; start another process"
        )
