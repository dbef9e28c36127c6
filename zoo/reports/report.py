"""Report a file of records as Markdown, CSV and HTML: `python -m zoo report <file>`."""

from pathlib import Path
from typing import Any

from zoo.display import byte_count, energy, ms, quantity
from zoo.errors import BadInput
from zoo.reports import page
from zoo.reports.claims import RULE
from zoo.reports.markdown import escape, grid
from zoo.reports.records import JSON_NAME, csv_text, file_of, load
from zoo.reports.schema import printable
from zoo.reports.table import fused_word
from zoo.reports.view import View
from zoo.reports.writing import replace_files


def write(source: Path, out: Path | None = None) -> list[Path]:
    """Write the report of a file of records.

    Args:
        source: The file, or a folder that contains `results.jsonl`.
        out: The folder to write to; None writes next to the records.

    Returns:
        The paths of the files `<name>.md`, `<name>.csv` and `<name>.html`.

    Raises:
        BadInput: The records cannot be read, or the report cannot be written; files of an earlier
            report then stay as they were.
    """
    records = load(source)
    path = file_of(source)
    title = printable(path.resolve().parent.name if path.name == JSON_NAME else path.stem)
    view = View(records)
    folder = path.parent if out is None else out
    files = [folder / f"{path.stem}.{suffix}" for suffix in ("md", "csv", "html")]
    texts = (markdown(view, title), csv_text(records), page.render(view, title))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a null byte
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"the report cannot be written to {folder}: {reason}") from error
    replace_files(dict(zip(files, texts, strict=True)))
    return files


def markdown(view: View, title: str) -> str:
    """Return records as Markdown: measurements, Pareto fronts, effect of fusing, machines."""
    parts = [f"# {escape(title)}", f"{view.summary()}. {escape(view.shared_settings())}".strip()]
    parts += ["## Measurements", _measurements(view), *_fronts(view)]
    pairs = view.pairs()
    if pairs:
        head = ["model", "input", "runtime", "params", "fused", "MACs", "fused", "ms", "fused"]
        rows = [
            [
                pair.unfused["model"],
                "x".join(map(str, pair.unfused["input_size"])),
                pair.setting,
                *(
                    quantity(record.get(key))
                    for key in ("params", "macs")
                    for record in (pair.unfused, pair.fused)
                ),
                *(ms(record["p50_ms"]) for record in (pair.unfused, pair.fused)),
                str(pair.ratio),
                pair.verdict,
            ]
            for pair in pairs
        ]
        parts += ["## Fused and unfused", grid([*head, "ratio", "fused is"], rows)]
        parts.append(
            "The ratio is the fused latency divided by the unfused latency, with its 95 % "
            f"confidence interval; {RULE}. Only pairs that were timed in turn have a verdict: `zoo "
            "benchmark` does that with `profile.fused=both`."
        )
    parts += ["## Machines", *_machines(view)]
    return "\n\n".join(parts) + "\n"


def _measurements(view: View) -> str:
    omitted = {"low_ms", "high_ms", "min_ms", "n", "flops", "activations", "first_call_ms"}
    omitted |= {"load_ms", "rate", "intensity", "family"}
    columns = [column for column in view.columns if column.key not in omitted]
    rows = []
    for record in view.records:
        cells = [_format(column.kind, column.value(record)) for column in columns]
        median = [column.key for column in columns].index("p50_ms")
        if record.get("low_ms") is not None and record.get("high_ms") is not None:
            cells[median] += f" [{ms(record['low_ms'])}, {ms(record['high_ms'])}]"
        rows.append(cells)
    return grid([column.title for column in columns], rows)


def _fronts(view: View) -> list[str]:
    """Return a table of the models on the Pareto front for each group of settings."""
    parts = []
    for setting, points in view.points().items():
        best = sorted((p for p in points if p.front), key=lambda p: view.records[p.row]["p50_ms"])
        if best:
            rows = []
            for point in best:
                record = view.records[point.row]
                variant = fused_word(record.get("fused"))
                figures = (ms(record["p50_ms"]), f"{point.top1}", point.source)
                rows.append([record["model"], variant, *figures])
            parts.append(f"Measured with {escape(setting)}:")
            parts.append(grid(["model", "variant", "p50 ms", "top-1", "published in"], rows))
    if not parts:
        return []
    about = (
        "Models on the Pareto front: with the same settings, no other model has a higher published "
        "top-1 accuracy at the same or a lower median latency."
    )
    return ["## Pareto front of accuracy and latency", about, *parts]


def _machines(view: View) -> list[str]:
    parts = []
    for number, environment in enumerate(view.environments, start=1):
        rows = [[key, str(value)] for table in environment.values() for key, value in table.items()]
        title = f"machine {number}" if len(view.environments) > 1 else "machine"
        parts.append(grid([title, ""], rows))
    commands = dict.fromkeys(r["command"] for r in view.records if r.get("command"))
    return [*parts, *(f"    {' '.join(command.split())}" for command in commands)]


def _format(kind: str, value: Any) -> str:
    if value is None:
        return ""
    if kind == "count":
        return quantity(value)
    if kind == "bytes":
        return byte_count(value)
    if kind == "joules":
        return energy(value)
    return ms(value) if kind == "ms" else str(value)
