"""Records as a table for the terminal, and figures in words."""

from collections.abc import Callable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from zoo.reports.records import Record

# What a table shows beside the figures if the records differ in it, and states once if not.
_SETTINGS: dict[str, Callable[[Record], str]] = {
    "image": lambda r: "x".join(map(str, r["input_size"][2:])),
    "batch": lambda r: str(r["input_size"][0]),
    "runtime": lambda r: r["runtime"],
    "threads": lambda r: str(r["threads"]),
    "dtype": lambda r: r["dtype"],
    "layout": lambda r: r["layout"],
}
_LATENCY = ("p50 ms", "95 % interval", "p90", "p99", "min", "n")
# What not every system tells; a column each where a record has it.
_BESIDE: dict[str, Callable[[Record], str]] = {
    "memory": lambda r: byte_count(r.get("peak_memory_bytes")),
    "energy": lambda r: energy(r.get("energy_j")),
}
_MOVING = "*"  # marks a median that had not come to rest when warming up ran out of time


def table(records: Sequence[Record]) -> Table:
    """Lay records out, one a row; `legend` says what is the same in all of them.

    Args:
        records: As they stand in the JSON lines; one that has `error` was not measured.
    """
    differing = [title for title in _SETTINGS if len(_values(records, title)) > 1]
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for title in ("model", "form", *differing):
        shown.add_column(title, no_wrap=True)
    beside = [title for title, show in _BESIDE.items() if any(map(show, records))]
    for title in ("params", "MACs", "FLOPs", "activations", *_LATENCY, *beside):
        shown.add_column(title, justify="right", no_wrap=True)
    for record in records:
        settings = [_SETTINGS[title](record) for title in differing]
        form = fused_word(record["fused"])
        figures = [*_counts(record), *_times(record), *(_BESIDE[t](record) for t in beside)]
        shown.add_row(record["model"], form, *settings, *figures)
    return shown


def legend(records: Sequence[Record]) -> list[str]:
    """Return the lines that belong under `table`: settings that all share, versions, marks."""
    shared = [
        f"{title} {values[0]}"
        for title in _SETTINGS
        if title != "runtime" and len(values := _values(records, title)) == 1
    ]
    used = dict.fromkeys(f"{r['runtime']} {r['runtime_version']}".strip() for r in records)
    lines = [", ".join([*used, *shared])]
    if any(record.get("steady") is False for record in records):
        lines.append(
            f"{_MOVING} the median was still moving: the machine is busy, or max_time short"
        )
    return lines


def print_whole(*parts: str | Table) -> None:
    """Print lines and tables; a narrow terminal or a pipe gets whole lines, not cut figures."""
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
    """Say in a word whether a model was re-parameterised."""
    return {True: "fused", False: "unfused", None: "unknown"}[fused]


def _counts(record: Record) -> list[str]:
    if record.get("params") is None:  # it failed before it was counted
        return ["", "", "", ""]
    if record.get("count_error"):
        return [quantity(record["params"]), "uncounted", "uncounted", "uncounted"]
    return [quantity(record[key]) for key in ("params", "macs", "flops", "activations")]


def _times(record: Record) -> list[str]:
    if "error" in record:
        return ["failed", *[""] * (len(_LATENCY) - 1)]
    low, high = record["low_ms"], record["high_ms"]
    digits = 2 if record["p50_ms"] >= 1 else 4
    interval = "" if low is None else f"{low:.{digits}f} - {high:.{digits}f}"
    p50, p90, p99, least = (
        f"{record[key]:.{digits}f}" for key in ("p50_ms", "p90_ms", "p99_ms", "min_ms")
    )
    return [
        p50 + ("" if record["steady"] else _MOVING),
        interval,
        p90,
        p99,
        least,
        str(record["n"]),
    ]


def quantity(value: int | None) -> str:
    """Write a count with four digits and a unit: 12289928 as `12.29 M`."""
    if value is None:
        return "?"
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if value >= size:
            return f"{value / size:.{2 if value < 100 * size else 1}f} {unit}"
    return str(value)


def byte_count(value: float | None) -> str:
    """Write a number of bytes in MiB; nothing where it is not known."""
    return "" if value is None else f"{value / 2**20:.1f} MiB"


def energy(value: float | None) -> str:
    """Write joules, small ones as millijoules; nothing where they are not known."""
    if value is None:
        return ""
    return f"{1e3 * value:.1f} mJ" if value < 1 else f"{value:.2f} J"
