"""The comparison of an artefact with its model: at which batches and sizes, and what came out."""

import copy
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from zoo import runtimes
from zoo.deploy.agreement import Agreement, agree, severest
from zoo.deploy.int8_graph import is_converted
from zoo.deploy.onnx import output_names
from zoo.deploy.spec import COARSE, Settings
from zoo.deploy.tracing import title
from zoo.errors import NotExportable, first_line

OPEN_BATCHES = (1, 2, 3)  # compared where the batch is open; one of them is the traced one


@dataclass(frozen=True)
class Check:
    """What was found out about an artefact.

    Attributes:
        runtime: What ran it; None where nothing here can.
        agreement: The worst of all comparisons.
        sizes: Sizes of image that were compared.
        multiple: With an open size, what sides must be a multiple of; None of a fixed size.
        outputs: Name and shape of each output; an open axis is given by a name.
    """

    runtime: str | None
    agreement: Agreement | None
    sizes: list[list[int]]
    multiple: int | None
    outputs: list[dict[str, Any]]


def check(model: nn.Module, draft: Path, runtime: str | None, settings: Settings) -> Check:
    """Load an artefact and compare it with the model.

    Args:
        model: What the artefact is to compute.
        draft: The artefact.
        runtime: Where to run it.
        settings: What was asked of it.

    Raises:
        NotExportable: It does not run, or computes something else.
    """
    reference = runtimes.load(model, "eager")
    if runtime is None:
        return Check(None, None, [], None, _outputs(reference, settings, None))
    try:
        artefact = runtimes.load(draft, runtime)
        own = settings.input_size[2:]
        compare = _agree_open if settings.dynamic_size else _agree
        found = [compare(reference, artefact, settings, own)]
        if not settings.dynamic_size:
            outputs = _outputs(reference, settings, None)
            return Check(runtime, found[0], [list(own)], None, outputs)
        # The traced size lies between the asked one and the next.
        step = settings.multiple or COARSE
        sizes = [own, settings.further(2)]
        found.append(compare(reference, artefact, settings, sizes[1]))
        if settings.multiple is None:
            odd = tuple(side + 1 for side in sizes[1])
            try:
                found.append(_agree(reference, artefact, settings, odd))
                sizes.append(odd)
                step = 1
            except Exception:  # the model or the artefact takes no such size: the manifest says so
                step = COARSE
    except NotExportable:
        raise
    except Exception as error:  # the target's runtime refuses the artefact
        raise NotExportable(
            f"the artefact does not run in {runtime}: {_without_paths(first_line(error))}"
        ) from error
    outputs = _outputs(reference, settings, sizes[1])
    return Check(runtime, severest(found), [list(size) for size in sizes], step, outputs)


def _without_paths(text: str) -> str:
    """Runtimes name the places where they were built and the file that is about to be removed."""
    return re.sub(r"(?<![\w.])/[\w./+-]+(:\d+)?", "...", text)


def _agree(reference: Any, artefact: Any, settings: Settings, sides: tuple[int, ...]) -> Agreement:
    batch, channels = settings.input_size[:2]
    batch_sizes = {batch} | (set(OPEN_BATCHES) if settings.dynamic_batch else set())
    model = reference.model
    return agree(
        reference,
        artefact,
        (channels, *sides),
        sorted(batch_sizes),
        half=settings.half,
        int8=is_converted(model),
        pixels=getattr(model, "takes_pixels", False),
        classes=getattr(model, "answer", None) == "argmax",
        exact=lambda: runtimes.load(copy.deepcopy(model).double(), "eager"),
    )


def _agree_open(
    reference: Any, artefact: Any, settings: Settings, sides: tuple[int, ...]
) -> Agreement:
    """Compare at a size that was not traced, and say so where that fails."""
    try:
        return _agree(reference, artefact, settings, sides)
    except Exception as error:  # the runtime refuses, or the outputs differ
        size = "x".join(map(str, sides))
        # What a runtime says names nodes of the file: it is the cause, not the reason.
        differs = isinstance(error, NotExportable)
        found = f"at {size} {error}" if differs else f"the artefact does not run at {size}"
        raise NotExportable(
            f"{title(reference.model)} cannot be exported with an open size: {found}; "
            "export.dynamic_size=false makes a file of one size"
        ) from error


def _outputs(
    reference: Any, settings: Settings, other: tuple[int, ...] | None
) -> list[dict[str, Any]]:
    """Name and shape of the outputs; what changes with the size of the image is `"any"`."""
    import numpy as np

    def shapes(sides: tuple[int, ...]) -> list[tuple[int, ...]]:
        x = np.zeros((*settings.input_size[:2], *sides), np.float32)
        return [y.shape for y in reference(x)]

    first = shapes(settings.input_size[2:])
    second = first if other is None else shapes(other)
    batch = ["batch"] if settings.dynamic_batch else [settings.input_size[0]]
    return [
        {
            "name": name,
            "shape": [*batch, *(n if n == m else "any" for n, m in zip(a[1:], b[1:], strict=True))],
        }
        for name, a, b in zip(output_names(len(first)), first, second, strict=True)
    ]
