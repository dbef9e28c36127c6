"""PyTorch -> ExecuTorch in int8, by torchao's quantisation of programs and XNNPACK's quantiser.

Convolutions and linear layers are quantised, together with a ReLU that follows: their weights per
output channel, symmetric; what goes in and comes out per tensor. Everything else computes in float.
"""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from zoo import runtimes
from zoo.compression import sanity
from zoo.compression.layers import within
from zoo.deploy import executorch as exporter
from zoo.deploy import tracing
from zoo.deploy.spec import Settings
from zoo.environment import need, quiet
from zoo.errors import NotExportable

PACKAGES = (*exporter.PACKAGES, "torchao")
SMALLEST_SCALE = 1e-9
CONVOLUTIONS = {torch.ops.aten.conv1d.default, torch.ops.aten.conv2d.default}
COMPUTED = CONVOLUTIONS | {
    torch.ops.aten.conv_transpose2d.input,
    torch.ops.aten.linear.default,
}
LIMITS = {torch.ops.aten.hardtanh.default, torch.ops.aten.hardtanh_.default}


def convert(
    model: nn.Module,
    file: Path,
    settings: Settings,
    batches: Sequence[np.ndarray],
    keep_float: Collection[str],
) -> None:
    """Write `model`, fused and in evaluation mode, to `file` (`.pte`) in int8.

    Args:
        model: What is written.
        file: For the exact sizes of `settings`.
        settings: What is asked of the file.
        batches: What `model` takes, to find the ranges of values on.
        keep_float: Names of modules that stay in float.

    Raises:
        BadInput: The model does not run on this input.
        MissingExtra: A package is not installed.
        NotExportable: The model cannot be traced, quantised or lowered.
    """
    need("format 'executorch' in int8", PACKAGES)
    program = tracing.trace(model, settings, "ExecuTorch")
    layers = [owner_of(node) for node in program.graph.nodes if node.target in COMPUTED]
    if all(within(name, keep_float) for name in layers):
        raise NotExportable(f"{tracing.title(model)}: no layer of it is left to be in int8")
    try:
        with quiet():
            traced = quantized(program, batches, keep_float)
            example = (tracing.example(model, settings),)
            program = torch.export.export(traced, example)
    except Exception as error:  # whatever torchao raises on a graph that it does not understand
        raise NotExportable(
            f"{tracing.title(model)} cannot be quantised for ExecuTorch: {tracing.reason(error)}"
        ) from error
    exporter.lower(model, program, file)
    _check(model, file, sanity.watched(batches))


def _check(model: nn.Module, file: Path, batches: Sequence[np.ndarray]) -> None:
    """Raise `NotExportable` where XNNPACK does not take the file, or computes something else."""
    try:
        runtime = runtimes.load(file, "executorch")
        found = [runtime(batch)[0] for batch in batches]
    except Exception as error:  # XNNPACK objects to some graphs only when it loads them
        raise NotExportable(
            f"{tracing.title(model)} in int8 does not run in ExecuTorch: {tracing.reason(error)}"
        ) from error
    reference = runtimes.load(model, "eager")
    sanity.check(model, [reference(batch)[0] for batch in batches], found, "ExecuTorch")


def quantized(
    program: torch.export.ExportedProgram,
    batches: Sequence[np.ndarray],
    keep_float: Collection[str],
) -> torch.fx.GraphModule:
    """Return a program with weights in int8, and what quantises values between its operators."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    watched = prepare_pt2e(program.module(), _quantizer(keep_float))
    with torch.no_grad():
        for batch in batches:
            watched(torch.from_numpy(batch))
    return convert_pt2e(watched)


def _quantizer(keep_float: Collection[str]) -> Any:
    """Return XNNPACK's quantiser, for layers alone, with limits that XNNPACK computes with them."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer

    aten = torch.ops.aten
    linear: Any = aten.linear.default
    static, dynamic = _configs()

    class Layers(XNNPACKQuantizer):
        def transform_for_annotation(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
            # Its own makes float tensors of numbers, for sums and products in int8; of indices too.
            return model

        def annotate(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
            for node in model.graph.nodes:
                if node.target in LIMITS:
                    _annotate_limited(node, static, chosen)
            return super().annotate(model)

    def chosen(node: torch.fx.Node) -> bool:
        if node.op != "call_function" or node.target == aten.relu.default:
            return True  # weights, biases and limits go with what they belong to
        return node.target in COMPUTED and not within(owner_of(node), keep_float)

    quantizer = Layers().set_global(static).set_operator_type(linear, dynamic)
    return quantizer.set_filter_function(chosen)


def _annotate_limited(
    node: torch.fx.Node, config: Any, chosen: Callable[[torch.fx.Node], bool]
) -> None:
    """Have a convolution and the limits that follow quantised as one, as XNNPACK computes them."""
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation

    layer: Any = node.args[0]
    alone = isinstance(layer, torch.fx.Node) and len(layer.users) == 1
    if not alone or layer.target not in CONVOLUTIONS or not chosen(layer):
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
    """Return how convolutions and how linear layers are quantised.

    What goes into a linear layer gets its scale when it is there, and what comes out is float:
    XNNPACK can do that, and tokens and logits have no range that is known before. Scales may be as
    small as weights need: the default is at least 2**-12, where weights of 0.03 fill the range.
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
    known = QuantizationSpec(
        observer_or_fake_quant_ctr=HistogramObserver.with_args(**eps), **values
    )
    seen = QuantizationSpec(
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
        QuantizationConfig(known, known, weights, None, False),
        QuantizationConfig(seen, None, weights, None, False),
    )


def owner_of(node: torch.fx.Node) -> str:
    """Return the name of the innermost module that a node of a program comes from."""
    stack = node.meta.get("nn_module_stack") or {"": ("", None)}
    return list(stack.values())[-1][0]
