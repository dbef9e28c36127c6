"""PyTorch -> ONNX, by torch's own exporter (the one that traces with `torch.export`)."""

import contextlib
import copy
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
from zoo.runtimes.pytorch import flat

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OPSETS = (18, 23)  # those that torch's exporter writes and ONNX Runtime is tested with
INPUT = "input"
SCAN = "multi_level"  # few operators at any length, memory in proportion to it, any batch
_CHATTY = ("torch.onnx", "torch.export", "torch._dynamo", "onnxscript", "onnx_ir", "onnx")


def convert(
    model: nn.Module,
    file: Path,
    *,
    input_size: tuple[int, ...],
    dynamic_batch: bool = True,
    opset: int | None = None,
) -> None:
    """Write `model` to `file`, a single ONNX file.

    Args:
        model: In evaluation mode.
        file: Where to; an existing file is replaced.
        input_size: B C H W of the input that is traced.
        dynamic_batch: Leave B open. C, H and W are those of `input_size`.
        opset: Version of the operator set; None: the exporter's own.

    Raises:
        BadInput: The model does not run on this input, or an opset that cannot be written.
        MissingExtra: A package is not installed.
        NotExportable: The exporter fails.
    """
    need("format 'onnx'", PACKAGES)
    if opset is not None and not OPSETS[0] <= opset <= OPSETS[1]:
        raise BadInput(f"opset={opset!r}: {OPSETS[0]} to {OPSETS[1]} can be written")
    # A batch of one would be traced as a constant.
    batch = max(2, input_size[0]) if dynamic_batch else input_size[0]
    parameter = next(model.parameters(), torch.empty(0))
    example = torch.zeros((batch, *input_size[1:]), dtype=parameter.dtype, device=parameter.device)
    outputs = _output_count(model, example)
    model = _with_plain_scans(model)
    names = ["output"] if outputs == 1 else [f"output_{i}" for i in range(outputs)]
    try:
        with _silence():
            program = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                verbose=False,
                input_names=[INPUT],
                output_names=names,
                opset_version=opset,
                dynamic_shapes=({0: torch.export.Dim("batch")},) if dynamic_batch else None,
            )
            assert program is not None  # it is only without dynamo that nothing is returned
            program.save(file, external_data=False)
    except Exception as error:  # the exporter wraps whatever tracing the model raises
        reason = _reason(error)
        raise NotExportable(
            f"{type(model).__name__} cannot be exported to ONNX: {reason}"
        ) from error
    if dynamic_batch and isinstance(_shapes(file)[0][0], int):
        raise NotExportable(
            f"{type(model).__name__} cannot be exported with an open batch: what it computes "
            "depends on the number of images; export.batch=1 (or another number) fixes it"
        )


def _with_plain_scans(model: nn.Module) -> nn.Module:
    """Return a copy whose selective scans are made of PyTorch's operators; or the model itself."""
    if not any(hasattr(module, "scan_backend") for module in model.modules()):
        return model
    model = copy.deepcopy(model)
    for module in model.modules():
        if hasattr(module, "scan_backend"):
            module.scan_backend = SCAN  # pyright: ignore[reportArgumentType]
    return model


def versions() -> tuple[str, ...]:
    """Name the packages whose versions shape the artefact."""
    return ("zoo", "torch", "timm", *PACKAGES)


def describe(file: Path) -> dict[str, int]:
    """Return what the file states of itself: opset and number of nodes."""
    import onnx

    proto = onnx.load(file)
    opset = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    return {"opset": opset, "nodes": len(proto.graph.node)}


def outputs(file: Path) -> list[dict[str, Any]]:
    """Return name and shape of each output; a free dimension is given by its name."""
    import onnx

    values = onnx.load(file).graph.output
    return [{"name": value.name, "shape": _shape(value)} for value in values]


def _shapes(file: Path) -> list[list[int | str]]:
    import onnx

    return [_shape(value) for value in onnx.load(file).graph.input]


def _shape(value: Any) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def _output_count(model: nn.Module, example: torch.Tensor) -> int:
    try:
        with torch.inference_mode():
            return len(flat(model(example)))
    except Exception as error:  # whatever a model raises at a size that it does not take
        raise BadInput(
            f"the model does not run on input_size={tuple(example.shape)}: {first_line(error)}"
        ) from error


def _reason(error: BaseException) -> str:
    """The innermost cause: the exporter's own message is pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep the exporter's progress, advice and warnings to itself; its errors still come."""
    levels = {name: logging.getLogger(name).level for name in _CHATTY}
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        for name in _CHATTY:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
