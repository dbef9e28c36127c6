"""PyTorch -> an exported program (`.pt2`) of `torch.export`, the input of many compilers."""

import io
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.deploy import tracing
from zoo.deploy.spec import ExportSpec
from zoo.environment import quiet

PACKAGES = ()
INPUT = "input"


def convert(model: nn.Module, file: Path, spec: ExportSpec) -> None:
    """Write `model`, in evaluation mode, to `file`.

    Raises:
        BadInput: The model does not run at this size.
        NotExportable: The model cannot be traced.
    """
    program = tracing.trace(model, spec, "a torch.export program")
    buffer = io.BytesIO()  # written by us: PyTorch hides that a disk is full
    with quiet():
        torch.export.save(program, buffer)
    file.write_bytes(buffer.getbuffer())


def describe(file: Path) -> dict[str, Any]:
    """Return the number of nodes in the program."""
    with quiet():
        program = torch.export.load(file)
    return {"nodes": sum(node.op == "call_function" for node in program.graph.nodes)}
