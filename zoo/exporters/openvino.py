"""PyTorch -> OpenVINO's intermediate representation (`.xml` and `.bin`), by way of ONNX.

By way of ONNX, because that file's names of inputs and outputs stay, and because what is not said
in ONNX's operators OpenVINO would not take from a traced program either.
"""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from zoo.errors import NotExportable
from zoo.exporters import onnx, tracing
from zoo.exporters.settings import Settings
from zoo.runtimes import first_line, need

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
    import openvino

    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        middle = Path(folder) / "model.onnx"
        onnx.convert(model, middle, dataclasses.replace(settings, half=False))
        try:
            with tracing.silence():
                program = openvino.convert_model(middle)
                openvino.save_model(program, file, compress_to_fp16=settings.half)
        except Exception as error:  # whatever OpenVINO raises on what it cannot read
            raise NotExportable(
                f"{tracing.title(model)} cannot be exported to OpenVINO: {first_line(error)}"
            ) from error


def versions() -> tuple[str, ...]:
    """Name the packages whose versions shape the artefact."""
    return ("zoo", "torch", "timm", *PACKAGES)


def describe(file: Path) -> dict[str, Any]:
    """Return what the file states of itself: number of operations."""
    import openvino

    return {"nodes": len(openvino.Core().read_model(file).get_ops())}
