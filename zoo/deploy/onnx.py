"""PyTorch -> ONNX, by torch's own exporter (the one that traces with `torch.export`)."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.deploy import tracing
from zoo.deploy.spec import Settings
from zoo.environment import need, quiet
from zoo.errors import BadInput, NotExportable

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
EXTRA = "export"
OPSETS = (18, 23)  # those that torch's exporter writes and ONNX Runtime is tested with
INPUT = "input"
LARGEST = 1 << 28  # values of a constant: no model has one with more
OPEN_SCAN = "scan"  # ONNX has an operator for it: as fast as written out, and a tenth of the nodes

# What the exporter notes at each node besides its module: files of this machine, and the program.
_NOTES = tuple(f"pkg.torch.onnx.{key}" for key in ("stack_trace", "fx_node", "class_hierarchy"))


def convert(model: nn.Module, file: Path, settings: Settings) -> None:
    """Write `model`, in evaluation mode, to `file`, a single ONNX file.

    Raises:
        BadInput: The model does not run on this input, or an opset that cannot be written.
        MissingExtra: A package is not installed.
        NotExportable: The exporter fails.
    """
    need("format 'onnx'", PACKAGES)
    opset = settings.opset
    if opset is not None and not OPSETS[0] <= opset <= OPSETS[1]:
        raise BadInput(f"opset={opset!r}: {OPSETS[0]} to {OPSETS[1]} can be written")
    x = tracing.example(model, settings)
    names = output_names(tracing.output_count(model, settings))
    model = tracing.form(model, settings, OPEN_SCAN)
    try:
        # What a scan would keep for its gradients cannot be written.
        with quiet(), torch.no_grad(), _in_linear_time():
            program = torch.onnx.export(
                model,
                (x,),
                dynamo=True,
                verbose=False,
                input_names=[INPUT],
                output_names=names,
                opset_version=opset,
                dynamic_shapes=(_open(settings),) if settings.open_axes else None,
            )
            assert program is not None  # it is only without dynamo that nothing is returned
            if settings.dynamic_size:
                _fold(program.model)
            for node in program.model.graph.all_nodes():
                for key in _NOTES:
                    node.metadata_props.pop(key, None)
            program.save(file, external_data=False)
    except OSError:
        raise
    except Exception as error:  # the exporter wraps whatever tracing the model raises
        tracing.check_operators(model, settings, [tracing.reason(error)])
        raise NotExportable(
            f"{tracing.title(model)} cannot be exported to ONNX: {tracing.reason(error)}"
        ) from error
    tracing.check_open(model, _shapes(file)[0], settings)


def _fold(program: Any) -> None:
    """Compute what is constant, however large: the exporter leaves what has over 8192 values.

    OpenVINO takes nothing that is computed outside of a scan into it.
    """
    from onnxscript import optimizer

    optimizer.fold_constants(program, input_size_limit=LARGEST, output_size_limit=LARGEST)
    optimizer.remove_unused_nodes(program)


@contextlib.contextmanager
def _in_linear_time() -> Iterator[None]:
    """Leave out the one rule of onnxscript's optimiser that is tried on every pair of nodes.

    It makes one split of two slices, and takes up to a fifth of the export of a large graph. Where
    onnxscript keeps its rules elsewhere, all of them are applied.
    """
    from onnxscript import rewriter

    rules = getattr(rewriter, "_DEFAULT_REWRITE_RULES", ())
    rewriter._DEFAULT_REWRITE_RULES = tuple(rule for rule in rules if rule.name != "SlicesSplit")
    try:
        yield
    finally:
        rewriter._DEFAULT_REWRITE_RULES = rules


def _open(settings: Settings) -> dict[int, Any]:
    if not settings.dynamic_size:
        return {0: torch.export.Dim("batch")}
    # Sides may be held together or to multiples by what the model computes: that is found out.
    return dict.fromkeys(settings.open_axes, torch.export.Dim.AUTO)


def output_names(count: int) -> list[str]:
    """Return the names of so many outputs."""
    return ["output"] if count == 1 else [f"output_{i}" for i in range(count)]


def versions() -> tuple[str, ...]:
    """Name the packages whose versions shape the artefact."""
    return ("zoo", "torch", "timm", *PACKAGES)


def describe(file: Path) -> dict[str, Any]:
    """Return what the file states of itself: opset and number of nodes."""
    import onnx

    proto = onnx.load(file)
    opset = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    return {"opset": opset, "nodes": len(proto.graph.node)}


def _shapes(file: Path) -> list[list[int | str]]:
    import onnx

    return [_shape(value) for value in onnx.load(file).graph.input]


def _shape(value: Any) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
