"""PyTorch -> ExecuTorch (`.pte`), with every operator that XNNPACK supports delegated to it."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.deploy import tracing
from zoo.deploy.spec import ExportSpec
from zoo.environment import need, quiet
from zoo.errors import NotExportable

PACKAGES = ("executorch",)
INPUT = "input"


def convert(model: nn.Module, file: Path, spec: ExportSpec) -> None:
    """Write `model`, in evaluation mode, to `file`, for `spec.input_size` only.

    Raises:
        BadInput: The model does not run at this size.
        MissingExtra: A package is not installed.
        NotExportable: The model cannot be exported.
    """
    need("format 'executorch'", PACKAGES)
    program = tracing.trace(model, spec, "ExecuTorch")
    if spec.half:
        program = program.run_decompositions(
            {torch.ops.aten.layer_norm.default: _layer_norm_float32}
        )
    lower(model, program, file)


def _layer_norm_float32(
    x: Tensor,
    shape: list[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    _: bool = True,
) -> Tensor:
    """Compute a layer norm of float16 values in float32.

    ExecuTorch 1.5 gets layer norms of 256 or more channels in float16 wrong, by several standard
    deviations of the output.
    """
    affine = [None if tensor is None else tensor.float() for tensor in (weight, bias)]
    y, _mean, _rstd = torch.ops.aten.native_layer_norm(x.float(), shape, *affine, eps)
    return y.to(x.dtype)


def lower(model: nn.Module, program: torch.export.ExportedProgram, file: Path) -> None:
    """Lower a program, delegating to XNNPACK what it supports, and write it to `file`.

    Args:
        model: What the program was traced from, for messages.
        program: It may be modified.
        file: Ends with `.pte`.

    Raises:
        NotExportable: Lowering fails.
    """
    try:
        with quiet():
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import (
                XnnpackPartitioner,
            )
            from executorch.exir import to_edge_transform_and_lower

            _concatenate_instead_of_padding(program)
            edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
            buffer = edge.to_executorch().buffer
    except Exception as error:  # ExecuTorch raises errors of many classes
        raise NotExportable(
            f"{tracing.model_name(model)} cannot be exported to ExecuTorch: "
            f"{tracing.root_cause(error)}"
        ) from error
    file.write_bytes(buffer)


def _concatenate_instead_of_padding(program: torch.export.ExportedProgram) -> None:
    """Replace pads of quantised activations by concatenations with constants, in place.

    ExecuTorch 1.5 delegates such pads to XNNPACK, which then refuses to load the file.
    """
    aten, graph = torch.ops.aten, program.graph
    for node in [n for n in graph.nodes if n.target == aten.pad.default]:
        padded: Any = node.args[0]
        mode, value = (*node.args[2:], *["constant", 0.0][len(node.args) - 2 :])
        if mode != "constant" or min(node.args[1]) < 0 or not _is_quantised(padded):
            continue
        with graph.inserting_before(node):
            for i, (before, after) in enumerate(zip(*[iter(node.args[1])] * 2, strict=True)):
                axis = padded.meta["val"].ndim - 1 - i
                parts = [_constant(graph, padded, axis, n, value) for n in (before, after) if n]
                parts.insert(1 if before else 0, padded)
                if len(parts) > 1:
                    padded = graph.call_function(aten.cat.default, (parts, axis))
                    shapes = [part.meta["val"] for part in parts]
                    padded.meta = {**node.meta, "val": torch.cat(shapes, axis)}
        node.replace_all_uses_with(padded)
        graph.erase_node(node)
    program.graph_module.recompile()


def _is_quantised(node: torch.fx.Node) -> bool:
    """Return whether a node dequantises a value, apart from reordering its axes."""
    moves = (torch.ops.aten.permute.default, torch.ops.aten.transpose.int)
    while node.target in moves:
        node = node.args[0]  # type: ignore[assignment]
    return "dequantize" in str(node.target)


def _constant(
    graph: torch.fx.Graph, like: torch.fx.Node, axis: int, side: int, value: float
) -> torch.fx.Node:
    """Add a node for a tensor of `value`, shaped like `like` but `side` long along `axis`."""
    shape = [*like.meta["val"].shape]
    shape[axis] = side
    kind = {"dtype": like.meta["val"].dtype}
    node = graph.call_function(torch.ops.aten.full.default, (shape, value or 0.0), kind)
    node.meta = {**like.meta, "val": like.meta["val"].new_empty(shape)}
    return node


def describe(file: Path) -> dict[str, Any]:
    """Return the backend that operators are delegated to."""
    return {"lowered_to": "XNNPACK"}
