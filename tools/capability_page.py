"""`docs/capabilities.md`: tables of the outcomes in `results/capabilities.json`."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from zoo.deploy.formats import FORMATS

Cells = dict[tuple[str, str, str], dict[str, Any]]  # by model, format and mode

# Outcomes of an attempt to export a model.
WORKS = "works"  # the artefact computes the same, or in int8 with little noise
CONVERTED = "converted"  # but not compared: nothing here runs the artefact
REFUSED = "refused"  # `zoo.export` raised NotExportable and left no file
SLOW = "too slow"  # no result within the time limit
INACCURATE = "too inaccurate"  # an int8 file was written, with more noise than the table accepts
UNPROVEN = "not proven"  # a file was written, but the model's outputs hardly depend on the image
FAILED = "failed"  # another error, or a crash

TITLES = {
    "static": "Static batch and size",
    "dynamic batch": "Dynamic batch",
    "dynamic size": "Dynamic height and width",
    "fp16": "float16 weights",
    "int8": "int8 weights and activations",
}
NOTES = {
    "static": "`export.batch=1`.",
    "dynamic batch": "`export.batch=dynamic`; compared at batches of 1, 2 and 3.",
    "dynamic size": "`export.batch=1 export.dynamic_size=true`; compared at two or three sizes. "
    "**yes ×32**: sides must be multiples of 32.",
    "fp16": "`export.batch=1 export.half=true`; inputs and outputs stay float32. Whether 16 bits "
    "are enough depends on the weights of a model.",
    "int8": "`export.batch=1 quantize.int8=true`. int8 is not equal to float: the number is the "
    "signal-to-noise ratio of the outputs in dB, for random weights and images. The loss of a "
    "trained model is measured when that model is exported ([quantization.md](quantization.md)).",
}
OPENING = """\
# Capabilities

Which model can be exported to which format. The smallest variant of each family and task was
exported to each format in each mode and loaded again in the runtime of the format. Its outputs were
compared with those of the model on random images. The weights are random as well. If their scale
makes the result dominated by rounding error, the export is retried with batch-norm statistics
estimated on random images.

- **yes**: the artefact runs and computes the same ([export.md](export.md) gives the tolerances).
- *converted*: Core ML runs only on Apple's systems, so the artefact was validated by coremltools
  and read again, but its outputs were not compared.
- **no** with a number: `zoo.export` raises `zoo.NotExportable` with the message under that number
  [below](#reasons), and leaves no file.
- **too slow**: no result within {limit} s of processor time. Given more time, it may work.
- **too inaccurate**, only for int8: a file was written, but its signal-to-noise ratio is below
  {min_snr:g} dB. It may be higher with trained weights.
- **not proven**: a file was written, but the outputs of the model hardly differ between images, so
  that the comparison shows nothing.
- **failed** with a number: another error, or a crash.
- `.`: not tested.

This page is written by `make generated` from `results/capabilities.json`, which also has errors,
input sizes and times. `python -m tools capabilities` tries the exports. Tests repeat a sample of
them, of those that work and of those that do not."""


def render(
    names: Sequence[str],
    records: Sequence[dict[str, Any]],
    modes: Iterable[str],
    *,
    limit: float,
    min_snr: float,
) -> str:
    """Return the page, a table for each mode.

    Args:
        names: Models, a row each.
        records: Cells with the outcome of each attempt, or of what a format refuses.
        modes: Keys of `TITLES`.
        limit: Seconds after which an attempt counts as too slow.
        min_snr: The least signal-to-noise ratio in dB at which int8 counts as working.
    """
    cells: Cells = {(c["model"], c["format"], c["mode"]): c for c in records}
    modes = list(modes)
    reasons: dict[str, int] = {}
    lines = [OPENING.format(limit=limit, min_snr=min_snr), "", *_summary(cells, names, modes)]
    for mode in modes:
        lines += ["", f"## {TITLES[mode]}", "", NOTES[mode], "", *_header("model", FORMATS)]
        for name in names:
            marks = [_mark(cells.get((name, format, mode)), reasons) for format in FORMATS]
            lines.append(_row(name, marks))
    lines += ["", "## Reasons", ""]
    lines += [f"{number}. {reason}" for reason, number in reasons.items()]
    lines += ["", "## Versions", "", *_versions(records)]
    return "\n".join(lines) + "\n"


def _summary(cells: Cells, names: Sequence[str], modes: list[str]) -> list[str]:
    """Return the table of how many models work, by format and mode."""
    lines = ["## Summary", "", "Models that work, of those tested:", "", *_header("mode", FORMATS)]
    for mode in modes:
        counts = []
        for format in FORMATS:
            column = [cells[key] for name in names if (key := (name, format, mode)) in cells]
            works = sum(cell["outcome"] in (WORKS, CONVERTED) for cell in column)
            counts.append(f"{works} of {len(column)}" if column else ".")
        lines.append(_row(TITLES[mode].lower(), counts))
    return lines


def _header(first: str, columns: Iterable[str]) -> list[str]:
    columns = list(columns)
    return [_row(first, columns), "|---|" + ":-:|" * len(columns)]


def _row(first: str, values: Iterable[str]) -> str:
    return f"| {first} | " + " | ".join(values) + " |"


def _mark(cell: dict[str, Any] | None, reasons: dict[str, int]) -> str:
    if cell is None:
        return "."
    outcome = cell["outcome"]
    if outcome in (REFUSED, FAILED):
        word = "no" if outcome == REFUSED else "failed"
        return f"{word} [{reasons.setdefault(cell['reason'], len(reasons) + 1)}](#reasons)"
    if outcome == CONVERTED:
        return "*converted*"
    if outcome == INACCURATE:
        return f"{outcome}, {cell['snr_db']:.0f} dB"
    if outcome != WORKS:
        return outcome
    if "snr_db" in cell:
        return f"yes, {cell['snr_db']:.0f} dB"
    multiple = cell.get("multiple")
    return "yes" + (f" ×{multiple}" if multiple not in (None, 1) else "")


def _versions(records: Sequence[dict[str, Any]]) -> list[str]:
    """Return the versions of packages, and the first and last day."""
    tried = [cell for cell in records if "versions" in cell]
    if not tried:
        return ["Nothing is tested yet."]
    stamps = sorted({json.dumps(cell["versions"]) for cell in tried})
    dates = sorted(cell["date"][:10] for cell in tried)
    lines = [", ".join(f"{k} {v}" for k, v in json.loads(stamp).items()) for stamp in stamps]
    return ["\n\n".join(lines), "", " to ".join(dict.fromkeys((dates[0], dates[-1])))]
