"""Tables of records for the terminal, and formatted numbers."""

from collections.abc import Callable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from zoo.reports.records import Record

# Settings: a column if the records differ in it, otherwise part of the legend.
_SETTINGS: dict[str, Callable[[Record], str]] = {
    "image": lambda r: "x".join(map(str, r["input_size"][2:])),
    "batch": lambda r: str(r["input_size"][0]),
    "runtime": lambda r: r["runtime"],
    "threads": lambda r: _known(r.get("threads")),
    "dtype": lambda r: _known(r.get("dtype")),
    "layout": lambda r: _known(r.get("layout")),
}
_LATENCY = ("p50 ms", "95 % interval", "p90", "p99", "min", "n")
# Measurements that not every system provides: a column only if a record has a value.
_OPTIONAL: dict[str, Callable[[Record], str]] = {
    "memory": lambda r: byte_count(r.get("peak_memory_bytes")),
    "energy": lambda r: energy(r.get("energy_j")),
}
_UNSTEADY = "*"  # marks a median that was not stable at the end of the warm-up


def table(records: Sequence[Record]) -> Table:
    """Return a table with one row per record; `legend` lists the settings that all records share.

    Args:
        records: Records as in the JSON Lines file; a record with `error` failed.
    """
    differing = [title for title in _SETTINGS if len(_values(records, title)) > 1]
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for title in ("model", "variant", *differing):
        shown.add_column(title, no_wrap=True)
    optional = [title for title, show in _OPTIONAL.items() if any(map(show, records))]
    for title in ("params", "MACs", "FLOPs", "activations", *_LATENCY, *optional):
        shown.add_column(title, justify="right", no_wrap=True)
    for record in records:
        settings = [_SETTINGS[title](record) for title in differing]
        variant = fused_word(record.get("fused"))
        figures = [*_counts(record), *_times(record), *(_OPTIONAL[t](record) for t in optional)]
        shown.add_row(record["model"], variant, *settings, *figures)
    return shown


def legend(records: Sequence[Record]) -> list[str]:
    """Return the lines below `table`: runtimes, settings that all records share, and marks."""
    shared = [
        f"{title} {values[0]}"
        for title in _SETTINGS
        if title != "runtime" and len(values := _values(records, title)) == 1
    ]
    used = dict.fromkeys(
        f"{r['runtime']} {r.get('runtime_version') or ''}".strip() for r in records
    )
    lines = [", ".join([*used, *shared])]
    if any(record.get("steady") is False for record in records):
        lines.append(
            f"{_UNSTEADY} median not stable after warm-up: the machine is busy, or max_time is too"
            " short"
        )
    return lines


def print_whole(*parts: str | Table) -> None:
    """Print lines and tables at full width, even if the terminal is narrower."""
    console = Console(highlight=False)
    wide = Console(highlight=False, width=max(console.width, 1000))
    for part in parts:
        if isinstance(part, str):
            console.print(part, markup=False, soft_wrap=True)
        else:
            Console(highlight=False, width=wide.measure(part).maximum).print(part)


def _values(records: Sequence[Record], title: str) -> list[str]:
    return list(dict.fromkeys(_SETTINGS[title](record) for record in records))


def fused_word(fused: bool | None) -> str:
    """Return `"fused"`, `"unfused"` or `"unknown"`."""
    return {True: "fused", False: "unfused", None: "unknown"}[fused]


def _counts(record: Record) -> list[str]:
    if record.get("params") is None:  # the model failed before it was counted
        return ["", "", "", ""]
    if record.get("count_error"):
        return [quantity(record["params"]), "uncounted", "uncounted", "uncounted"]
    return [quantity(record.get(key)) for key in ("params", "macs", "flops", "activations")]


def _times(record: Record) -> list[str]:
    if "error" in record:
        return ["failed", *[""] * (len(_LATENCY) - 1)]
    digits = 2 if record["p50_ms"] >= 1 else 4
    p50, low, high, p90, p99, least = (
        "" if record.get(key) is None else f"{record[key]:.{digits}f}"
        for key in ("p50_ms", "low_ms", "high_ms", "p90_ms", "p99_ms", "min_ms")
    )
    return [
        p50 + (_UNSTEADY if record.get("steady") is False else ""),
        f"{low} - {high}" if low else "",
        p90,
        p99,
        least,
        _known(record.get("n")),
    ]


def _known(value: object) -> str:
    return "" if value is None else str(value)


def quantity(value: int | None) -> str:
    """Format a count with four digits and a unit: 12289928 as `12.29 M`."""
    if value is None:
        return "?"
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if value >= size:
            return f"{value / size:.{2 if value < 100 * size else 1}f} {unit}"
    return str(value)


def byte_count(value: float | None) -> str:
    """Format a number of bytes in MiB; an unknown number as an empty string."""
    return "" if value is None else f"{value / 2**20:.1f} MiB"


def energy(value: float | None) -> str:
    """Format joules, with millijoules below 1 J; an unknown energy as an empty string."""
    if value is None:
        return ""
    return f"{1e3 * value:.1f} mJ" if value < 1 else f"{value:.2f} J"
