"""Runtimes: load a model or an artefact, and call it on NumPy batches.

Each runtime is a class with the protocol `Runtime`. `load` takes threads, memory layout and type.
`bind` returns the function whose latency is measured: its input is already converted and copied.

PyTorch is only imported by the runtimes that need it: an ONNX file runs without it.
"""

import importlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.environment import need, parallel_limit, usable_cores
from zoo.errors import BadInput, unknown_value
from zoo.runtimes.base import Runtime as Runtime

if TYPE_CHECKING:
    from torch import nn

# Module and class of each runtime; modules are imported on first use.
_CLASSES = {
    "eager": ("pytorch", "Eager"),
    "compile": ("pytorch", "Compiled"),
    "onnxruntime": ("onnxruntime", "OnnxRuntime"),
    "onnxruntime-cuda": ("onnxruntime", "OnnxRuntimeCuda"),
    "openvino": ("openvino", "OpenVino"),
    "executorch": ("executorch", "ExecuTorch"),
    "pt2": ("programs", "ExportedProgram"),
    "aoti": ("programs", "AotInductor"),
    "torchscript": ("programs", "TorchScript"),
}
NAMES = tuple(_CLASSES)


def check_settings(
    runtime: str,
    *,
    threads: int | None = None,
    dtype: str | None = None,
    channels_last: bool = False,
) -> None:
    """Check the arguments of `load` without loading anything.

    Args:
        runtime: Name of the runtime.
        threads: As for `load`.
        dtype: As for `load`.
        channels_last: As for `load`.

    Raises:
        BadInput: The runtime is unknown, or does not support a setting.
        MissingExtra: A package of the runtime is not installed.
    """
    kind = _class(runtime)
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise BadInput(f"threads={threads!r} must be a positive integer")
    if threads is not None and threads > parallel_limit():
        raise BadInput(
            f"threads={threads} is too many for {usable_cores()} cores; use at most"
            f" {parallel_limit()}"
        )
    if dtype is not None and dtype not in kind.dtypes:
        raise BadInput(
            f"dtype={dtype!r} is not supported by runtime {runtime!r}. Choices: "
            f"{', '.join(kind.dtypes)}"
        )
    if channels_last and "NHWC" not in kind.layouts:
        raise BadInput(f"channels_last=True: runtime {runtime!r} supports NCHW only; leave it out")
    need(f"runtime {runtime!r}", kind.packages)
    kind.check_machine()


def load(
    source: "nn.Module | str | os.PathLike[str]",
    runtime: str = "eager",
    *,
    threads: int | None = None,
    dtype: str | None = None,
    channels_last: bool = False,
    fused: bool | None = None,
) -> Runtime:
    """Load a model or a file into a runtime.

    Args:
        source: A model, which is not changed, or a file with a suffix that the runtime loads.
        runtime: One of `NAMES`.
        threads: Number of threads per call; None: as many as PyTorch uses.
        dtype: `"float32"`, `"bfloat16"` or `"float16"`; None: the model's own.
        channels_last: Store images and weights as NHWC.
        fused: Whether the model in a file was re-parameterised; None if unknown.

    Raises:
        BadInput: The runtime does not support a setting, cannot load the file, or only loads files
            and `source` is a model.
        MissingExtra: A package of the runtime is not installed.
    """
    check_settings(runtime, threads=threads, dtype=dtype, channels_last=channels_last)
    kind = _class(runtime)
    settings: dict[str, Any] = {
        "threads": threads or _threads(),
        "dtype": dtype,
        "channels_last": channels_last,
    }
    if not isinstance(source, str | os.PathLike):
        if kind.suffixes:
            raise BadInput(
                f"runtime {runtime!r} only loads {' or '.join(kind.suffixes)} files; export the"
                " model first"
            )
        return kind(source, fused=bool(getattr(source, "reparameterized", False)), **settings)
    path = Path(source)
    if not path.name.endswith(kind.suffixes or ("/",)):
        files = " or ".join(kind.suffixes)
        takes = f"a {files} file" if files else "a model"
        raise BadInput(f"runtime {runtime!r} loads {takes}, not {str(source)!r}")
    if not path.is_file():
        raise BadInput(f"artefact {str(source)!r} does not exist")
    return kind(path, fused=fused, **settings)


def artefact_suffix(runtime: str) -> str | None:
    """Return the suffix of the file to export for `runtime`; None if it loads models directly.

    Raises:
        BadInput: The runtime is unknown.
    """
    suffixes = _class(runtime).suffixes
    return suffixes[0] if suffixes else None


def _class(runtime: str) -> Any:
    if runtime not in _CLASSES:
        raise BadInput(unknown_value("runtime", runtime, NAMES))
    module, name = _CLASSES[runtime]
    return getattr(importlib.import_module(f"zoo.runtimes.{module}"), name)


def _threads() -> int:
    """Return how many threads PyTorch uses; if it is not imported, the usable cores."""
    if "torch" in sys.modules:
        return sys.modules["torch"].get_num_threads()
    return usable_cores()
