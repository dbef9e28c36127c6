"""PyTorch -> TorchScript (`.pt`), by tracing.

PyTorch calls the format old; it is what `libtorch` of mobile and C++ applications still loads.
"""

import io
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.deploy import tracing
from zoo.deploy.spec import Settings
from zoo.environment import quiet
from zoo.errors import NotExportable

PACKAGES = ()
EXTRA = None
INPUT = "input"


def convert(model: nn.Module, file: Path, settings: Settings) -> None:
    """Write `model`, in evaluation mode, to `file`.

    A trace has no open or closed axes: what the model does with other sizes than the traced one is
    found out by comparing.

    Raises:
        BadInput: The model does not run on this input.
        NotExportable: It cannot be traced.
    """
    x = tracing.example(model, settings)
    tracing.output_count(model, settings)
    model = tracing.form(model, settings)
    try:
        with quiet(), torch.no_grad():
            program = torch.jit.trace(model, x, check_trace=False)
    except Exception as error:  # whatever tracing the model raises
        raise NotExportable(
            f"{tracing.title(model)} cannot be exported to TorchScript: {tracing.reason(error)}"
        ) from error
    kinds = [node.kind() for node in program.inlined_graph.nodes()]  # type: ignore[union-attr]
    tracing.check_operators(model, settings, kinds)
    written = io.BytesIO()  # so that a full disk is an error that says so
    with quiet():
        torch.jit.save(program, written)
    file.write_bytes(written.getbuffer())


def versions() -> tuple[str, ...]:
    """Name the packages whose versions shape the artefact."""
    return ("zoo", "torch", "timm")


def describe(file: Path) -> dict[str, Any]:
    """Return what the file states of itself: number of nodes."""
    with quiet():
        graph = torch.jit.load(file).inlined_graph
    return {"nodes": sum(node.kind() != "prim::Constant" for node in graph.nodes())}
