"""PyTorch -> OpenVINO in int8, by NNCF's post-training quantisation.

Convolutions and linear layers are quantised: their weights per output channel, symmetric; what goes
in per tensor, and per channel into a depthwise convolution. Everything else computes in float. By
way of ONNX, where each node says which module it comes from.
"""

import sys
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from zoo.compression import sanity
from zoo.compression.int8_onnx import nodes_of
from zoo.compression.layers import layers
from zoo.deploy import openvino as exporter
from zoo.deploy import tracing
from zoo.deploy.spec import Settings
from zoo.environment import need, quiet
from zoo.errors import NotExportable, first_line
from zoo.runtimes.openvino import core

PACKAGES = (*exporter.PACKAGES, "nncf")
# What NNCF would quantise for a CPU, by OpenVINO's names; of it, only chosen layers are.
QUANTIZABLE = {
    "Add", "AvgPool", "Convolution", "ConvolutionBackpropData", "Divide", "GroupConvolution",
    "GroupConvolutionBackpropData", "Interpolate", "MVN", "MatMul", "Maximum", "Minimum",
    "Multiply", "NormalizeL2", "Power", "ReduceMax", "ReduceMean", "ReduceSum",
    "ScaledDotProductAttention", "Subtract",
}  # fmt: skip
REPORTER = "openvino_telemetry"
BARE = "/WithoutBiases"  # what OpenVINO adds to the name of a layer whose bias it adds apart


def convert(
    model: nn.Module,
    file: Path,
    settings: Settings,
    batches: Sequence[np.ndarray],
    keep_float: Collection[str],
) -> None:
    """Write `model`, fused and in evaluation mode, to `file` (`.xml`, weights beside it) in int8.

    Args:
        model: What is written.
        file: The program; its weights go beside it.
        settings: What is asked of the file.
        batches: What `model` takes, to find the ranges of values on.
        keep_float: Names of modules that stay in float.

    Raises:
        BadInput: The model does not run on this input, or an opset that cannot be written.
        MissingExtra: A package is not installed.
        NotExportable: The model cannot be exported or quantised.
    """
    need("format 'openvino' in int8", PACKAGES)
    import onnx

    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        middle = Path(folder) / "model.onnx"
        program = exporter.read(model, middle, settings)
        graph = onnx.load(middle)
        chosen = set(nodes_of(graph, layers(model), keep_float))
        if not chosen:
            raise NotExportable(f"{tracing.title(model)}: no layer of it is left to be in int8")
        # OpenVINO names a layer after its node or its output, its bias apart; or not at all, and
        # then its weight has a name.
        names = {
            name
            for node in graph.graph.node
            if node.name in chosen
            for name in (node.name, node.input[1], *node.output)
        }
        seen = sanity.watched(batches)
        wanted = _outputs(program, seen)
        try:
            program = _quantized(program, batches, names)
        except Exception as error:  # whatever NNCF raises on a graph that it does not understand
            raise NotExportable(
                f"{tracing.title(model)} cannot be quantised for OpenVINO: {first_line(error)}"
            ) from error
        exporter.write(model, program, file)
    sanity.check(model, wanted, _outputs(file, seen), "OpenVINO")


def _outputs(program: Any, batches: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the first output of a program, or of its file, for each batch."""
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core().compile_model(program, "CPU", settings)
    return [compiled(batch)[0].copy() for batch in batches]


def _quantized(program: Any, batches: Sequence[np.ndarray], chosen: set[str]) -> Any:
    """Return the program with the layers `chosen` in int8, named as in ONNX."""
    with quiet():
        nncf = _nncf()
        from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters
        from nncf.quantization.range_estimator import RangeEstimatorParametersSet

        ignored = [
            op.get_friendly_name()
            for op in program.get_ops()
            if op.get_type_name() in QUANTIZABLE and (not _names(op) & chosen or _fails(op))
        ]
        return nncf.quantize(
            program,
            nncf.Dataset(batches),
            preset=nncf.QuantizationPreset.MIXED,
            target_device=nncf.TargetDevice.CPU,
            subset_size=len(batches),
            ignored_scope=nncf.IgnoredScope(names=ignored),
            # All that was seen is in the range. By default limits are averaged over the batches,
            # which cuts off more of it the smaller they are.
            advanced_parameters=AdvancedQuantizationParameters(
                activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX
            ),
        )


def _names(op: Any) -> set[str]:
    """Return the names that an operation may be known by in ONNX: its own, or its weight's."""
    own = op.get_friendly_name().removesuffix(BARE)
    if op.get_input_size() < 2 or "Convolution" not in op.get_type_name():
        return {own}
    return {own, op.input(1).get_source_output().get_node().get_friendly_name()}


def _fails(op: Any) -> bool:
    """Say whether OpenVINO (2026.4.1) computes a layer wrongly once it is quantised.

    Such is what takes a maximum over the image, SimpleNet's classifier: the program is right where
    its int8 is only emulated, and wrong in int8.
    """
    return op.input(0).get_source_output().get_node().get_type_name() == "ReduceMax"


def _nncf() -> Any:
    """Import NNCF without what would report its use to its makers, which nothing else needs."""
    before = sys.modules.get(REPORTER, ...)
    sys.modules[REPORTER] = None  # type: ignore[assignment]  # as if it were not installed
    try:
        import nncf
    finally:
        if before is ...:
            del sys.modules[REPORTER]
        else:
            sys.modules[REPORTER] = before
    return nncf
