"""PyTorch -> Core ML (`.mlpackage`). Core ML predicts on macOS alone: the file is not run here.

It is checked by what coremltools itself validates in converting, by reading it again, and by the
list of its operations. The manifest says that nothing was compared.
"""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.deploy import constants, tracing
from zoo.deploy.spec import Settings
from zoo.environment import need, quiet
from zoo.errors import NotExportable

PACKAGES = ("coremltools",)
EXTRA = "coreml"
INPUT = "input"
UNKNOWN = (torch.ops.aten.addcmul.default,)  # to coremltools: told in simpler operators


def convert(model: nn.Module, file: Path, settings: Settings) -> None:
    """Write `model`, in evaluation mode, to the folder `file` for the exact sizes of `settings`.

    Raises:
        BadInput: The model does not run on this input.
        MissingExtra: A package is not installed.
        NotExportable: The exporter fails.
    """
    need("format 'coreml'", PACKAGES)
    with quiet():
        import coremltools as ct

        target, types = ct.target.iOS16, ct.precision
    outputs = tracing.output_count(model, settings)
    names = ["output"] if outputs == 1 else [f"output_{i}" for i in range(outputs)]
    # coremltools casts by itself, what it must not cast left out
    program = tracing.trace(model, dataclasses.replace(settings, half=False), "Core ML")
    try:
        with quiet():
            package = ct.convert(
                _simplified(program),
                convert_to="mlprogram",
                inputs=[ct.TensorType(name=INPUT, shape=settings.input_size)],
                outputs=[ct.TensorType(name=name) for name in names],
                minimum_deployment_target=target,
                compute_precision=types.FLOAT16 if settings.half else types.FLOAT32,
                skip_model_load=True,
            )
            package.save(str(file))  # type: ignore[union-attr]
    except Exception as error:  # whatever converting raises
        raise NotExportable(
            f"{tracing.title(model)} cannot be exported to Core ML: {tracing.reason(error)}"
        ) from error
    if not _operations(file):
        raise NotExportable(f"{tracing.title(model)}: the Core ML program has no operations")


def _simplified(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Return the program with what depends on no image computed, and without other names.

    Tables that are resampled to the size of the map are constants in a program of one size, and
    coremltools knows neither how to resample bicubically nor PyTorch's operator for another name.
    """
    known = torch.export.default_decompositions()
    split: dict[Any, Any] = {operator: known[operator] for operator in UNKNOWN}
    program = constants.fold(program).run_decompositions(split)
    for node in list(program.graph.nodes):
        if node.target is torch.ops.aten.alias.default:
            (original,) = node.args
            node.replace_all_uses_with(original)
            program.graph_signature.replace_all_uses(node.name, original.name)
            program.graph.erase_node(node)
    program.graph_module.recompile()
    return program


def versions() -> tuple[str, ...]:
    """Name the packages whose versions shape the artefact."""
    return ("zoo", "torch", "timm", *PACKAGES)


def describe(file: Path) -> dict[str, Any]:
    """Return what the file states of itself: its operations, and how many of each."""
    operations = _operations(file)
    return {"nodes": sum(operations.values()), "operations": dict(sorted(operations.items()))}


def _operations(file: Path) -> Counter[str]:
    """Read the file again and count its operations; constants are none."""
    with quiet():
        import coremltools as ct

        spec = ct.models.MLModel(str(file), skip_model_load=True).get_spec()
    blocks = spec.mlProgram.functions["main"].block_specializations.values()
    kinds = [operation.type for block in blocks for operation in block.operations]
    return Counter(kind for kind in kinds if kind != "const")
