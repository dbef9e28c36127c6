"""PyTorch -> ExecuTorch in int8, by torchao's PT2E quantisation and XNNPACK's quantiser.

Convolutions and linear layers are quantised, together with a ReLU that follows: their weights per
output channel, symmetric; their inputs and outputs per tensor. Everything else computes in float.

Weights use the full range: XNNPACK extends int8 to 16 bits before it multiplies, and adds products
in 32 bits (`vpmaddwd`, or VNNI's `vpdpbusd`), so that no sum saturates on any processor.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from zoo import runtimes
from zoo.compression import sanity
from zoo.compression.int8_onnx import nothing_to_quantize
from zoo.compression.layers import Precisions, largest_weights, within
from zoo.compression.ranges import Histogram
from zoo.compression.recipe import Limits, Recipe
from zoo.compression.saturation import HOLDS_FOR
from zoo.deploy import executorch as exporter
from zoo.deploy import tracing
from zoo.deploy.int8_graph import make_padding_explicit
from zoo.deploy.spec import ExportSpec
from zoo.environment import need, quiet
from zoo.errors import NotExportable
from zoo.progress import track

PACKAGES = (*exporter.PACKAGES, "torchao")
RANGES = "mse"
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
    recipe: Recipe,
    limits: Limits | None = None,
) -> Precisions:
    """Write an ExecuTorch program in int8, for the sizes in `spec`; see `recipe.Quantizer`.

    The limit of a channel is its largest weight, which is what `grid` states, so `limits` are not
    needed.
    """
    need("format 'executorch' in int8", PACKAGES)
    program = tracing.trace(model, spec, "ExecuTorch")
    layers = [owner_of(node) for node in program.graph.nodes if node.target in QUANTIZABLE]
    if all(within(name, recipe.keep_float) for name in layers):
        raise NotExportable(nothing_to_quantize(model, recipe.keep_float))
    try:
        with quiet():
            traced = quantized(program, batches, recipe)
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


def grid(layer: nn.Module, weight: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the limits of weights, and the number of steps; see `recipe.Quantizer`."""
    return largest_weights(weight), 127


def check(model: nn.Module, file: Path, batches: Sequence[np.ndarray]) -> dict[str, Any]:
    """Return the manifest's entry about integer sums; see `recipe.Quantizer`."""
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
    recipe: Recipe,
) -> torch.fx.GraphModule:
    """Return a program with int8 weights, and quantised activations between its operators."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    graph = program.module()
    make_padding_explicit(graph)
    observed = prepare_pt2e(graph, _quantizer(recipe))
    with torch.no_grad():
        for batch in track(batches, "calibrating"):
            observed(torch.from_numpy(batch))
    return convert_pt2e(observed)


def _quantizer(recipe: Recipe) -> Any:
    """Return XNNPACK's quantiser for layers, each with the clamp that XNNPACK fuses into it."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer

    aten = torch.ops.aten
    linear: Any = aten.linear.default
    static, dynamic = _configs(recipe.ranges)

    class Layers(XNNPACKQuantizer):
        def transform_for_annotation(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
            # XNNPACK's transform turns scalars into float tensors, even those added to indices.
            return model

        def annotate(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
            # Patterns with a batch norm are traced anew for each model, which takes half of the
            # conversion, and most models have none left here.
            if not any("batch_norm" in str(node.target) for node in model.graph.nodes):
                patterns = self.SUPPORTED_PATTERNS
                self.SUPPORTED_PATTERNS = [p for p in patterns if "_bn" not in p.name]
            for node in model.graph.nodes:
                if node.target in LIMITS:
                    _annotate_limited(node, static, chosen)
            return super().annotate(model)

    def chosen(node: torch.fx.Node) -> bool:
        if node.op != "call_function" or node.target == aten.relu.default:
            return True  # weights, biases and clamps follow their layer
        return node.target in COMPUTED and not within(owner_of(node), recipe.keep_float)

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


def _configs(ranges: str) -> tuple[Any, Any]:
    """Return the configurations of convolutions and of linear layers.

    The input of a linear layer gets its scale at run time, and its output is float: XNNPACK
    supports that, and the range of tokens and logits is not known in advance. Scales may be as
    small as weights need; torchao's default of at least 2**-12 wastes bits on weights below 0.03.
    """
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer_utils import QuantizationConfig
    from torchao.quantization.pt2e import (
        PerChannelMinMaxObserver,
        PlaceholderObserver,
    )
    from torchao.quantization.pt2e.quantizer import QuantizationSpec

    eps = {"eps": SMALLEST_SCALE}
    values = {"dtype": torch.int8, "quant_min": -128, "quant_max": 127,
              "qscheme": torch.per_tensor_affine}  # fmt: skip
    static = QuantizationSpec(
        observer_or_fake_quant_ctr=_observer().with_args(method=ranges, **eps), **values
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


@functools.cache
def _observer() -> Any:
    """Return the class of an observer that chooses its range by one of `ranges.METHODS`."""
    from torchao.quantization.pt2e.observer import UniformQuantizationObserverBase

    class RangeObserver(UniformQuantizationObserverBase):
        def __init__(self, method: str, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.method, self.histogram = method, Histogram()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.histogram.add(x.detach().numpy())
            return x

        def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:
            low, high = self.histogram.range(self.method)
            return self._calculate_qparams(torch.tensor(low), torch.tensor(high))

    return RangeObserver


def owner_of(node: torch.fx.Node) -> str:
    """Return the name of the innermost module that a node of a program comes from."""
    stack = node.meta.get("nn_module_stack") or {"": ("", None)}
    return list(stack.values())[-1][0]
