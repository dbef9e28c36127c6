"""The protocol of runtimes, and the base class of those that load files. Does not import torch."""

import abc
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from zoo.errors import BadInput, first_line


class Runtime(Protocol):
    """A loaded model that can be called and timed.

    Attributes:
        name: Name of the runtime for `zoo.runtimes.load`.
        version: Version of the software that runs the model.
        threads: Number of threads per call.
        dtype: Type that the model computes in.
        layout: `"NCHW"` or `"NHWC"`, the order of images in memory. Shapes are always B C H W.
        device: Device that it computes on, in torch's notation.
        fused: Whether the model was re-parameterised; None if unknown.
        load_s: Seconds it took to load the model: read and optimise the graph, create the session.
    """

    name: str
    version: str
    threads: int
    dtype: str
    layout: str
    device: str
    fused: bool | None
    load_s: float

    @classmethod
    def check_machine(cls) -> None:
        """Raise `MissingExtra` if the runtime is installed but cannot run on this machine."""
        ...

    def bind(self, batch: np.ndarray) -> Callable[[], Any]:
        """Return a function that runs the model on `batch` (B C H W, float32 or uint8).

        The batch is converted and copied here, so that the function can be timed.
        """
        ...

    def __call__(self, batch: np.ndarray) -> list[np.ndarray]:
        """Return every output for `batch` (B C H W, float32 or uint8), in float32."""
        ...

    def process_settings(self) -> contextlib.AbstractContextManager[None]:
        """Return a context that sets what `bind`'s function needs in the whole process."""
        ...


class FileRuntime(abc.ABC):
    """A file loaded into a runtime; on the CPU unless a subclass overrides `device`.

    Args:
        file: A file with one of the suffixes in `suffixes`.
        threads: Number of threads per call.
        dtype: Type to compute in, one of `dtypes`; None: float32.
        channels_last: Must be False, because files take NCHW.
        fused: Whether the model in the file was re-parameterised; None if unknown.

    Attributes:
        packages: Packages that the runtime needs.
        layouts: Values of `layout` that it supports.
        dtypes: Values of `dtype` that it supports.
        suffixes: Suffixes of the files that it loads.
        shape: Shape of the input that the file states, None for a dynamic axis; None if unknown.

    Raises:
        BadInput: The file cannot be loaded.
    """

    name: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()
    layouts: ClassVar[tuple[str, ...]] = ("NCHW",)
    dtypes: ClassVar[tuple[str, ...]] = ("float32",)
    suffixes: ClassVar[tuple[str, ...]]
    device = "cpu"
    shape: tuple[int | None, ...] | None = None

    def __init__(
        self,
        file: Path,
        *,
        threads: int,
        dtype: str | None,
        channels_last: bool,
        fused: bool | None,
    ) -> None:
        assert not channels_last
        self.threads = threads
        self.layout = "NCHW"
        self.dtype = dtype or "float32"
        self.fused = fused
        self.version = self._start()
        begin = time.perf_counter()
        try:
            self._load(file)
        except Exception as error:  # each runtime raises errors of its own
            raise BadInput(
                f"runtime {self.name!r} cannot load {file}: {first_line(error)}"
            ) from error
        self.load_s = time.perf_counter() - begin

    @abc.abstractmethod
    def _start(self) -> str:
        """Import and set up the runtime, which `load_s` does not include; return its version."""

    @abc.abstractmethod
    def _load(self, file: Path) -> None:
        """Load a file; any exception means that it cannot be loaded."""

    @classmethod  # noqa: B027 (most runtimes run on every machine)
    def check_machine(cls) -> None:
        """Raise `MissingExtra` if the runtime is installed but cannot run on this machine."""

    @abc.abstractmethod
    def bind(self, batch: np.ndarray) -> Callable[[], Any]:
        """Return a function that runs the model on `batch`, see `Runtime`."""

    @abc.abstractmethod
    def __call__(self, batch: np.ndarray) -> list[np.ndarray]:
        """Return every output for `batch` in float32."""

    def process_settings(self) -> contextlib.AbstractContextManager[None]:
        """Return a context that changes nothing: most runtimes keep settings per session."""
        return contextlib.nullcontext()
