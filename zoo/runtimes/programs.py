"""PyTorch's own file formats, run by PyTorch: exported programs, compiled code, TorchScript."""

import abc
import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from zoo.environment import quiet
from zoo.runtimes.base import FileRuntime
from zoo.runtimes.pytorch import flatten_outputs, with_threads


class Program(FileRuntime):
    """Base of the runtimes below: a callable read from a file, and the type of its input."""

    def _start(self) -> str:
        return torch.__version__

    def _load(self, file: Path) -> None:
        with quiet():
            self.call, self.input_dtype = self.read(file)

    @abc.abstractmethod
    def read(self, file: Path) -> tuple[Callable[..., Any], torch.dtype | None]:
        """Return a callable, and the type of its input; None if the file does not state it."""

    def bind(self, batch: np.ndarray) -> Callable[[], Any]:
        x = torch.from_numpy(np.ascontiguousarray(batch))
        return functools.partial(
            self.call, x if self.input_dtype is None else x.to(self.input_dtype)
        )

    def __call__(self, batch: np.ndarray) -> list[np.ndarray]:
        with self.process_settings():
            return [output.float().numpy() for output in flatten_outputs(self.bind(batch)())]

    def process_settings(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which PyTorch uses `threads` threads and inference mode."""
        return with_threads(self.threads)


class ExportedProgram(Program):
    """A program of `torch.export`, run operator by operator."""

    name = "pt2"
    suffixes: ClassVar[tuple[str, ...]] = (".pt2",)

    def read(self, file: Path) -> tuple[Callable[..., Any], torch.dtype | None]:
        program = torch.export.load(file)
        return program.module(), _input_dtype(program)


class AotInductor(Program):
    """Machine code that Inductor compiled ahead of time."""

    name = "aoti"
    suffixes: ClassVar[tuple[str, ...]] = (".aoti.pt2",)

    def read(self, file: Path) -> tuple[Callable[..., Any], torch.dtype | None]:
        loaded = torch._inductor.aoti_load_package(str(file))
        dtype = loaded.get_metadata().get("zoo_input")  # written by zoo.deploy.aoti
        return loaded, getattr(torch, dtype) if dtype else None


class TorchScript(Program):
    """A TorchScript program."""

    name = "torchscript"
    suffixes: ClassVar[tuple[str, ...]] = (".pt",)

    def read(self, file: Path) -> tuple[Callable[..., Any], torch.dtype | None]:
        return torch.jit.load(file, map_location="cpu").eval(), None


def _input_dtype(program: torch.export.ExportedProgram) -> torch.dtype:
    (name,) = program.graph_signature.user_inputs
    return next(node for node in program.graph.nodes if node.name == name).meta["val"].dtype
