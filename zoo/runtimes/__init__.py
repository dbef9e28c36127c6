"""What executes a model: one small class a runtime, all behind one protocol.

A runtime takes a model or an artefact, is told threads, layout and dtype, and is called on a NumPy
batch. `bind` gives the bare call that latency is measured on: its input is already where the
runtime wants it, so that neither conversion nor copying is part of the time.

PyTorch is imported where a model is handed in or a runtime needs it: an ONNX file is run without.
"""

import difflib
import importlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.environment import need
from zoo.errors import BadInput
from zoo.runtimes.base import Runtime as Runtime

if TYPE_CHECKING:
    from torch import nn

# Where the class of each runtime stands: it is imported when first asked for.
_CLASSES = {
    "eager": ("pytorch", "Eager"),
    "compile": ("pytorch", "Compiled"),
    "onnxruntime": ("onnxruntime", "OnnxRuntime"),
    "onnxruntime-cuda": ("onnxruntime", "OnnxRuntimeCuda"),
    "openvino": ("openvino", "OpenVino"),
    "executorch": ("executorch", "ExecuTorch"),
    "pt2": ("programs", "ExportedProgram"),
    "aoti": ("programs", "Compiled"),
    "torchscript": ("programs", "Script"),
}
NAMES = tuple(_CLASSES)


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
    kind = _class(runtime)
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise BadInput(f"threads={threads!r} must be a whole number of at least 1")
    if dtype is not None and dtype not in kind.dtypes:
        raise BadInput(f"dtype={dtype!r}: runtime {runtime!r} takes {' or '.join(kind.dtypes)}")
    if channels_last and "NHWC" not in kind.layouts:
        raise BadInput(f"channels_last=True: runtime {runtime!r} takes its input as NCHW only")
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
        source: A model, which is not changed, or a file of a format that the runtime loads.
        runtime: One of `NAMES`.
        threads: Threads of one call; None: as many as PyTorch uses.
        dtype: `"float32"`, `"bfloat16"` or `"float16"`; None: the model's own.
        channels_last: Whether images and weights are NHWC in memory.
        fused: Whether the model in a file was re-parameterised, if that is known.

    Raises:
        BadInput: A setting that the runtime does not support, a file that it cannot load, or a
            model for a runtime that only loads files.
        MissingExtra: A package of the runtime is not installed.
    """
    check(runtime, threads=threads, dtype=dtype, channels_last=channels_last)
    kind = _class(runtime)
    settings: dict[str, Any] = {
        "threads": threads or _threads(),
        "dtype": dtype,
        "channels_last": channels_last,
    }
    if not isinstance(source, str | os.PathLike):
        if kind.suffixes:
            raise BadInput(
                f"runtime {runtime!r} loads {' or '.join(kind.suffixes)} files, not a model; export"
                " the model first"
            )
        return kind(source, fused=bool(getattr(source, "reparameterized", False)), **settings)
    path = Path(source)
    if not path.name.endswith(kind.suffixes or ("/",)):
        files = " or ".join(kind.suffixes)
        takes = f"a {files} file" if files else "a model"
        raise BadInput(f"runtime {runtime!r} loads {takes}, not {str(source)!r}")
    if not path.is_file():
        raise BadInput(f"no artefact at {str(source)!r}")
    return kind(path, fused=fused, **settings)


def artefact_suffix(runtime: str) -> str | None:
    """Return what the file ends with that a model is exported to for `runtime`; None for no file.

    Who measures several runtimes of one such file exports it once and loads its path.

    Raises:
        BadInput: An unknown runtime.
    """
    suffixes = _class(runtime).suffixes
    return suffixes[0] if suffixes else None


def _class(runtime: str) -> Any:
    if runtime not in _CLASSES:
        near = difflib.get_close_matches(str(runtime), NAMES, n=1) or NAMES
        raise BadInput(f"no runtime named {runtime!r}; try {' or '.join(near)}")
    module, name = _CLASSES[runtime]
    return getattr(importlib.import_module(f"zoo.runtimes.{module}"), name)


def _threads() -> int:
    """As many as PyTorch uses; where it is not imported, as many as this process may run on."""
    if "torch" in sys.modules:
        return sys.modules["torch"].get_num_threads()
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
