"""PyTorch -> ONNX in int8, by ONNX Runtime's static quantisation: QuantizeLinear and its inverse.

Convolutions and linear layers are quantised, their weights per output channel; everything else
(softmax, norms, activations other than ReLU, scans) computes in float, as does a product of two
things that both depend on the image. The node of each layer is found by what torch's exporter
writes beside it: the names of the modules that it comes from.
"""

import ast
import dataclasses
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from zoo.compression.layers import layers, within
from zoo.deploy import onnx as exporter
from zoo.deploy import tracing
from zoo.deploy.spec import Settings
from zoo.environment import quiet
from zoo.errors import NotExportable, first_line

PACKAGES = exporter.PACKAGES
OPERATORS = ("Conv", "ConvTranspose", "MatMul", "Gemm")
FOLDED = ("Relu", "Clip")  # into the limits of what comes before them, which costs nothing
SCOPES = "pkg.torch.onnx.name_scopes"


def convert(
    model: nn.Module,
    file: Path,
    settings: Settings,
    batches: Sequence[np.ndarray],
    keep_float: Collection[str],
) -> None:
    """Write `model`, fused and in evaluation mode, to `file` in int8.

    Args:
        model: What is written.
        file: A single ONNX file.
        settings: What is asked of the file.
        batches: What `model` takes, to find the ranges of values on.
        keep_float: Names of modules that stay in float.

    Raises:
        BadInput: The model does not run on this input, or an opset that cannot be written.
        MissingExtra: A package is not installed.
        NotExportable: The model cannot be exported or quantised.
    """
    import onnx
    from onnxruntime import quantization

    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        plain, made = Path(folder) / "plain.onnx", Path(folder) / "made.onnx"
        exporter.convert(model, plain, dataclasses.replace(settings, half=False))
        graph = onnx.load(plain)
        chosen = nodes_of(graph, layers(model), keep_float)
        if not chosen:
            raise NotExportable(f"{tracing.title(model)}: no layer of it is left to be in int8")
        _transpose(graph)
        onnx.save(graph, plain)
        try:
            with quiet():
                quantization.quantize_static(
                    plain,
                    made,
                    _Reader(batches),  # type: ignore[arg-type]  # it asks for get_next alone
                    op_types_to_quantize=[*OPERATORS, *FOLDED],
                    nodes_to_quantize=[*chosen, *_folded(graph, chosen)],
                    per_channel=True,
                    # Bytes from zero to 255 use the whole range where values start at zero, as
                    # they do after ReLU; signed weights need no correction for their zero.
                    activation_type=quantization.QuantType.QUInt8,
                    weight_type=quantization.QuantType.QInt8,
                    extra_options={
                        # The bias is added, and logits are given, in float.
                        "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"],
                    },
                )
        except Exception as error:  # whatever it raises on a graph that it does not understand
            raise NotExportable(
                f"{tracing.title(model)} cannot be quantised for ONNX Runtime: {first_line(error)}"
            ) from error
        _tidy(made, file)


class _Reader:
    """Hands over the batches as ONNX Runtime asks for them."""

    def __init__(self, batches: Sequence[np.ndarray]) -> None:
        self.rest: Iterator[np.ndarray] = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.rest, None)
        return None if batch is None else {exporter.INPUT: batch}


def nodes_of(graph: Any, names: Collection[str], keep_float: Collection[str]) -> list[str]:
    """Return the nodes of a graph that compute the layers `names`, without those to be kept."""
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
    # The last of them is the operator itself.
    return ast.literal_eval(scopes[0])[-2] if scopes else ""


def _transposed(graph: Any) -> list[Any]:
    """Return the nodes that turn a weight: those that several nodes share come so."""
    constants = {tensor.name for tensor in graph.graph.initializer}
    return [
        node
        for node in graph.graph.node
        if node.op_type == "Transpose" and node.input[0] in constants
    ]


def _transpose(graph: Any) -> None:
    """Put turned weights in the place of weights and what turns them."""
    from onnx import numpy_helper

    held = {tensor.name: tensor for tensor in graph.graph.initializer}
    for node in _transposed(graph):
        (order,) = [entry.ints for entry in node.attribute if entry.name == "perm"]
        array = numpy_helper.to_array(held[node.input[0]]).transpose(order)
        turned = numpy_helper.from_array(np.ascontiguousarray(array), node.output[0])
        graph.graph.initializer.append(turned)
        graph.graph.node.remove(node)
    used = {name for node in graph.graph.node for name in node.input}
    for name, tensor in held.items():
        if name not in used:
            graph.graph.initializer.remove(tensor)


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


def _tidy(made: Path, file: Path) -> None:
    """Leave out what only a reader of the graph wants: where in which source each node stands."""
    import onnx

    graph = onnx.load(made)
    for part in (*graph.graph.node, *graph.graph.value_info, graph.graph):
        del part.metadata_props[:]
    del graph.graph.value_info[:]
    onnx.save(graph, file)
