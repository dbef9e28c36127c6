"""PyTorch -> TorchScript (`.pt`) by tracing.

PyTorch has deprecated the format, but libtorch in C++ and mobile applications still loads it.
"""

import io
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.deploy import tracing
from zoo.deploy.spec import ExportSpec
from zoo.environment import quiet
from zoo.errors import NotExportable

PACKAGES = ()
INPUT = "input"


def convert(model: nn.Module, file: Path, spec: ExportSpec) -> None:
    """Write `model`, in evaluation mode, to `file`.

    A TorchScript trace does not declare its axes dynamic or static. Only the comparison with the
    model shows which other sizes work.

    Raises:
        BadInput: The model does not run at this size.
        NotExportable: The model cannot be traced.
    """
    x = tracing.example_input(model, spec)
    tracing.count_outputs(model, spec)
    model = tracing.prepare_for_tracing(model, spec)
    try:
        with quiet(), torch.no_grad():
            program = torch.jit.trace(model, x, check_trace=False)
    except Exception as error:  # tracing passes on any error of the model
        raise NotExportable(
            f"{tracing.model_name(model)} cannot be exported to TorchScript: "
            f"{tracing.root_cause(error)}"
        ) from error
    operators = [node.kind() for node in program.inlined_graph.nodes()]  # type: ignore[union-attr]
    tracing.refuse_custom_operators(model, spec, operators)
    buffer = io.BytesIO()  # written by us: PyTorch hides that a disk is full
    with quiet():
        torch.jit.save(program, buffer)
    file.write_bytes(buffer.getbuffer())


def describe(file: Path) -> dict[str, Any]:
    """Return the number of nodes in the program, constants excluded."""
    with quiet():
        graph = torch.jit.load(file).inlined_graph
    return {"nodes": sum(node.kind() != "prim::Constant" for node in graph.nodes())}
