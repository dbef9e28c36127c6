"""What executes a model: one small class a runtime, all behind one protocol.

A runtime takes a model or an artefact, is told threads, layout and dtype, and is called on a NumPy
batch. `bind` gives the bare call that latency is measured on: its input is already where the
runtime wants it, so that neither conversion nor copying is part of the time.

PyTorch is imported where a model is handed in or a runtime needs it: an ONNX file is run without.
"""

import difflib
import importlib
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import BadInput
from zoo.runtimes.base import Runtime as Runtime
from zoo.runtimes.base import first_line as first_line
from zoo.runtimes.base import need as need

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
    input_size: Sequence[int] = (1, 3, 224, 224),
    threads: int | None = None,
    dtype: str | None = None,
    channels_last: bool = False,
) -> Runtime:
    """Load a model or an artefact into a runtime.

    Args:
        source: A model, which is left as it is, or the path of an artefact of that runtime.
        runtime: One of `NAMES`.
        input_size: B C H W with which a model is exported where the runtime wants an artefact.
        threads: Threads that share one call; None: as many as PyTorch uses.
        dtype: `"float32"`, `"bfloat16"` or `"float16"`; None: the model's own.
        channels_last: Whether images and weights lie as NHWC in memory.

    Returns:
        What executes it; a model for a runtime of artefacts is exported to a temporary one first.

    Raises:
        BadInput: A setting that the runtime cannot take, or an artefact that it cannot load.
        MissingExtra: A package of the runtime is not installed.
        NotExportable: The model cannot be exported to the format that the runtime loads.
    """
    check(runtime, threads=threads, dtype=dtype, channels_last=channels_last)
    kind = _class(runtime)
    settings: dict[str, Any] = {
        "threads": threads or _threads(),
        "dtype": dtype,
        "channels_last": channels_last,
    }
    if not isinstance(source, str | os.PathLike):
        settings["fused"] = bool(getattr(source, "reparameterized", False))
        if not kind.suffixes:
            return kind(source, **settings)
        return _exported(source, kind, input_size, settings)
    path = Path(source)
    if not path.name.endswith(kind.suffixes or ("/",)):
        files = " or ".join(kind.suffixes)
        takes = f"a model or a {files} file" if files else "a model"
        raise BadInput(f"runtime {runtime!r} loads {takes}, not {str(source)!r}")
    if not path.is_file():
        raise BadInput(f"no artefact at {str(source)!r}")
    return kind(path, fused=_stated_fused(path), **settings)


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


def _stated_fused(artefact: Path) -> bool | None:
    """What the manifest beside an artefact says of it; None where there is none of it."""
    try:
        content = json.loads((artefact.parent / "manifest.json").read_text(encoding="utf-8"))
        return content["model"]["fused"] if content["artefact"]["file"] == artefact.name else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _exported(
    model: "nn.Module", kind: Any, input_size: Sequence[int], settings: dict[str, Any]
) -> Runtime:
    """Load a model through a temporary artefact with a fixed batch."""
    from zoo.exporters import convert
    from zoo.runtimes.pytorch import in_eval_mode

    with tempfile.TemporaryDirectory() as folder:
        artefact = Path(folder) / f"model{kind.suffixes[0]}"
        convert(in_eval_mode(model), artefact, input_size=tuple(input_size), dynamic_batch=False)
        return kind(artefact, **settings)
