"""PyTorch -> ONNX by torch's exporter, which traces with `torch.export`."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.deploy import onnx_scan, tracing
from zoo.deploy.spec import ExportSpec, output_names
from zoo.environment import need, quiet
from zoo.errors import BadInput, NotExportable

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
INPUT = "input"
OPSETS = (18, 23)  # first and last that torch's exporter writes and ONNX Runtime is tested with
FOLD_LIMIT = 1 << 28  # largest number of values in a constant; no model has more
OPERATOR_SCAN = "auto"  # the custom operator, which `onnx_scan` translates
SLOW_RULE = "SlicesSplit"  # name of a rule of onnxscript's optimiser

# Metadata of each node to remove: paths on this machine, and source code. The names of modules
# stay: int8 needs them.
_METADATA = tuple(f"pkg.torch.onnx.{key}" for key in ("stack_trace", "fx_node", "class_hierarchy"))


def convert(model: nn.Module, file: Path, spec: ExportSpec, runtime: str = "onnxruntime") -> None:
    """Write `model`, in evaluation mode, to `file`, a single ONNX file.

    Args:
        model: The model.
        file: The file to write.
        spec: Size, dynamic axes, opset and precision.
        runtime: The runtime to write selective scans for, `"onnxruntime"` or `"openvino"`. Both
            compute the same; only the speed differs.

    Raises:
        BadInput: The model does not run at this size, or the opset is not supported.
        MissingExtra: A package is not installed.
        NotExportable: The model cannot be exported.
    """
    need("format 'onnx'", PACKAGES)
    opset = spec.opset
    if opset is not None and not OPSETS[0] <= opset <= OPSETS[1]:
        raise BadInput(f"opset={opset!r} must be from {OPSETS[0]} to {OPSETS[1]}")
    x = tracing.example_input(model, spec)
    names = output_names(tracing.count_outputs(model, spec))
    model = tracing.prepare_for_tracing(model, spec, OPERATOR_SCAN)
    try:
        # Without no_grad, a scan would save states for its gradients, which ONNX cannot express.
        with quiet(), torch.no_grad(), _without_slow_rule():
            program = torch.onnx.export(
                model,
                (x,),
                dynamo=True,
                verbose=False,
                input_names=[INPUT],
                output_names=names,
                opset_version=opset,
                dynamic_shapes=(_dynamic_shapes(spec),) if spec.dynamic_axes else None,
                custom_translation_table=onnx_scan.translations(runtime),
            )
            assert program is not None  # None is only returned with dynamo=False
            if spec.dynamic_size or any(n.op_type == "Scan" for n in program.model.graph):
                _fold_constants(program.model)
            for node in program.model.graph.all_nodes():
                for key in _METADATA:
                    node.metadata_props.pop(key, None)
            program.save(file, external_data=False)
    except OSError:
        raise
    except Exception as error:  # the exporter passes on any error of the model
        cause = tracing.root_cause(error)
        tracing.refuse_custom_operators(model, spec, [cause])
        raise NotExportable(
            f"{tracing.model_name(model)} cannot be exported to ONNX: {cause}"
        ) from error
    tracing.check_dynamic_axes(model, _input_shape(file), spec)


def _fold_constants(program: Any) -> None:
    """Fold constants of any size; the exporter leaves those with more than 8192 values.

    OpenVINO requires this: it rejects a Scan whose body reads values computed outside of it.
    """
    from onnxscript import optimizer

    optimizer.fold_constants(program, input_size_limit=FOLD_LIMIT, output_size_limit=FOLD_LIMIT)
    optimizer.remove_unused_nodes(program)


@contextlib.contextmanager
def _without_slow_rule() -> Iterator[None]:
    """Disable the one rule of onnxscript's optimiser whose time is quadratic in the nodes.

    The rule merges two slices into a split, and takes up to a fifth of the export of a large graph.
    If a version of onnxscript has no such rule, nothing is disabled.
    """
    from onnxscript import rewriter

    rules = getattr(rewriter, "_DEFAULT_REWRITE_RULES", ())
    rewriter._DEFAULT_REWRITE_RULES = tuple(rule for rule in rules if rule.name != SLOW_RULE)
    try:
        yield
    finally:
        rewriter._DEFAULT_REWRITE_RULES = rules


def _dynamic_shapes(spec: ExportSpec) -> dict[int, Any]:
    if not spec.dynamic_size:
        return {0: torch.export.Dim("batch")}
    # AUTO: the model may require equal sides or multiples, which a plain Dim would refuse.
    return dict.fromkeys(spec.dynamic_axes, torch.export.Dim.AUTO)


def describe(file: Path) -> dict[str, Any]:
    """Return the opset and the number of nodes of a file."""
    import onnx

    proto = onnx.load(file)
    opset = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    return {"opset": opset, "nodes": len(proto.graph.node)}


def _input_shape(file: Path) -> list[int | str]:
    """Return the shape of a file's input; a dynamic axis is given by its name."""
    import onnx

    dims = onnx.load(file).graph.input[0].type.tensor_type.shape.dim
    return [dim.dim_param or dim.dim_value for dim in dims]
