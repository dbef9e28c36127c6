"""PyTorch -> OpenVINO's intermediate representation (`.xml` and `.bin`), by way of ONNX.

By way of ONNX, because that file's names of inputs and outputs stay, and because what is not said
in ONNX's operators OpenVINO would not take from a traced program either.
"""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from zoo.deploy import onnx, tracing
from zoo.deploy.spec import Settings
from zoo.environment import need, quiet
from zoo.errors import NotExportable, first_line
from zoo.runtimes.openvino import core

PACKAGES = ("onnx", "onnxscript", "openvino")
EXTRA = "export"
INPUT = onnx.INPUT


def convert(model: nn.Module, file: Path, settings: Settings) -> None:
    """Write `model` to `file` (`.xml`) and its weights beside it, in float16 if half is asked.

    Raises:
        BadInput: The model does not run on this input, or an opset that cannot be written.
        MissingExtra: A package is not installed.
        NotExportable: An exporter fails.
    """
    need("format 'openvino'", PACKAGES)
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        program = read(model, Path(folder) / "model.onnx", settings)
        write(model, program, file, half=settings.half)


def read(model: nn.Module, middle: Path, settings: Settings) -> Any:
    """Return the program that OpenVINO makes of `model`, in float32.

    Args:
        model: In evaluation mode.
        middle: Where the ONNX file in between is left.
        settings: What is asked of the program.

    Raises:
        BadInput: The model does not run on this input, or an opset that cannot be written.
        MissingExtra: A package is not installed.
        NotExportable: An exporter fails.
    """
    import openvino
    import openvino.passes

    onnx.convert(model, middle, dataclasses.replace(settings, half=False))
    try:
        with quiet():
            # Not convert_model: it reads ONNX in the same way, and reports its use to its makers.
            program = core().read_model(middle)
            folding = openvino.passes.Manager()
            folding.register_pass(openvino.passes.ConstantFolding())
            folding.run_passes(program)
            return program
    except Exception as error:  # whatever OpenVINO raises on what it cannot read
        raise NotExportable(_failed(model, error)) from error


def write(model: nn.Module, program: Any, file: Path, *, half: bool = False) -> None:
    """Write what was made of `model` to `file` and its weights beside it.

    Raises:
        NotExportable: OpenVINO fails.
    """
    import openvino

    try:
        with quiet():
            openvino.save_model(program, file, compress_to_fp16=half)
    except Exception as error:  # whatever OpenVINO raises on what it cannot write
        raise NotExportable(_failed(model, error)) from error


def _failed(model: nn.Module, error: Exception) -> str:
    return f"{tracing.title(model)} cannot be exported to OpenVINO: {first_line(error)}"


def versions() -> tuple[str, ...]:
    """Name the packages whose versions shape the artefact."""
    return ("zoo", "torch", "timm", *PACKAGES)


def describe(file: Path) -> dict[str, Any]:
    """Return what the file states of itself: number of operations."""
    return {"nodes": len(core().read_model(file).get_ops())}
