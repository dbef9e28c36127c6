"""PyTorch -> OpenVINO's intermediate representation (`.xml` and `.bin`), via ONNX.

Via ONNX, the names of inputs and outputs are kept. OpenVINO's own frontend for PyTorch would not
support more models: it lacks the same operators.
"""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from zoo.deploy import onnx, tracing
from zoo.deploy.spec import ExportSpec
from zoo.environment import need, quiet
from zoo.errors import NotExportable, first_line
from zoo.runtimes.openvino import core

PACKAGES = ("onnx", "onnxscript", "openvino")
INPUT = onnx.INPUT


def convert(model: nn.Module, file: Path, spec: ExportSpec) -> None:
    """Write `model`, in evaluation mode, to `file` (`.xml`) and its weights next to it (`.bin`).

    Raises:
        BadInput: The model does not run at this size, or the opset is not supported.
        MissingExtra: A package is not installed.
        NotExportable: The model cannot be exported.
    """
    need("format 'openvino'", PACKAGES)
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        program = read(model, Path(folder) / "model.onnx", spec)
        write(model, program, file, half=spec.half)


def read(model: nn.Module, onnx_file: Path, spec: ExportSpec) -> Any:
    """Convert `model` to an `openvino.Model` in float32.

    Args:
        model: The model, in evaluation mode.
        onnx_file: Where to write the intermediate ONNX file.
        spec: Size, dynamic axes and opset; `half` is ignored.

    Raises:
        BadInput: The model does not run at this size, or the opset is not supported.
        MissingExtra: A package is not installed.
        NotExportable: The model cannot be exported.
    """
    import openvino
    import openvino.passes

    onnx.convert(model, onnx_file, dataclasses.replace(spec, half=False), "openvino")
    try:
        with quiet():
            # convert_model reads ONNX in the same way, but sends telemetry.
            program = core().read_model(onnx_file)
            passes = openvino.passes.Manager()
            passes.register_pass(openvino.passes.ConstantFolding())
            passes.run_passes(program)
            return program
    except Exception as error:  # OpenVINO's frontends raise errors without a common base
        raise _not_exportable(model, error) from error


def write(model: nn.Module, program: Any, file: Path, *, half: bool = False) -> None:
    """Write an `openvino.Model` to `file` and its weights next to it.

    Args:
        model: What the program was made from, for messages.
        program: The `openvino.Model`.
        file: Ends with `.xml`.
        half: Store the weights in float16.

    Raises:
        NotExportable: OpenVINO fails.
    """
    import openvino

    try:
        with quiet():
            openvino.save_model(program, file, compress_to_fp16=half)
    except Exception as error:  # as in `read`
        raise _not_exportable(model, error) from error


def _not_exportable(model: nn.Module, error: Exception) -> NotExportable:
    return NotExportable(
        f"{tracing.model_name(model)} cannot be exported to OpenVINO: {first_line(error)}"
    )


def describe(file: Path) -> dict[str, Any]:
    """Return the number of operations in the program."""
    return {"nodes": len(core().read_model(file).get_ops())}
