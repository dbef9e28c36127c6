"""PyTorch -> Core ML (`.mlpackage`).

Core ML only runs on Apple's systems, so the outputs of the file are not compared with the model's.
coremltools validates the program when it converts it, and reads the file again to list its
operations. The manifest says that nothing was compared.
"""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.deploy import constants, tracing
from zoo.deploy.spec import ExportSpec, output_names
from zoo.environment import need, quiet
from zoo.errors import NotExportable

PACKAGES = ("coremltools",)
INPUT = "input"
DECOMPOSED = (torch.ops.aten.addcmul.default,)  # operators that coremltools does not know


def convert(model: nn.Module, file: Path, spec: ExportSpec) -> None:
    """Write `model`, in evaluation mode, to the folder `file`, for `spec.input_size` only.

    Raises:
        BadInput: The model does not run at this size.
        MissingExtra: A package is not installed.
        NotExportable: The model cannot be exported.
    """
    need("format 'coreml'", PACKAGES)
    with quiet():
        import coremltools as ct

        target, types = ct.target.iOS16, ct.precision
    names = output_names(tracing.count_outputs(model, spec))
    # Traced in float32: coremltools casts by itself, except where float16 would not be safe.
    program = tracing.trace(model, dataclasses.replace(spec, half=False), "Core ML")
    try:
        with quiet():
            package = ct.convert(
                _simplified(program),
                convert_to="mlprogram",
                inputs=[ct.TensorType(name=INPUT, shape=spec.input_size)],
                outputs=[ct.TensorType(name=name) for name in names],
                minimum_deployment_target=target,
                compute_precision=types.FLOAT16 if spec.half else types.FLOAT32,
                skip_model_load=True,
            )
            package.save(str(file))  # type: ignore[union-attr]
    except Exception as error:  # coremltools raises errors of many classes
        raise NotExportable(
            f"{tracing.model_name(model)} cannot be exported to Core ML: "
            f"{tracing.root_cause(error)}"
        ) from error
    if not _count_operations(file):
        raise NotExportable(
            f"{tracing.model_name(model)} cannot be exported to Core ML: the program that"
            " coremltools wrote has no operations"
        )


def _simplified(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Return the program with constants folded and aliases removed.

    coremltools supports neither bicubic resampling, which position tables need, nor PyTorch's
    operator `alias`.
    """
    known = torch.export.default_decompositions()
    table: dict[Any, Any] = {operator: known[operator] for operator in DECOMPOSED}
    program = constants.fold(program).run_decompositions(table)
    for node in list(program.graph.nodes):
        if node.target is torch.ops.aten.alias.default:
            (original,) = node.args
            node.replace_all_uses_with(original)
            program.graph_signature.replace_all_uses(node.name, original.name)
            program.graph.erase_node(node)
    program.graph_module.recompile()
    return program


def describe(file: Path) -> dict[str, Any]:
    """Return the number of operations in the program, in total and by type."""
    operations = _count_operations(file)
    return {"nodes": sum(operations.values()), "operations": dict(sorted(operations.items()))}


def _count_operations(file: Path) -> Counter[str]:
    """Read a file and count its operations by type, constants excluded."""
    with quiet():
        import coremltools as ct

        spec = ct.models.MLModel(str(file), skip_model_load=True).get_spec()
    blocks = spec.mlProgram.functions["main"].block_specializations.values()
    kinds = [operation.type for block in blocks for operation in block.operations]
    return Counter(kind for kind in kinds if kind != "const")
