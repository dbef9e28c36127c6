"""Tables for the terminal that fit its width: of records, and of any other columns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from zoo.display import byte_count, energy, ms, quantity, shape
from zoo.reports.claims import WIDE, is_wide, percentile, plus_minus
from zoo.reports.records import Record

# Settings: a column if the records differ in it, otherwise part of the legend.
_SETTINGS: dict[str, Callable[[Record], str]] = {
    "image": lambda r: shape(r["input_size"][2:]),
    "batch": lambda r: str(r["input_size"][0]),
    "runtime": lambda r: r["runtime"],
    "threads": lambda r: _known(r.get("threads")),
    "dtype": lambda r: _known(r.get("dtype")),
    "layout": lambda r: _known(r.get("layout")),
}
_UNSTEADY = "*"  # marks a median that was not stable at the end of the warm-up
_DOUBTFUL = "!"  # marks a wide interval


@dataclass(frozen=True)
class Heading:
    """A column of a table.

    Attributes:
        title: Its heading, which may have several lines.
        cells: The text of each row.
        rank: A terminal that is too narrow shows the columns of the lowest ranks; those of rank 0
            always.
        right: Whether numbers are aligned to the right.
        folds: Whether long cells go on in a second line if there is no other way.
    """

    title: str
    cells: list[str]
    rank: int = 0
    right: bool = True
    folds: bool = False

    @property
    def width(self) -> int:
        return max(map(cell_len, [*self.title.split("\n"), *self.cells]), default=0)

    @property
    def name(self) -> str:
        """The heading on one line."""
        return self.title.replace("-\n", "").replace("\n", " ")


def terminal_width() -> int:
    """Return the columns of the terminal; 80 where there is none."""
    return Console().width


def fitted(headings: Sequence[Heading], width: int | None = None) -> tuple[Table, list[str]]:
    """Return a table that fits a width, and the names of the columns that it leaves out.

    Empty columns are left out, too, but not named.

    Args:
        headings: The columns.
        width: Number of characters; None for those of the terminal.
    """
    limit = terminal_width() if width is None else width
    shown = [h for h in headings if h.rank == 0 or any(h.cells)]
    omitted: list[str] = []
    while sum(h.width + 1 for h in shown) - 1 > limit and any(h.rank for h in shown):
        last = max(shown, key=lambda heading: heading.rank)
        shown.remove(last)
        omitted.insert(0, last.name)
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False, pad_edge=False)
    for heading in shown:
        justify = "right" if heading.right else "left"
        overflow = "fold" if heading.folds else "ellipsis"
        table.add_column(
            escape(heading.title), justify=justify, no_wrap=not heading.folds, overflow=overflow
        )
    for cells in zip(*(heading.cells for heading in shown), strict=True):
        table.add_row(*map(escape, cells))
    return table, omitted


def table(records: Sequence[Record], width: int | None = None) -> tuple[Table, list[str]]:
    """Return a table with one row per record, and the columns for which there is no room.

    `legend` lists the settings that all records share.

    Args:
        records: Records as in the JSON Lines file; a record with `error` failed.
        width: Number of characters; None for those of the terminal.
    """
    headings = [
        Heading("model", [r["model"] for r in records], right=False, folds=True),
        Heading("variant", [fused_word(r.get("fused")) for r in records], right=False),
    ]
    for title, value in _SETTINGS.items():
        if len(_values(records, title)) > 1:
            headings.append(Heading(title, list(map(value, records)), right=False, folds=True))
    columns: dict[str, tuple[int, Callable[[Record], str]]] = {
        "params": (2, lambda r: _count(r, "params")),
        "MACs": (1, lambda r: _count(r, "macs")),
        "p50 ms": (0, _median),
        "95 %": (0, _interval),
        "p90": (4, lambda r: ms(percentile(r, "p90_ms"))),
        "p99": (5, lambda r: ms(percentile(r, "p99_ms"))),
        "min": (8, lambda r: ms(r.get("min_ms"))),
        "n": (3, lambda r: _known(r.get("n"))),
        "memory": (6, lambda r: byte_count(r.get("peak_memory_bytes"))),
        "energy": (6, lambda r: energy(r.get("energy_j"))),
        "FLOPs": (7, lambda r: _count(r, "flops")),
        "activations": (9, lambda r: _count(r, "activations")),
    }
    headings += [Heading(t, list(map(cell, records)), rank) for t, (rank, cell) in columns.items()]
    return fitted(headings, width)


def legend(records: Sequence[Record], omitted: Sequence[str] = ()) -> list[str]:
    """Return the lines below `table`: runtimes, settings that all records share, and marks.

    Args:
        records: The records.
        omitted: The columns that the table leaves out.
    """
    shared = [
        f"{title} {values[0]}"
        for title in _SETTINGS
        if title != "runtime" and len(values := _values(records, title)) == 1
    ]
    used = dict.fromkeys(
        f"{r['runtime']} {r.get('runtime_version') or ''}".strip() for r in records
    )
    lines = [", ".join([*used, *shared])]
    if omitted:
        lines.append(f"not shown for lack of width, but recorded: {', '.join(omitted)}")
    if any(record.get("steady") is False for record in records):
        lines.append(
            f"{_UNSTEADY} median not stable after warm-up: the machine is busy, or max_time is too"
            " short"
        )
    if any(map(_doubtful, records)):
        lines.append(
            f"{_DOUBTFUL} interval wider than ±{100 * WIDE:g} %: the machine was busy; measure "
            "again"
        )
    return lines


def print_all(*parts: str | Table) -> None:
    """Print lines, which the terminal breaks, and tables."""
    console = Console(highlight=False)
    for part in parts:
        if isinstance(part, str):
            console.print(part, markup=False, soft_wrap=True)
        else:
            console.print(part)


def _values(records: Sequence[Record], title: str) -> list[str]:
    return list(dict.fromkeys(_SETTINGS[title](record) for record in records))


def fused_word(fused: bool | None) -> str:
    """Return `"fused"`, `"unfused"` or `"unknown"`."""
    return {True: "fused", False: "unfused", None: "unknown"}[fused]


def _count(record: Record, key: str) -> str:
    if record.get("params") is None:  # the model failed before it was counted
        return ""
    if record.get("count_error") and key != "params":
        return "uncounted"
    return quantity(record.get(key))


def _median(record: Record) -> str:
    if "error" in record:
        return "failed"
    return ms(record["p50_ms"]) + (_UNSTEADY if record.get("steady") is False else "")


def _interval(record: Record) -> str:
    if "error" in record:
        return ""
    ends = (record["p50_ms"], record.get("low_ms"), record.get("high_ms"))
    return plus_minus(*ends) + (_DOUBTFUL if is_wide(*ends) else "")


def _doubtful(record: Record) -> bool:
    return "error" not in record and _interval(record).endswith(_DOUBTFUL)


def _known(value: object) -> str:
    return "" if value is None else str(value)
