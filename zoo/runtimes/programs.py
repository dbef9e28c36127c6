"""PyTorch's own artefacts: exported programs, compiled code and TorchScript, run by PyTorch."""

import contextlib
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from zoo.environment import quiet
from zoo.errors import BadInput, first_line
from zoo.runtimes.pytorch import flat, with_threads


class Program:
    """What the three have in common: a callable made of a file, and its type of input."""

    name: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()
    layouts: ClassVar[tuple[str, ...]] = ("NCHW",)
    dtypes: ClassVar[tuple[str, ...]] = ("float32",)
    suffixes: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        artefact: Path,
        *,
        threads: int,
        dtype: str | None,
        channels_last: bool,
        fused: bool | None,
    ) -> None:
        self.version = torch.__version__
        self.threads = threads
        self.layout = "NCHW"
        self.device = "cpu"
        self.dtype = "float32"
        self.fused = fused
        begin = time.perf_counter()
        try:
            with quiet():
                self.call, self.takes = self.read(artefact)
        except Exception as error:  # whatever PyTorch raises on a file that is none
            raise BadInput(
                f"runtime {self.name!r} cannot load {artefact}: {first_line(error)}"
            ) from error
        self.load_s = time.perf_counter() - begin

    def read(self, file: Path) -> tuple[Callable[..., Any], torch.dtype | None]:
        """Return what is called, and the type of its input where the file states it."""
        raise NotImplementedError

    @classmethod
    def check_machine(cls) -> None:
        """PyTorch runs wherever it is installed."""

    def bind(self, batch: np.ndarray) -> Callable[[], Any]:
        x = torch.from_numpy(np.ascontiguousarray(batch))
        return functools.partial(self.call, x if self.takes is None else x.to(self.takes))

    def __call__(self, batch: np.ndarray) -> list[np.ndarray]:
        with self.held():
            return [output.float().numpy() for output in flat(self.bind(batch)())]

    def held(self) -> contextlib.AbstractContextManager[None]:
        return with_threads(self.threads)


class ExportedProgram(Program):
    """A program of `torch.export`, executed operator by operator."""

    name = "pt2"
    suffixes: ClassVar[tuple[str, ...]] = (".pt2",)

    def read(self, file: Path) -> tuple[Callable[..., Any], torch.dtype | None]:
        program = torch.export.load(file)
        return program.module(), _input_type(program)


class Compiled(Program):
    """What Inductor compiled ahead of time."""

    name = "aoti"
    suffixes: ClassVar[tuple[str, ...]] = (".aoti.pt2",)

    def read(self, file: Path) -> tuple[Callable[..., Any], torch.dtype | None]:
        loaded = torch._inductor.aoti_load_package(str(file))
        stated = loaded.get_metadata().get("zoo_input")
        return loaded, getattr(torch, stated) if stated else None


class Script(Program):
    """A program of TorchScript."""

    name = "torchscript"
    suffixes: ClassVar[tuple[str, ...]] = (".pt",)

    def read(self, file: Path) -> tuple[Callable[..., Any], torch.dtype | None]:
        return torch.jit.load(file, map_location="cpu").eval(), None


def _input_type(program: torch.export.ExportedProgram) -> torch.dtype:
    (name,) = program.graph_signature.user_inputs
    return next(node for node in program.graph.nodes if node.name == name).meta["val"].dtype
