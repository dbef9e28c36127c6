"""PyTorch -> OpenVINO in int8, by NNCF's post-training quantisation.

Convolutions and linear layers are quantised: their weights per output channel, symmetric; their
inputs per tensor, and per channel for a depthwise convolution. Everything else computes in float.
The model goes through ONNX, where each node names the module that it comes from.

Weights have seven bits, except in depthwise convolutions: where a processor lacks VNNI, OpenVINO
adds pairs of products in 16 bits, see `saturation`. NNCF's own seven bits put the largest weight of
a channel between two steps, and its bias correction sees only that rounding; `convert` rounds by
`grid` instead. Measured with ImageNet weights of mobilenetv2_100, 400 photographs and 64 to
calibrate on, as the SNR of the outputs: NNCF's rounding 13.6 dB, `grid` with corrected biases
19.4 dB, with adaptive rounding 20.7 dB.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from zoo.compression import sanity, saturation
from zoo.compression.int8_onnx import OPERATORS, nodes_of, nothing_to_quantize, owner_of
from zoo.compression.layers import Precisions, largest_weights, layers, rows_of
from zoo.compression.ranges import STEPS, Histogram
from zoo.compression.recipe import Limits, Recipe
from zoo.deploy import openvino as exporter
from zoo.deploy import tracing
from zoo.deploy.spec import ExportSpec
from zoo.environment import need, quiet
from zoo.errors import NotExportable, first_line
from zoo.progress import phase, track
from zoo.runtimes.openvino import core

PACKAGES = (*exporter.PACKAGES, "nncf")
RANGES = "minmax"
# The operations that NNCF quantises for a CPU; all but the chosen layers are excluded.
CONVOLUTIONS = (
    "Convolution", "ConvolutionBackpropData", "GroupConvolution", "GroupConvolutionBackpropData"
)  # fmt: skip
QUANTIZABLE = {
    "Add", "AvgPool", "Convolution", "ConvolutionBackpropData", "Divide", "GroupConvolution",
    "GroupConvolutionBackpropData", "Interpolate", "MVN", "MatMul", "Maximum", "Minimum",
    "Multiply", "NormalizeL2", "Power", "ReduceMax", "ReduceMean", "ReduceSum",
    "ScaledDotProductAttention", "Subtract",
}  # fmt: skip
REPORTER = "openvino_telemetry"
BARE = "/WithoutBiases"  # OpenVINO's suffix for a layer whose bias is a separate operation
RULE = (
    "int8 with seven bits, -64 to 64, so that two products with bytes fit into 16 bits; eight bits "
    "in depthwise convolutions, whose kernels do not add pairs in 16 bits"
)


def convert(
    model: nn.Module,
    file: Path,
    spec: ExportSpec,
    batches: Sequence[np.ndarray],
    recipe: Recipe,
    limits: Limits | None = None,
) -> Precisions:
    """Write an OpenVINO program in int8; see `recipe.Quantizer`.

    The program is `file` (`.xml`), its weights are next to it (`.bin`).
    """
    need("format 'openvino' in int8", PACKAGES)
    import onnx

    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        middle = Path(folder) / "model.onnx"
        program = exporter.read(model, middle, spec)
        graph = onnx.load(middle)
        chosen = set(nodes_of(graph, layers(model), recipe.keep_float))
        if not chosen:
            raise NotExportable(nothing_to_quantize(model, recipe.keep_float))
        # OpenVINO names a layer after its node, its output or its weight.
        owners = {
            name: owner_of(node)
            for node in graph.graph.node
            if node.op_type in OPERATORS and owner_of(node) in layers(model)
            for name in (node.name, node.input[1], *node.output)
        }
        names = {
            name
            for node in graph.graph.node
            if node.name in chosen
            for name in (node.name, node.input[1], *node.output)
        }
        compared = sanity.comparison_batches(batches)
        expected = _outputs(program, compared)
        # NNCF renames weights, so operations are identified before it runs.
        owners = {
            op.get_friendly_name(): owners[name]
            for op in program.get_ops()
            for name in _names(op)
            if name in owners and op.get_type_name() in ("MatMul", *CONVOLUTIONS)
        }
        weights = {
            op.get_friendly_name(): constant.get_data().astype(np.float64)
            for op in program.get_ops()
            if op.get_friendly_name() in owners and (constant := _constant(op)) is not None
        }
        try:
            with phase(f"calibrating on {sum(map(len, batches))} images"):
                program = _quantized(program, batches, names, recipe)
        except Exception as error:  # NNCF raises errors of every class
            raise NotExportable(
                f"{tracing.model_name(model)} cannot be quantised for OpenVINO: {first_line(error)}"
            ) from error
        known, given = layers(model), limits or {}
        grids = {name: grid(known[owner], rows_of(known[owner])) for name, owner in owners.items()}
        _set_weights(
            program,
            weights,
            {
                name: (np.asarray(given.get(owners[name], limit)), steps)
                for name, (limit, steps) in grids.items()
            },
        )
        if recipe.ranges != "minmax":
            _set_ranges(program, batches, recipe.ranges)
        exporter.write(model, program, file)
    sanity.refuse_noise(model, expected, _outputs(file, compared), "OpenVINO")
    return _precisions(file, owners)


def grid(layer: nn.Module, weight: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the limits of weights, and the number of steps; see `recipe.Quantizer`."""
    groups = getattr(layer, "groups", 1)
    is_depthwise = groups > 1 and groups == getattr(layer, "in_channels", 0)
    return largest_weights(weight), 127 if is_depthwise else 64


def check(model: nn.Module, file: Path, batches: Sequence[np.ndarray]) -> dict[str, Any]:
    """Return the manifest's entry about integer sums; see `recipe.Quantizer`."""
    pairs = [0]
    for op in core().read_model(file).get_ops():
        if op.get_type_name() not in ("MatMul", *CONVOLUTIONS) or _is_depthwise(op):
            continue
        weight = _constant(op)
        if weight is not None and weight.get_element_type().get_type_name() == "i8":
            # Whichever axis the output channels are, any two weights of the layer must fit.
            integers = weight.get_data().astype(np.int32)
            pairs.append(saturation.largest_pair(integers.reshape(1, -1)))
    found = {"largest_pair": max(pairs)}
    saturation.refuse_unsafe(tracing.model_name(model), found)
    return {"weights": RULE, "holds_for": saturation.HOLDS_FOR, "check": found}


def _precisions(file: Path, owners: dict[str, str]) -> Precisions:
    """Return which layers of a file are in int8.

    Args:
        file: The artefact.
        owners: The layer that each operation computes, by name.
    """
    found: dict[str, bool] = {}
    for op in core().read_model(file).get_ordered_ops():
        if op.get_type_name() not in ("MatMul", *CONVOLUTIONS):
            continue
        owner = owners.get(op.get_friendly_name())
        if owner is not None:
            found[owner] = found.get(owner, True) and _has_bytes(op)
    order = dict.fromkeys(owners.values())
    return Precisions(
        [name for name in order if found.get(name)],
        [name for name in order if not found.get(name)],
    )


def _is_depthwise(op: Any) -> bool:
    """Return whether an operation reads one input channel per group (G O I ... weights)."""
    shape = op.input(1).get_partial_shape()
    return op.get_type_name() == "GroupConvolution" and shape[2].get_length() == 1


def _constant(op: Any) -> Any:
    """Return the constant that the weight of an operation is stored in, or None."""
    node = op.input(1).get_source_output().get_node()
    while node.get_type_name() != "Constant":
        if not node.get_input_size():
            return None
        node = node.input(0).get_source_output().get_node()
    return node


def _has_bytes(op: Any) -> bool:
    """Return whether the weight of an operation is stored in int8."""
    weight = _constant(op)
    return weight is not None and weight.get_element_type().get_type_name() == "i8"


def _outputs(program: Any, batches: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the first output of a program, or of its file, for each batch."""
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core().compile_model(program, "CPU", settings)
    return [compiled(batch)[0].copy() for batch in batches]


def _quantized(
    program: Any, batches: Sequence[np.ndarray], chosen: set[str], recipe: Recipe
) -> Any:
    """Return the program with the layers `chosen`, given by their names in ONNX, in int8."""
    with quiet():
        nncf = _nncf()
        from nncf.quantization.advanced_parameters import (
            AdvancedQuantizationParameters,
            OverflowFix,
        )
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
            # Ranges contain every value that was seen. By default NNCF averages the limits over
            # the batches, which cuts off more the smaller the batches are.
            advanced_parameters=AdvancedQuantizationParameters(
                overflow_fix=OverflowFix.ENABLE,
                activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
                disable_bias_correction=True,  # see `repairs`
            ),
        )


def _set_weights(
    program: Any, weights: dict[str, np.ndarray], steps: dict[str, tuple[np.ndarray, int]]
) -> None:
    """Round weights by our own grid, in place.

    NNCF's seven bits put the largest weight on 63.5, between two steps.

    Args:
        program: The program that NNCF made.
        weights: The weight in float of each operation, by name.
        steps: The grid of each operation, see `grid`.
    """
    from openvino import opset13

    for op in program.get_ops():
        name = op.get_friendly_name()
        if name not in weights or name not in steps:
            continue
        scaled = op.input(1).get_source_output().get_node()
        while scaled.get_type_name() == "Reshape":
            scaled = scaled.input(0).get_source_output().get_node()
        if scaled.get_type_name() != "Multiply" or not _has_bytes(op):
            continue
        limits, count = steps[name]
        old = scaled.input(1).get_source_output().get_node()
        if int(np.prod(old.output(0).get_shape())) != limits.size:
            continue
        scale = (limits / count).astype(np.float32).reshape(list(old.output(0).get_shape()))
        converted = scaled.input(0).get_source_output().get_node()
        shape = list(converted.output(0).get_shape())
        integers = np.round(weights[name].reshape(shape) / scale).clip(-count, count)
        bytes_ = opset13.constant(integers.astype(np.int8))
        converted.input(0).replace_source_output(bytes_.output(0))
        scaled.input(1).replace_source_output(opset13.constant(scale).output(0))


def _set_limits(fake: Any, limits: tuple[Any, Any]) -> None:
    """Replace the lowest and the highest value of a FakeQuantize operation."""
    from openvino import opset13

    for i, limit in enumerate((*limits, *limits), start=1):
        shape = list(fake.input(i).get_shape())
        constant = opset13.constant(np.asarray(limit, np.float32).reshape(shape))
        fake.input(i).replace_source_output(constant.output(0))


def _set_ranges(program: Any, batches: Sequence[np.ndarray], method: str) -> None:
    """Replace the ranges of activations that have one range for all channels, in place.

    NNCF's ranges contain every value that was seen; ranges per channel stay as they are.
    """
    import openvino

    make: Any = openvino.Model
    observed = program.clone()
    fakes = _activation_fakes(program)
    copies = {op.get_friendly_name(): op for op in observed.get_ops()}
    values: Any = [copies[fake.get_friendly_name()].input(0).get_source_output() for fake in fakes]
    compiled = core().compile_model(
        make(values, observed.get_parameters()),
        "CPU",
        {"INFERENCE_PRECISION_HINT": "f32"},
    )
    found = [Histogram() for _ in fakes]
    for batch in track(batches, f"searching ranges by {method}"):
        results = compiled(batch)
        for i, histogram in enumerate(found):
            histogram.add(results[i])
    for fake, histogram in zip(fakes, found, strict=True):
        low, high = histogram.range(method)
        if high <= low:
            continue
        if low < 0:  # zero must be one of the steps
            scale = (high - low) / STEPS
            low = round(low / scale) * scale
            high = low + STEPS * scale
        _set_limits(fake, (low, high))


def _activation_fakes(program: Any) -> list[Any]:
    """Return the FakeQuantize operations of activations with a single range."""
    return [
        op
        for op in program.get_ordered_ops()
        if op.get_type_name() == "FakeQuantize"
        and op.input(0).get_source_output().get_node().get_type_name() != "Constant"
        and op.get_levels() == STEPS + 1
        and int(np.prod(op.input(1).get_shape())) == 1
    ]


def _names(op: Any) -> set[str]:
    """Return the names that an operation may have in ONNX: its own, or its weight's."""
    own = op.get_friendly_name().removesuffix(BARE)
    if op.get_input_size() < 2 or "Convolution" not in op.get_type_name():
        return {own}
    return {own, op.input(1).get_source_output().get_node().get_friendly_name()}


def _fails(op: Any) -> bool:
    """Return whether OpenVINO (2026.4.1) computes a layer wrongly once it is quantised.

    This is the case for a layer after a maximum over the image, such as SimpleNet's classifier: the
    program is right when int8 is emulated in float, and wrong in int8.
    """
    return op.input(0).get_source_output().get_node().get_type_name() == "ReduceMax"


def _nncf() -> Any:
    """Import NNCF without its telemetry package, which would report its use."""
    before = sys.modules.get(REPORTER, ...)
    sys.modules[REPORTER] = None  # type: ignore[assignment]  # as if not installed
    try:
        import nncf
    finally:
        if before is ...:
            del sys.modules[REPORTER]
        else:
            sys.modules[REPORTER] = before
    return nncf
