"""What executes a model: one small class a runtime, all behind one protocol.

A runtime takes a model or an artefact, is told threads, layout and dtype, and is called on a NumPy
batch. `bind` gives the bare call that latency is measured on: its input is already where the
runtime wants it, so that neither conversion nor copying is part of the time.
"""

import contextlib
import copy
import difflib
import functools
import importlib.util
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import nn

from zoo.errors import BadInput, MissingExtra

DTYPES = ("float32", "bfloat16", "float16")


class Runtime(Protocol):
    """A loaded model that can be called and timed.

    Attributes:
        name: The name under which `load` knows it.
        version: The version of the software that executes.
        threads: Threads that share one call.
        dtype: The type in which the model computes.
        layout: `"NCHW"` or `"NHWC"`, the order of the images in memory; shapes are always B C H W.
        device: Where it computes, as torch names it.
        fused: Whether the model was re-parameterised; None where nothing tells.
        load_s: Seconds that preparing took: building the session, reading and optimising the graph.
    """

    name: str
    version: str
    threads: int
    dtype: str
    layout: str
    device: str
    fused: bool | None
    load_s: float

    def bind(self, batch: np.ndarray) -> Callable[[], Any]:
        """Return a call of the model on `batch` (B C H W, float32) and on nothing else."""
        ...

    def __call__(self, batch: np.ndarray) -> list[np.ndarray]:
        """Run on `batch` (B C H W, float32) and return every output in float32."""
        ...

    def held(self) -> contextlib.AbstractContextManager[None]:
        """Hold the process-wide settings that this runtime needs while it is called."""
        ...


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

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        before = torch.get_num_threads()
        if before != self.threads:
            torch.set_num_threads(self.threads)
        try:
            with torch.inference_mode():
                yield
        finally:
            if before != self.threads:
                torch.set_num_threads(before)


class Compiled(Eager):
    """The model compiled by `torch.compile`, for the shape of the batch it is bound to.

    Compilation happens in the first call, which is why that call is reported apart.
    """

    name = "compile"

    def _executable(self) -> Callable[..., Any]:
        # torch compiles a class of models only so many times; after that it silently runs eagerly.
        torch.compiler.reset()
        return torch.compile(self.model, dynamic=False)


class OnnxRuntime:
    """An ONNX file in ONNX Runtime on the CPU."""

    name = "onnxruntime"
    packages: ClassVar[tuple[str, ...]] = ("onnxruntime",)
    layouts: ClassVar[tuple[str, ...]] = ("NCHW",)
    dtypes: ClassVar[tuple[str, ...]] = ("float32",)
    suffixes: ClassVar[tuple[str, ...]] = (".onnx",)

    def __init__(
        self,
        artefact: Path,
        *,
        threads: int,
        dtype: str | None,
        channels_last: bool,
        fused: bool | None,
    ) -> None:
        import onnxruntime as ort

        self.version = ort.__version__
        self.threads = threads
        self.layout = "NCHW"
        self.device = "cpu"
        self.dtype = "float32"
        self.fused = fused
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Threads that spin on after a call cost nothing here, but slow whatever is timed next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        begin = time.perf_counter()
        try:
            self.session = ort.InferenceSession(
                artefact, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its exceptions have no public common base
            raise BadInput(f"ONNX Runtime cannot load {artefact}: {first_line(error)}") from error
        self.load_s = time.perf_counter() - begin
        self.input = self.session.get_inputs()[0]

    def bind(self, batch: np.ndarray) -> Callable[[], Any]:
        return functools.partial(self.session.run, None, {self.input.name: batch})

    def __call__(self, batch: np.ndarray) -> list[np.ndarray]:
        return [np.asarray(output, np.float32) for output in self.bind(batch)()]

    def held(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


RUNTIMES: dict[str, Any] = {kind.name: kind for kind in (Eager, Compiled, OnnxRuntime)}


def check(
    runtime: str,
    *,
    threads: int | None = None,
    dtype: str | None = None,
    channels_last: bool = False,
) -> None:
    """Refuse what no call of `load` could do, without loading anything.

    Raises:
        BadInput: An unknown runtime, or a setting that it cannot take.
        MissingExtra: A package of the runtime is not installed.
    """
    if runtime not in RUNTIMES:
        near = difflib.get_close_matches(str(runtime), RUNTIMES, n=1) or RUNTIMES
        raise BadInput(f"no runtime named {runtime!r}; try {' or '.join(near)}")
    kind = RUNTIMES[runtime]
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise BadInput(f"threads={threads!r} must be a whole number of at least 1")
    if dtype is not None and dtype not in kind.dtypes:
        raise BadInput(f"dtype={dtype!r}: runtime {runtime!r} takes {' or '.join(kind.dtypes)}")
    if channels_last and "NHWC" not in kind.layouts:
        raise BadInput(f"channels_last=True: runtime {runtime!r} takes its input as NCHW only")
    need(f"runtime {runtime!r}", kind.packages)


def load(
    source: nn.Module | str | os.PathLike[str],
    runtime: str = "eager",
    *,
    input_size: Sequence[int] = (1, 3, 224, 224),
    threads: int | None = None,
    dtype: str | None = None,
    channels_last: bool = False,
) -> Runtime:
    """Load a model or an artefact into a runtime.

    Args:
        source: A model, which is left as it is, or the path of an artefact of that runtime.
        runtime: `"eager"`, `"compile"` or `"onnxruntime"`.
        input_size: B C H W with which a model is exported where the runtime wants an artefact.
        threads: Threads that share one call; None: as many as PyTorch uses.
        dtype: `"float32"`, `"bfloat16"` or `"float16"`; None: the model's own.
        channels_last: Whether images and weights lie as NHWC in memory.

    Raises:
        BadInput: A setting that the runtime cannot take, or an artefact that it cannot load.
        MissingExtra: A package of the runtime is not installed.
        NotExportable: The model cannot be exported to the format that the runtime loads.
    """
    check(runtime, threads=threads, dtype=dtype, channels_last=channels_last)
    kind = RUNTIMES[runtime]
    settings: dict[str, Any] = {
        "threads": threads or torch.get_num_threads(),
        "dtype": dtype,
        "channels_last": channels_last,
    }
    if isinstance(source, nn.Module):
        settings["fused"] = bool(getattr(source, "reparameterized", False))
        if not kind.suffixes:
            return kind(source, **settings)
        return _exported(source, kind, input_size, settings)
    path = Path(source)
    if path.suffix not in kind.suffixes:
        takes = "a model" if not kind.suffixes else f"a model or a {kind.suffixes[0]} file"
        raise BadInput(f"runtime {runtime!r} loads {takes}, not {str(source)!r}")
    if not path.is_file():
        raise BadInput(f"no artefact at {str(source)!r}")
    return kind(path, fused=_stated_fused(path), **settings)


def _stated_fused(artefact: Path) -> bool | None:
    """What the manifest beside an artefact says of it; None where there is none of it."""
    try:
        content = json.loads((artefact.parent / "manifest.json").read_text(encoding="utf-8"))
        return content["model"]["fused"] if content["artefact"]["file"] == artefact.name else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _exported(
    model: nn.Module, kind: Any, input_size: Sequence[int], settings: dict[str, Any]
) -> Runtime:
    """Load a model through a temporary artefact with a fixed batch."""
    from zoo.exporters import convert

    with tempfile.TemporaryDirectory() as folder:
        artefact = Path(folder) / f"model{kind.suffixes[0]}"
        convert(in_eval_mode(model), artefact, input_size=tuple(input_size), dynamic_batch=False)
        return kind(artefact, **settings)


def flat(output: Any) -> list[torch.Tensor]:
    """List the tensors of a model's output: one, a list or tuple of them, or a dictionary."""
    if isinstance(output, torch.Tensor):
        return [output]
    parts = output.values() if isinstance(output, dict) else output
    return [tensor for part in parts for tensor in flat(part)]


def need(what: str, packages: Sequence[str]) -> None:
    """Raise `MissingExtra`, with the line that installs them, unless `packages` are there."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtra(
            f"{what} needs packages that are not installed: pip install {' '.join(missing)}"
        )


def first_line(error: BaseException) -> str:
    """Return the first line of an error that says something, else the name of its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


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
