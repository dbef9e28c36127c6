"""PyTorch -> ExecuTorch (`.pte`), what XNNPACK knows lowered to it."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.deploy import tracing
from zoo.deploy.spec import Settings
from zoo.environment import need, quiet
from zoo.errors import NotExportable

PACKAGES = ("executorch",)
EXTRA = "export"
INPUT = "input"


def convert(model: nn.Module, file: Path, settings: Settings) -> None:
    """Write `model`, in evaluation mode, to `file` for the exact sizes of `settings`.

    Raises:
        BadInput: The model does not run on this input.
        MissingExtra: A package is not installed.
        NotExportable: The exporter fails.
    """
    need("format 'executorch'", PACKAGES)
    program = tracing.trace(model, settings, "ExecuTorch")
    if settings.half:
        program = program.run_decompositions({torch.ops.aten.layer_norm.default: _layer_norm})
    lower(model, program, file)


def _layer_norm(
    x: Tensor,
    shape: list[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    _: bool = True,
) -> Tensor:
    """In float32: ExecuTorch 1.5 is off by several spreads in float16 from 256 channels on."""
    affine = [None if tensor is None else tensor.float() for tensor in (weight, bias)]
    y, _mean, _rstd = torch.ops.aten.native_layer_norm(x.float(), shape, *affine, eps)
    return y.to(x.dtype)


def lower(model: nn.Module, program: torch.export.ExportedProgram, file: Path) -> None:
    """Write a program, traced from `model`, to `file`: XNNPACK gets what it knows.

    Raises:
        NotExportable: Lowering fails.
    """
    try:
        with quiet():
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import (
                XnnpackPartitioner,
            )
            from executorch.exir import to_edge_transform_and_lower

            _concatenate_pads(program)
            edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
            buffer = edge.to_executorch().buffer
    except Exception as error:  # whatever lowering raises
        raise NotExportable(
            f"{tracing.title(model)} cannot be exported to ExecuTorch: {tracing.reason(error)}"
        ) from error
    file.write_bytes(buffer)


def _concatenate_pads(program: torch.export.ExportedProgram) -> None:
    """Put zeros beside what comes quantised out of a layer by concatenation.

    XNNPACK in ExecuTorch 1.5 lowers a pad of such values, and refuses it when it loads the file.
    """
    aten, graph = torch.ops.aten, program.graph
    for node in [n for n in graph.nodes if n.target == aten.pad.default]:
        padded: Any = node.args[0]
        mode, value = (*node.args[2:], *["constant", 0.0][len(node.args) - 2 :])
        if mode != "constant" or min(node.args[1]) < 0 or not _was_quantised(padded):
            continue
        with graph.inserting_before(node):
            for i, (before, after) in enumerate(zip(*[iter(node.args[1])] * 2, strict=True)):
                axis = padded.meta["val"].ndim - 1 - i
                parts = [_filled(graph, padded, axis, n, value) for n in (before, after) if n]
                parts.insert(1 if before else 0, padded)
                if len(parts) > 1:
                    padded = graph.call_function(aten.cat.default, (parts, axis))
                    shapes = [part.meta["val"] for part in parts]
                    padded.meta = {**node.meta, "val": torch.cat(shapes, axis)}
        node.replace_all_uses_with(padded)
        graph.erase_node(node)
    program.graph_module.recompile()


def _was_quantised(node: torch.fx.Node) -> bool:
    moves = (torch.ops.aten.permute.default, torch.ops.aten.transpose.int)
    while node.target in moves:
        node = node.args[0]  # type: ignore[assignment]
    return "dequantize" in str(node.target)


def _filled(graph: torch.fx.Graph, like: torch.fx.Node, axis: int, side: int, value: float) -> Any:
    shape = [*like.meta["val"].shape]
    shape[axis] = side
    kind = {"dtype": like.meta["val"].dtype}
    node = graph.call_function(torch.ops.aten.full.default, (shape, value or 0.0), kind)
    node.meta = {**like.meta, "val": like.meta["val"].new_empty(shape)}
    return node


def versions() -> tuple[str, ...]:
    """Name the packages whose versions shape the artefact."""
    return ("zoo", "torch", "timm", *PACKAGES)


def describe(file: Path) -> dict[str, Any]:
    """Return what is to be known of the file: what its graph was lowered to."""
    return {"lowered_to": "XNNPACK"}
