"""The page of what can be exported to what, written from the records of `capabilities`."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from zoo.deploy.formats import FORMATS

Cells = dict[tuple[str, str, str], dict[str, Any]]  # by model, format, mode

TITLES = {
    "static": "One batch, one size",
    "dynamic batch": "Any number of images",
    "dynamic size": "Any height and width",
    "fp16": "Weights in float16",
    "int8": "Weights and values in int8",
}
MEANT = {
    "static": "`export.batch=1`.",
    "dynamic batch": "`export.batch=dynamic`; compared at batches of 1, 2 and 3.",
    "dynamic size": "`export.batch=1 export.dynamic_size=true`; compared at two or three sizes. "
    "**yes ×32**: sides must be multiples of 32.",
    "fp16": "`export.batch=1 export.half=true`; what goes in and comes out stays float32. Whether "
    "16 bits hold what a model computes depends on its weights.",
    "int8": "`export.batch=1 quantize.int8=true`. int8 is not equal to float: the number says how "
    "far the differences between images stand above the error, in dB of power, with weights that "
    "are not trained and on random images; from 3 dB on it counts as working. What it costs a "
    "trained model is measured for that model ([export.md](export.md)).",
}
OPENING = """\
# Capabilities

What can be exported to what. The smallest variant of each family (and task) was exported to each
format in each way, loaded again in the runtime that the format is for, and its outputs were
compared with the model's on random images. Weights are random, too: where they are so wild that
rounding decides what comes out, a second try has batch norms with the statistics of random images.

- **yes**: it was exported, runs, and computes the same (how close that is: [export.md](export.md)).
- **no** and a number: `zoo.export` raises `zoo.NotExportable` and leaves no file; the number leads
  to the message, [below](#reasons).
- *converted*, of Core ML: it was converted, validated by coremltools and read again. Core ML runs
  on Apple's systems alone, so that nothing was compared.
- **.**: not tried.

This page is written by `python -m tools.capabilities` from `results/capabilities.json`,
where errors, sizes and times stand; tests try a sample of it again, in both directions."""


def page(records: Sequence[dict[str, Any]], modes: Iterable[str]) -> str:
    """Return the page of what was tried, a table for each mode."""
    cells: Cells = {(c["model"], c["format"], c["mode"]): c for c in records}
    names = sorted({name for name, _, _ in cells})
    modes = list(modes)
    reasons: dict[str, int] = {}
    lines = [OPENING, "", *_summary(cells, names, modes)]
    for mode in modes:
        lines += ["", f"## {TITLES[mode]}", "", MEANT[mode], "", *_header("model", FORMATS)]
        for name in names:
            marks = [_mark(cells.get((name, format, mode)), reasons) for format in FORMATS]
            lines.append(_row(name, marks))
    lines += ["", "## Reasons", ""]
    lines += [f"{number}. {reason}" for reason, number in reasons.items()]
    lines += ["", "## Made with", "", *_stamps(records)]
    return "\n".join(lines) + "\n"


def _summary(cells: Cells, names: list[str], modes: list[str]) -> list[str]:
    """How many models work, by format and mode."""
    lines = ["## In numbers", "", f"Of {len(names)} models:", "", *_header("", FORMATS)]
    for mode in modes:
        counts = []
        for format in FORMATS:
            column = [cells[key] for name in names if (key := (name, format, mode)) in cells]
            counts.append(str(sum(cell["works"] for cell in column)) if column else ".")
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
    if not cell["works"]:
        return f"no [{reasons.setdefault(cell['reason'], len(reasons) + 1)}](#reasons)"
    if "snr_db" in cell:
        return f"yes, {cell['snr_db']:.0f} dB"
    if cell["error_of_spread"] is None:
        return "*converted*"
    multiple = cell.get("multiple")
    return "yes" + (f" ×{multiple}" if multiple not in (None, 1) else "")


def _stamps(records: Sequence[dict[str, Any]]) -> list[str]:
    """Versions of packages, and the days on which it was tried."""
    if not records:
        return ["nothing tried"]
    stamps = sorted({json.dumps(cell["versions"]) for cell in records})
    dates = sorted(cell["date"][:10] for cell in records)
    lines = [", ".join(f"{k} {v}" for k, v in json.loads(stamp).items()) for stamp in stamps]
    return [*lines, "", f"{dates[0]} to {dates[-1]}"]
