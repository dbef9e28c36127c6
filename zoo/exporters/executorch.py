"""PyTorch -> ExecuTorch (`.pte`), what XNNPACK knows lowered to it."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.errors import BadInput, NotExportable
from zoo.runtimes import first_line, need
from zoo.runtimes.executorch import bindings

PACKAGES = ("executorch",)
INPUT = "input"


def convert(
    model: nn.Module,
    file: Path,
    *,
    input_size: tuple[int, ...],
    dynamic_batch: bool = False,
    opset: int | None = None,
) -> None:
    """Write `model` to `file` for the exact sizes of `input_size`.

    Args:
        model: In evaluation mode.
        file: Where to; an existing file is replaced.
        input_size: B C H W of the input.
        dynamic_batch: Not available: memory is planned for one size.
        opset: Not available: a program has none.

    Raises:
        BadInput: A setting that the format does not have.
        MissingExtra: A package is not installed.
        NotExportable: The exporter fails.
    """
    need("format 'executorch'", PACKAGES)
    if dynamic_batch:
        raise BadInput("dynamic_batch=True: ExecuTorch plans memory for one batch; pass False")
    if opset is not None:
        raise BadInput(f"opset={opset!r}: only format 'onnx' has operator sets")
    parameter = next(model.parameters(), torch.empty(0))
    example = torch.zeros(input_size, dtype=parameter.dtype, device=parameter.device)
    try:
        with _silence():
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import (
                XnnpackPartitioner,
            )
            from executorch.exir import to_edge_transform_and_lower

            program = torch.export.export(model, (example,))
            edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
            buffer = edge.to_executorch().buffer
    except Exception as error:  # whatever tracing the model or lowering raises
        raise NotExportable(
            f"{type(model).__name__} cannot be exported to ExecuTorch: {first_line(error)}"
        ) from error
    file.write_bytes(buffer)


def versions() -> tuple[str, ...]:
    """Name the packages whose versions shape the artefact."""
    return ("zoo", "torch", "timm", *PACKAGES)


def describe(file: Path) -> dict[str, Any]:
    """Return what is to be known of the file: what its graph was lowered to."""
    return {"lowered_to": "XNNPACK"}


def outputs(file: Path) -> list[dict[str, Any]]:
    """Return name and shape of each output."""
    _, runtime = bindings()
    method = runtime.load_program(file).load_method("forward")
    assert method is not None, "every program has it"
    meta = method.metadata
    shapes = [list(meta.output_tensor_meta(i).sizes()) for i in range(meta.num_outputs())]
    names = ["output"] if len(shapes) == 1 else [f"output_{i}" for i in range(len(shapes))]
    return [{"name": name, "shape": sh} for name, sh in zip(names, shapes, strict=True)]


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep the compiler's progress and warnings to itself; its errors still come."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
