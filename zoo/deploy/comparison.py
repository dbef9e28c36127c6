"""Compare an artefact with its model at several batch sizes and image sizes."""

import copy
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from zoo import runtimes
from zoo.deploy.agreement import INPUT_SCALES, Agreement, compare_outputs, worst
from zoo.deploy.int8_graph import is_converted
from zoo.deploy.spec import DEFAULT_MULTIPLE, ExportSpec, output_names
from zoo.deploy.tracing import not_dynamic
from zoo.errors import NotExportable, first_line
from zoo.progress import phase
from zoo.runtimes import Runtime

DYNAMIC_BATCHES = (1, 2, 3)  # compared if the batch is dynamic; 2 is the traced one


@dataclass(frozen=True)
class Comparison:
    """How an artefact compares with its model.

    Attributes:
        runtime: The runtime it was compared in; None if none runs on this platform.
        agreement: The worst result at any size; None without a runtime.
        sizes: Image sizes that were compared: H W, or D H W.
        multiple: Sides of a dynamic size must be multiples of it, in pixels; None for a static
            size.
        outputs: Name and shape of each output; dynamic axes are strings.
    """

    runtime: str | None
    agreement: Agreement | None
    sizes: list[list[int]]
    multiple: int | None
    outputs: list[dict[str, Any]]


def compare_artefact(
    model: nn.Module, file: Path, runtime: str | None, spec: ExportSpec
) -> Comparison:
    """Load an artefact and compare it with its model.

    With a dynamic size they are compared at the requested size, at a larger one and, unless
    `spec.multiple` is known, at one pixel more.

    Args:
        model: The model that the artefact must match, in evaluation mode.
        file: The artefact.
        runtime: The runtime to load it in; None compares nothing.
        spec: Sizes that the artefact was exported for.

    Raises:
        NotExportable: The artefact does not run, or does not match the model.
    """
    reference = runtimes.load(model, "eager")
    if runtime is None:
        return Comparison(None, None, [], None, _describe_outputs(reference, spec, None))
    own = spec.input_size[2:]
    try:
        artefact = runtimes.load(file, runtime)
        if not spec.dynamic_size:
            agreement = _compare_at(own, model, reference, artefact, spec)
            outputs = _describe_outputs(reference, spec, None)
            return Comparison(runtime, agreement, [list(own)], None, outputs)
        step = spec.multiple or DEFAULT_MULTIPLE
        sizes = [own, spec.larger_sides(2)]  # the traced size is between these two
        results = [_compare_untraced(size, model, reference, artefact, spec) for size in sizes]
        if spec.multiple is None:
            odd = tuple(side + 1 for side in sizes[1])
            try:
                results.append(_compare_at(odd, model, reference, artefact, spec))
                sizes.append(odd)
                step = 1
            except Exception:  # not supported by the model or the artefact, as `multiple` states
                step = DEFAULT_MULTIPLE
    except NotExportable:
        raise
    except Exception as error:  # each runtime raises errors of its own
        raise NotExportable(
            f"the artefact does not run in {runtime}: {_without_paths(first_line(error))}"
        ) from error
    outputs = _describe_outputs(reference, spec, sizes[1])
    return Comparison(runtime, worst(results), [list(size) for size in sizes], step, outputs)


def _without_paths(text: str) -> str:
    """Remove paths: runtimes name their source files and the temporary file of the artefact."""
    return re.sub(r"(?<![\w.])/[\w./+-]+(:\d+)?", "...", text)


def _compare_at(
    sides: tuple[int, ...],
    model: nn.Module,
    reference: Runtime,
    artefact: Runtime,
    spec: ExportSpec,
) -> Agreement:
    """Compare at one image size, H W or D H W, with every batch size."""
    batch, channels = spec.input_size[:2]
    batch_sizes = {batch} | (set(DYNAMIC_BATCHES) if spec.dynamic_batch else set())
    images = len(INPUT_SCALES) * sum(batch_sizes)
    with phase(f"comparing {images} images of {'x'.join(map(str, sides))} in {artefact.name}"):
        return compare_outputs(
            reference,
            artefact,
            (channels, *sides),
            sorted(batch_sizes),
            half=spec.half,
            int8=is_converted(model),
            pixels=getattr(model, "takes_pixels", False),
            postprocessing=getattr(model, "postprocessing", None),
            jumps=any(getattr(module, "has_jumps", False) for module in model.modules()),
            load_double=lambda: runtimes.load(copy.deepcopy(model).double(), "eager"),
        )


def _compare_untraced(
    sides: tuple[int, ...],
    model: nn.Module,
    reference: Runtime,
    artefact: Runtime,
    spec: ExportSpec,
) -> Agreement:
    """Compare at a size that was not traced; name that size in the error."""
    try:
        return _compare_at(sides, model, reference, artefact, spec)
    except Exception as error:  # the runtime raises errors of its own, or the outputs differ
        size = "x".join(map(str, sides))
        # A runtime's own message names nodes of the file, which says nothing to the user.
        differs = isinstance(error, NotExportable)
        reason = f"at {size} {error}" if differs else f"the artefact does not run at {size}"
        raise not_dynamic(model, reason) from error


def _describe_outputs(
    reference: Runtime, spec: ExportSpec, other: tuple[int, ...] | None
) -> list[dict[str, Any]]:
    """Return name and shape of each output; an axis that varies with the image size is `"any"`.

    Args:
        reference: The model.
        spec: Sizes that it is exported for.
        other: A second image size, to find the axes that vary; None for a static size.
    """

    def shapes(sides: tuple[int, ...]) -> list[tuple[int, ...]]:
        x = np.zeros((*spec.input_size[:2], *sides), np.float32)
        return [y.shape for y in reference(x)]

    first = shapes(spec.input_size[2:])
    second = first if other is None else shapes(other)
    batch = ["batch"] if spec.dynamic_batch else [spec.input_size[0]]
    return [
        {
            "name": name,
            "shape": [*batch, *(n if n == m else "any" for n, m in zip(a[1:], b[1:], strict=True))],
        }
        for name, a, b in zip(output_names(len(first)), first, second, strict=True)
    ]
