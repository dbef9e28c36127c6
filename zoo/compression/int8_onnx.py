"""PyTorch -> ONNX in int8, by ONNX Runtime's static quantisation (QuantizeLinear/DequantizeLinear).

Convolutions and linear layers are quantised, their weights per output channel. Everything else
(softmax, norms, activations other than ReLU, scans) computes in float, as does the product of two
activations. torch's exporter notes the modules that each node comes from; they tell which node
computes which layer.

Weights are signed and follow the rule of `saturation`, so the file gives the same results on every
processor. Measured with ImageNet weights of mobilenetv2_100, 936 photographs (float: 87.7 % top-1)
and one core with VNNI, time relative to float:

- the full range: 87.8 %, 0.41 to 0.65, but up to eight points less without VNNI
- seven bits for every weight: 86.2 %
- unsigned weights: 87.8 %, 0.99
- the rule: 87.6 %, 0.65; with the best of 17 limits and corrected biases: 87.9 %
"""

import ast
import dataclasses
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from zoo.compression import saturation
from zoo.compression.layers import Precisions, layers, within
from zoo.compression.ranges import Histogram
from zoo.compression.recipe import Limits, Recipe
from zoo.deploy import onnx as exporter
from zoo.deploy import tracing
from zoo.deploy.spec import ExportSpec
from zoo.environment import quiet
from zoo.errors import NotExportable, first_line
from zoo.progress import track

PACKAGES = exporter.PACKAGES
RANGES = "minmax"
OPERATORS = ("Conv", "ConvTranspose", "MatMul", "Gemm")
FOLDED = ("Relu", "Clip")  # fused into the range of the layer before them, at no cost
SCOPES = "pkg.torch.onnx.name_scopes"


def convert(
    model: nn.Module,
    file: Path,
    spec: ExportSpec,
    batches: Sequence[np.ndarray],
    recipe: Recipe,
    limits: Limits | None = None,
) -> Precisions:
    """Write an ONNX file in int8; see `recipe.Quantizer`."""
    import onnx
    from onnxruntime import quantization

    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        plain, quantized = Path(folder) / "plain.onnx", Path(folder) / "int8.onnx"
        exporter.convert(model, plain, dataclasses.replace(spec, half=False))
        graph = onnx.load(plain)
        chosen = nodes_of(graph, layers(model), recipe.keep_float)
        if not chosen:
            raise NotExportable(nothing_to_quantize(model, recipe.keep_float))
        _transpose(graph)
        owners = {node.name: owner_of(node) for node in graph.graph.node
                  if node.op_type in OPERATORS and owner_of(node) in layers(model)}  # fmt: skip
        ranges = _weight_ranges(graph, chosen, limits or {})
        folded = _folded(graph, chosen)
        if recipe.ranges != "minmax":
            ranges |= _activation_ranges(graph, {*chosen, *folded}, batches, recipe.ranges)
        onnx.save(graph, plain)
        try:
            with quiet():
                quantization.quantize_static(
                    plain,
                    quantized,
                    _Reader(batches),  # type: ignore[arg-type]  # only get_next is called
                    op_types_to_quantize=[*OPERATORS, *FOLDED],
                    nodes_to_quantize=[*chosen, *folded],
                    per_channel=True,
                    # After ReLU, activations from 0 to 255 use the whole range.
                    activation_type=quantization.QuantType.QUInt8,
                    weight_type=quantization.QuantType.QInt8,
                    extra_options={
                        # Biases are added, and logits returned, in float.
                        "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"],
                        "TensorQuantOverrides": ranges,
                    },
                )
        except Exception as error:  # ONNX Runtime's quantiser raises errors of every class
            raise NotExportable(
                f"{tracing.model_name(model)} cannot be quantised for ONNX Runtime: "
                f"{first_line(error)}"
            ) from error
        _tidy(quantized, file)
    return _precisions(file, owners)


def grid(layer: nn.Module, weight: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the limits of weights, and the number of steps; see `recipe.Quantizer`."""
    return saturation.weight_limits(weight, 0), 127


def check(model: nn.Module, file: Path, batches: Sequence[np.ndarray]) -> dict[str, Any]:
    """Return the manifest's entry about integer sums; see `recipe.Quantizer`."""
    found = saturation.check_file(file, batches)
    saturation.refuse_unsafe(tracing.model_name(model), found)
    return {"weights": saturation.RULE, "holds_for": saturation.HOLDS_FOR, "check": found}


def nothing_to_quantize(model: nn.Module, keep_float: Collection[str]) -> str:
    """Return the message for a model without a layer to quantise."""
    why = "keep_float covers every layer" if keep_float else (
        "it has no convolution or linear layer that the format computes in int8")  # fmt: skip
    return f"{tracing.model_name(model)}: no layer of it is left to be in int8: {why}"


class _Reader:
    """Feeds the calibration batches to ONNX Runtime."""

    def __init__(self, batches: Sequence[np.ndarray]) -> None:
        self.rest: Iterator[np.ndarray] = iter(track(batches, "calibrating"))

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.rest, None)
        return None if batch is None else {exporter.INPUT: batch}


def _weight_ranges(
    graph: Any, chosen: Collection[str], given: Limits
) -> dict[str, list[dict[str, Any]]]:
    """Return the range of each output channel of the weights of the nodes `chosen`."""
    from onnx import numpy_helper
    from onnxruntime.quantization import QuantType

    constants = {tensor.name: tensor for tensor in graph.graph.initializer}
    ranges = {}
    for node in graph.graph.node:
        if node.name not in chosen:
            continue
        weight = numpy_helper.to_array(constants[node.input[1]])
        axis = _channel_axis(node, weight.ndim)
        limits = given.get(owner_of(node))
        if limits is None:
            limits = saturation.weight_limits(weight, axis)
        kind = {"quant_type": QuantType.QInt8, "symmetric": True, "axis": axis}
        ranges[node.input[1]] = [kind | {"rmin": -high, "rmax": high} for high in limits]
    return ranges


def _activation_ranges(
    graph: Any, nodes: Collection[str], batches: Sequence[np.ndarray], method: str
) -> dict[str, list[dict[str, Any]]]:
    """Return the range of each activation that the nodes read or write."""
    import onnx
    import onnxruntime

    made = {name for node in graph.graph.node for name in node.output}
    chosen = [node for node in graph.graph.node if node.name in nodes]
    read = dict.fromkeys(node.input[0] for node in chosen)
    read |= dict.fromkeys(node.output[0] for node in chosen)
    names = [name for name in read if name in made]
    observed = onnx.ModelProto()
    observed.CopyFrom(graph)
    del observed.graph.output[:]
    observed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(
        observed.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found = {name: Histogram() for name in (exporter.INPUT, *names)}
    for batch in track(batches, f"searching ranges by {method}"):
        found[exporter.INPUT].add(batch)
        for name, values in zip(names, session.run(names, {exporter.INPUT: batch}), strict=True):
            found[name].add(np.asarray(values))
    ranges = {}
    for name, histogram in found.items():
        low, high = histogram.range(method)
        if high > low:
            ranges[name] = [{"rmin": np.float32(low), "rmax": np.float32(high)}]
    return ranges


def _channel_axis(node: Any, ndim: int) -> int:
    """Return the axis of a node's weight that is its output channels."""
    if node.op_type == "Gemm":
        return 0 if any(entry.name == "transB" and entry.i for entry in node.attribute) else 1
    return {"Conv": 0, "ConvTranspose": 1}.get(node.op_type, ndim - 1)


def _precisions(file: Path, owners: dict[str, str]) -> Precisions:
    """Return which layers of a file are in int8.

    Args:
        file: The artefact.
        owners: The layer that each node computes.
    """
    import onnx

    graph = onnx.load(file).graph
    made = {output: node for node in graph.node for output in node.output}
    eight_bits = {t.name for t in graph.initializer if t.data_type == onnx.TensorProto.INT8}
    in_int8 = {
        node.name
        for node in graph.node
        if node.name in owners
        and all(getattr(made.get(n), "op_type", "") == "DequantizeLinear" for n in node.input[:2])
        and made[node.input[1]].input[0] in eight_bits
    }
    floating = {owner for name, owner in owners.items() if name not in in_int8}
    found = dict.fromkeys(owners.values())
    return Precisions(
        [name for name in found if name not in floating],
        [name for name in found if name in floating],
    )


def nodes_of(graph: Any, names: Collection[str], keep_float: Collection[str]) -> list[str]:
    """Return the nodes of a graph that compute the layers `names`, except `keep_float`."""
    constants = {tensor.name for tensor in graph.graph.initializer}
    constants |= {node.output[0] for node in _transposed(graph)}
    return [
        node.name
        for node in graph.graph.node
        if node.op_type in OPERATORS
        and node.input[1] in constants
        and (owner := owner_of(node)) in names
        and not within(owner, keep_float)
    ]


def owner_of(node: Any) -> str:
    """Return the name of the innermost module that a node comes from."""
    scopes = [entry.value for entry in node.metadata_props if entry.key == SCOPES]
    # The last scope is the operator itself.
    return ast.literal_eval(scopes[0])[-2] if scopes else ""


def _transposed(graph: Any) -> list[Any]:
    """Return the nodes that transpose a weight, as exported for weights with several uses."""
    constants = {tensor.name for tensor in graph.graph.initializer}
    return [
        node
        for node in graph.graph.node
        if node.op_type == "Transpose" and node.input[0] in constants
    ]


def _transpose(graph: Any) -> None:
    """Replace each weight and the node that transposes it by the transposed weight."""
    from onnx import numpy_helper

    weights = {tensor.name: tensor for tensor in graph.graph.initializer}
    for node in _transposed(graph):
        (order,) = [entry.ints for entry in node.attribute if entry.name == "perm"]
        array = numpy_helper.to_array(weights[node.input[0]]).transpose(order)
        transposed = numpy_helper.from_array(np.ascontiguousarray(array), node.output[0])
        graph.graph.initializer.append(transposed)
        graph.graph.node.remove(node)
    used = set(_read_names(graph.graph))
    for name, tensor in weights.items():
        if name not in used:
            graph.graph.initializer.remove(tensor)


def _read_names(graph: Any) -> Iterator[str]:
    """Yield the names of the values that the nodes of a graph and of their bodies read."""
    for node in graph.node:
        yield from node.input
        for entry in node.attribute:
            if entry.HasField("g"):
                yield from _read_names(entry.g)


def _folded(graph: Any, chosen: Collection[str]) -> list[str]:
    """Return the ReLUs that directly follow a convolution among `chosen`."""
    convolved = {
        node.output[0]
        for node in graph.graph.node
        if node.name in chosen and node.op_type in ("Conv", "ConvTranspose")
    }
    return [
        node.name
        for node in graph.graph.node
        if node.op_type in FOLDED and node.input[0] in convolved
    ]


def _keep_in_float(graph: Any) -> None:
    """Separate layers in float from the integers that they read, in place.

    ONNX Runtime rounds the weights of a layer between DequantizeLinear and QuantizeLinear when it
    loads a file, with one scale for all channels. An operation in between prevents that.
    """
    import onnx
    from onnx import numpy_helper

    made = {name: node for node in graph.graph.node for name in node.output}
    floats = {
        tensor.name for tensor in graph.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    }  # fmt: skip
    lowest = "lowest_float"
    nodes = list(graph.graph.node)
    del graph.graph.node[:]
    for node in nodes:
        source = made.get(node.input[0]) if node.input else None
        if (
            node.op_type in OPERATORS
            and node.input[1] in floats
            and source is not None
            and source.op_type == "DequantizeLinear"
        ):
            separated = f"{node.output[0]}_float_input"
            graph.graph.node.append(
                onnx.helper.make_node("Max", [node.input[0], lowest], [separated])
            )
            node.input[0] = separated
            if lowest not in {tensor.name for tensor in graph.graph.initializer}:
                value = np.array(np.finfo(np.float32).min)
                graph.graph.initializer.append(numpy_helper.from_array(value, lowest))
        graph.graph.node.append(node)


def _tidy(quantized: Path, file: Path) -> None:
    """Remove the notes on source files and shapes, which no runtime needs."""
    import onnx

    graph = onnx.load(quantized)
    _keep_in_float(graph)
    for part in (*graph.graph.node, *graph.graph.value_info, graph.graph):
        del part.metadata_props[:]
    del graph.graph.value_info[:]
    onnx.save(graph, file)
