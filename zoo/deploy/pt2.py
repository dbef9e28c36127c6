"""PyTorch -> an exported program (`.pt2`) of `torch.export`, which other compilers start from."""

import io
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.deploy import tracing
from zoo.deploy.spec import Settings
from zoo.environment import quiet

PACKAGES = ()
EXTRA = None
INPUT = "input"


def convert(model: nn.Module, file: Path, settings: Settings) -> None:
    """Write `model`, in evaluation mode, to `file`.

    Raises:
        BadInput: The model does not run on this input.
        NotExportable: It cannot be traced.
    """
    program = tracing.trace(model, settings, "a torch.export program")
    written = io.BytesIO()  # so that a full disk is an error that says so
    with quiet():
        torch.export.save(program, written)
    file.write_bytes(written.getbuffer())


def versions() -> tuple[str, ...]:
    """Name the packages whose versions shape the artefact."""
    return ("zoo", "torch", "timm")


def describe(file: Path) -> dict[str, Any]:
    """Return what the file states of itself: number of nodes."""
    with quiet():
        program = torch.export.load(file)
    return {"nodes": sum(node.op == "call_function" for node in program.graph.nodes)}
