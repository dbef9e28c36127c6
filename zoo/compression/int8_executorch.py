"""PyTorch -> ExecuTorch in int8, by torchao's PT2E quantisation and XNNPACK's quantiser.

Convolutions and linear layers are quantised, together with a ReLU that follows: their weights per
output channel, symmetric; their inputs and outputs per tensor. Everything else computes in float.

Weights use the full range: XNNPACK extends int8 to 16 bits before it multiplies, and adds products
in 32 bits (`vpmaddwd`, or VNNI's `vpdpbusd`), so that no sum saturates on any processor.
"""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from zoo import runtimes
from zoo.compression import sanity
from zoo.compression.int8_onnx import nothing_to_quantize
from zoo.compression.layers import Precisions, within
from zoo.compression.saturation import HOLDS_FOR
from zoo.deploy import executorch as exporter
from zoo.deploy import tracing
from zoo.deploy.int8_graph import make_padding_explicit
from zoo.deploy.spec import ExportSpec
from zoo.environment import need, quiet
from zoo.errors import NotExportable
from zoo.progress import track

PACKAGES = (*exporter.PACKAGES, "torchao")
SMALLEST_SCALE = 1e-9
CONVOLUTIONS = {torch.ops.aten.conv1d.default, torch.ops.aten.conv2d.default}
QUANTIZABLE = {
    torch.ops.aten.conv1d.padding,
    torch.ops.aten.conv2d.padding,
}
COMPUTED = CONVOLUTIONS | {
    torch.ops.aten.conv_transpose2d.input,
    torch.ops.aten.linear.default,
}
QUANTIZABLE |= COMPUTED
RESHAPES = {torch.ops.aten.view.default, torch.ops.aten.permute.default, torch.ops.aten.t.default}
LIMITS = {torch.ops.aten.hardtanh.default, torch.ops.aten.hardtanh_.default}


def convert(
    model: nn.Module,
    file: Path,
    spec: ExportSpec,
    batches: Sequence[np.ndarray],
    keep_float: Collection[str],
) -> Precisions:
    """Write `model`, fused and in evaluation mode, to `file` (`.pte`) in int8.

    Args:
        model: The model.
        file: The file to write; it supports only the sizes in `spec`.
        spec: Input size of the file.
        batches: Inputs to calibrate the ranges of activations on.
        keep_float: Names of modules that stay in float.

    Returns:
        The layers with and without int8 weights in the file.

    Raises:
        BadInput: The model does not run on this input.
        MissingExtra: A package is not installed.
        NotExportable: The model cannot be traced, quantised or lowered.
    """
    need("format 'executorch' in int8", PACKAGES)
    program = tracing.trace(model, spec, "ExecuTorch")
    layers = [owner_of(node) for node in program.graph.nodes if node.target in QUANTIZABLE]
    if all(within(name, keep_float) for name in layers):
        raise NotExportable(nothing_to_quantize(model, keep_float))
    try:
        with quiet():
            traced = quantized(program, batches, keep_float)
            example = (tracing.example_input(model, spec),)
            program = torch.export.export(traced, example)
    except Exception as error:  # torchao raises errors of every class
        raise NotExportable(
            f"{tracing.model_name(model)} cannot be quantised for ExecuTorch: "
            f"{tracing.root_cause(error)}"
        ) from error
    precisions = _precisions(program)
    _lower(model, program, file)
    _compare(model, file, sanity.comparison_batches(batches))
    return precisions


def check(model: nn.Module, file: Path, batches: Sequence[np.ndarray]) -> dict[str, Any]:
    """Return the manifest's entry about integer sums."""
    return {
        "weights": "int8, -127 to 127; XNNPACK adds products in 32 bits",
        "holds_for": HOLDS_FOR,
        "check": None,
    }


def _lower(model: nn.Module, program: torch.export.ExportedProgram, file: Path) -> None:
    try:
        exporter.lower(model, program, file)
    except NotExportable as error:
        if "dependency cycle" not in str(error):
            raise
        raise NotExportable(
            f"{tracing.model_name(model)} in int8: ExecuTorch's partitioner fails on this graph "
            "(dependency cycles, a known fault of ExecuTorch); choose format=onnx or "
            "format=openvino, or leave out int8"
        ) from error


def _precisions(program: torch.export.ExportedProgram) -> Precisions:
    """Return which layers of a program read int8 weights."""
    found: dict[str, bool] = {}
    for node in program.graph.nodes:
        if node.op != "call_function" or not _is_layer(node):
            continue
        weight = node.args[1]
        while isinstance(weight, torch.fx.Node) and weight.target in RESHAPES:
            weight = weight.args[0]  # type: ignore[assignment]
        rounded = "dequantize_per_channel" in str(getattr(weight, "target", ""))
        found[owner_of(node)] = found.get(owner_of(node), True) and rounded
    return Precisions(
        [name for name, rounded in found.items() if rounded],
        [name for name, rounded in found.items() if not rounded],
    )


def _is_layer(node: torch.fx.Node) -> bool:
    """Return whether a node is a convolution or a linear layer, of any number of dimensions."""
    name = str(node.target).removeprefix("aten.").split(".")[0]
    return name == "linear" or name.startswith(("conv1d", "conv2d", "conv3d", "conv_transpose"))


def _compare(model: nn.Module, file: Path, batches: Sequence[np.ndarray]) -> None:
    """Raise `NotExportable` if XNNPACK refuses the file, or computes wrong outputs."""
    try:
        runtime = runtimes.load(file, "executorch")
        found = [runtime(batch)[0] for batch in batches]
    except Exception as error:  # XNNPACK objects to some graphs only when it loads them
        raise NotExportable(
            f"{tracing.model_name(model)} in int8 does not run in ExecuTorch: "
            f"{tracing.root_cause(error)}"
        ) from error
    reference = runtimes.load(model, "eager")
    sanity.refuse_noise(model, [reference(batch)[0] for batch in batches], found, "ExecuTorch")


def quantized(
    program: torch.export.ExportedProgram,
    batches: Sequence[np.ndarray],
    keep_float: Collection[str],
) -> torch.fx.GraphModule:
    """Return a program with int8 weights, and quantised activations between its operators."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    graph = program.module()
    make_padding_explicit(graph)
    observed = prepare_pt2e(graph, _quantizer(keep_float))
    with torch.no_grad():
        for batch in track(batches, "calibrating"):
            observed(torch.from_numpy(batch))
    return convert_pt2e(observed)


def _quantizer(keep_float: Collection[str]) -> Any:
    """Return XNNPACK's quantiser for layers, each with the clamp that XNNPACK fuses into it."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer

    aten = torch.ops.aten
    linear: Any = aten.linear.default
    static, dynamic = _configs()

    class Layers(XNNPACKQuantizer):
        def transform_for_annotation(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
            # XNNPACK's transform turns scalars into float tensors, even those added to indices.
            return model

        def annotate(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
            for node in model.graph.nodes:
                if node.target in LIMITS:
                    _annotate_limited(node, static, chosen)
            return super().annotate(model)

    def chosen(node: torch.fx.Node) -> bool:
        if node.op != "call_function" or node.target == aten.relu.default:
            return True  # weights, biases and clamps follow their layer
        return node.target in COMPUTED and not within(owner_of(node), keep_float)

    quantizer = Layers().set_global(static).set_operator_type(linear, dynamic)
    return quantizer.set_filter_function(chosen)


def _annotate_limited(
    node: torch.fx.Node, config: Any, chosen: Callable[[torch.fx.Node], bool]
) -> None:
    """Quantise a convolution and the clamp after it as one operation, as XNNPACK computes them."""
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation

    layer: Any = node.args[0]
    single_use = isinstance(layer, torch.fx.Node) and len(layer.users) == 1
    if not single_use or layer.target not in CONVOLUTIONS or not chosen(layer):
        return
    arguments: Any = layer.args
    values, weight, *bias = arguments[:3]
    specs = {values: config.input_activation, weight: config.weight}
    specs |= {b: None for b in bias if b is not None}
    layer.meta["quantization_annotation"] = QuantizationAnnotation(
        input_qspec_map=specs, _annotated=True
    )
    node.meta["quantization_annotation"] = QuantizationAnnotation(
        output_qspec=config.output_activation, _annotated=True
    )


def _configs() -> tuple[Any, Any]:
    """Return the configurations of convolutions and of linear layers.

    The input of a linear layer gets its scale at run time, and its output is float: XNNPACK
    supports that, and the range of tokens and logits is not known in advance. Scales may be as
    small as weights need; torchao's default of at least 2**-12 wastes bits on weights below 0.03.
    """
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer_utils import QuantizationConfig
    from torchao.quantization.pt2e import (
        HistogramObserver,
        PerChannelMinMaxObserver,
        PlaceholderObserver,
    )
    from torchao.quantization.pt2e.quantizer import QuantizationSpec

    eps = {"eps": SMALLEST_SCALE}
    values = {"dtype": torch.int8, "quant_min": -128, "quant_max": 127,
              "qscheme": torch.per_tensor_affine}  # fmt: skip
    static = QuantizationSpec(
        observer_or_fake_quant_ctr=HistogramObserver.with_args(**eps), **values
    )
    dynamic = QuantizationSpec(
        observer_or_fake_quant_ctr=PlaceholderObserver.with_args(**eps), is_dynamic=True, **values
    )
    weights = QuantizationSpec(
        dtype=torch.int8,
        quant_min=-127,
        quant_max=127,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
        observer_or_fake_quant_ctr=PerChannelMinMaxObserver.with_args(**eps),
    )
    return (
        QuantizationConfig(static, static, weights, None, False),
        QuantizationConfig(dynamic, None, weights, None, False),
    )


def owner_of(node: torch.fx.Node) -> str:
    """Return the name of the innermost module that a node of a program comes from."""
    stack = node.meta.get("nn_module_stack") or {"": ("", None)}
    return list(stack.values())[-1][0]
