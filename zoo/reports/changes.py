"""What differs between two files of records, beyond the noise: `python -m zoo compare A B`.

The two were measured apart, so each brings its own interval. The interval of the ratio is put
together from both by the method of variance estimates recovery (Zou and Donner, 2008), on
logarithms. A difference is claimed where it stays clear of 1 by more than `SAME`.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from zoo.errors import BadInput
from zoo.reports.records import Record, load
from zoo.reports.table import print_whole

# A choice: an interval knows only what varied within its run, not where the model came to lie in
# memory or how warm the machine was, which moves the median of another run by a few percent.
SAME = 0.03

LISTED = 20  # cases that only one file has, by name

# What is compared, and what should be the same while it is.
_SUBJECT = ("model", "args", "input_size", "fused", "runtime")
_SETTINGS: dict[str, Callable[[Record], Any]] = {
    "threads": lambda r: r.get("threads"),
    "dtype": lambda r: r.get("dtype"),
    "layout": lambda r: r.get("layout"),
    "device": lambda r: r.get("device"),
    "min_runs": lambda r: (r.get("asked") or {}).get("min_runs"),
    "min_time": lambda r: (r.get("asked") or {}).get("min_time"),
    "max_time": lambda r: (r.get("asked") or {}).get("max_time"),
}
_COUNTS = ("params", "macs")


@dataclass(frozen=True)
class Ratio:
    """Time of B divided by time of A, with its 95 % confidence interval.

    Attributes:
        value: Below 1, B is faster.
        low: Lower end of the interval; None where a record has none.
        high: Upper end.
        same: Half-width of the band around 1 in which no difference is claimed.
    """

    value: float
    low: float | None
    high: float | None
    same: float = SAME

    @property
    def verdict(self) -> str:
        """`"faster"`, `"slower"`, or `"no difference"` where the noise explains it."""
        if self.low is None or self.high is None:
            return "no difference"
        if self.high < 1 - self.same:
            return "faster"
        return "slower" if self.low > 1 + self.same else "no difference"

    def __str__(self) -> str:
        interval = "" if self.low is None else f" [{self.low:.3f}, {self.high:.3f}]"
        return f"{self.value:.3f}{interval}"


@dataclass(frozen=True)
class Change:
    """One case in both files.

    Attributes:
        a: Its record in the first.
        b: Its record in the second.
        ratio: Of their medians.
        settings: Names of the settings that differ.
        counts: Names of the counts that differ, so that it is not the same model any more.
    """

    a: Record
    b: Record
    ratio: Ratio
    settings: tuple[str, ...]
    counts: tuple[str, ...]


@dataclass(frozen=True)
class Changes:
    """All cases of two files.

    Attributes:
        both: Those in both, the most slowed down first.
        only_a: Records of cases that only the first file has.
        only_b: Likewise the second.
    """

    both: list[Change] = field(default_factory=list)
    only_a: list[Record] = field(default_factory=list)
    only_b: list[Record] = field(default_factory=list)


def ratio(a: Record, b: Record, same: float = SAME) -> Ratio:
    """Return the ratio of two medians that were measured apart."""
    (mid_a, low_a, high_a), (mid_b, low_b, high_b) = _logarithms(a), _logarithms(b)
    centre = mid_b - mid_a
    low = centre - math.hypot(mid_b - low_b, high_a - mid_a)
    high = centre + math.hypot(high_b - mid_b, mid_a - low_a)
    if math.isnan(low) or math.isnan(high):
        return Ratio(math.exp(centre), None, None, same)
    return Ratio(math.exp(centre), math.exp(low), math.exp(high), same)


def _logarithms(record: Record) -> tuple[float, float, float]:
    """Median and interval; not a number where the record has no interval."""
    tick = 1e-9  # what took no time on a coarse clock still has a logarithm
    values = (record.get(key) for key in ("p50_ms", "low_ms", "high_ms"))
    mid, low, high = (math.nan if v is None else math.log(max(v, tick)) for v in values)
    return mid, low, high


def changes(a: Sequence[Record], b: Sequence[Record]) -> Changes:
    """Compare two lists of records, case by case.

    Cases under the same settings belong together; of what is left, those that agree in all but
    settings. Where a list has several records of a case, the last one counts.
    """
    left, right = ({_identity(r): r for r in records} for records in (a, b))
    pairs = [(left.pop(key), right.pop(key)) for key in list(left) if key in right]
    loose_a, loose_b = (_by_subject(side) for side in (left, right))
    for subject, keys in loose_a.items():
        if len(keys) == 1 and len(loose_b.get(subject, ())) == 1:
            pairs.append((left.pop(keys[0]), right.pop(loose_b[subject][0])))
    both = [
        Change(x, y, ratio(x, y), _differing(x, y, _SETTINGS), _other_counts(x, y))
        for x, y in pairs
    ]
    both.sort(key=lambda change: -change.ratio.value)
    return Changes(both, list(left.values()), list(right.values()))


def table(found: Changes) -> Table:
    """Lay out the cases of both files, the slower ones first."""
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for title in ("model", "form", "runtime", "input"):
        shown.add_column(title, no_wrap=True)
    for title in ("A ms", "B ms", "B / A"):
        shown.add_column(title, justify="right", no_wrap=True)
    shown.add_column("verdict", no_wrap=True)
    order = ("slower", "faster", "no difference")
    for change in sorted(found.both, key=lambda change: order.index(change.ratio.verdict)):
        times = (f"{r['p50_ms']:.4g}" for r in (change.a, change.b))
        notes = "".join(f", {name} differ" for name in change.counts + change.settings)
        cells = (*case_of(change.a), *times, str(change.ratio), change.ratio.verdict + notes)
        shown.add_row(*map(escape, cells))
    return shown


def remarks(found: Changes, a: Sequence[Record], b: Sequence[Record]) -> list[str]:
    """Return what has to be said before and beside the table, a line each."""
    lines = []
    for name, records in (("A", a), ("B", b)):
        lines += [f"{name}: {text}" for text in _environments(records)]
    for name in dict.fromkeys(name for change in found.both for name in change.settings):
        values = dict.fromkeys(
            f"{_SETTINGS[name](c.a)} and {_SETTINGS[name](c.b)}"
            for c in found.both
            if name in c.settings
        )
        lines.append(f"warning: {name} differ: {'; '.join(values)}")
    for name in dict.fromkeys(name for change in found.both for name in change.counts):
        models = dict.fromkeys(c.a["model"] for c in found.both if name in c.counts)
        lines.append(f"warning: {name} differ, it is not the same model: {', '.join(models)}")
    for name, records in (("A", a), ("B", b)):
        earlier = len(records) - len({_identity(record) for record in records})
        if earlier:
            lines.append(f"{name} has {earlier} earlier measurements of the same; the last count")
    return lines


def outcome(found: Changes) -> list[str]:
    """Return the lines below the table: how many changed, and what is in one file only."""
    verdicts = [change.ratio.verdict for change in found.both]
    parts = [f"{verdicts.count(v)} {v}" for v in ("slower", "faster", "no difference")]
    lines = [", ".join(parts) + f" (a difference is one beyond {SAME:.0%} and both intervals)"]
    for name, records in (("A", found.only_a), ("B", found.only_b)):
        if records:
            names = list(dict.fromkeys(" ".join(case_of(record)) for record in records))
            more = f"; and {len(names) - LISTED} more" if len(names) > LISTED else ""
            lines.append(f"only in {name}: {'; '.join(names[:LISTED])}{more}")
    return lines


def case_of(record: Record) -> tuple[str, str, str, str]:
    """Return model, form, runtime and input size of a record, in words."""
    form = {True: "fused", False: "unfused", None: "unknown"}[record.get("fused")]
    return (record["model"], form, record["runtime"], "x".join(map(str, record["input_size"])))


def _identity(record: Record) -> str:
    settings = [value(record) for value in _SETTINGS.values()]
    return json.dumps([_subject(record), *settings], sort_keys=True)


def _subject(record: Record) -> str:
    return json.dumps([record.get(key) for key in _SUBJECT], sort_keys=True)


def _by_subject(side: dict[str, Record]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key, record in side.items():
        found.setdefault(_subject(record), []).append(key)
    return found


def _differing(a: Record, b: Record, values: dict[str, Callable[[Record], Any]]) -> tuple[str, ...]:
    return tuple(name for name, value in values.items() if value(a) != value(b))


def _other_counts(a: Record, b: Record) -> tuple[str, ...]:
    return tuple(
        key for key in _COUNTS if None not in (a.get(key), b.get(key)) and a[key] != b[key]
    )


def _environments(records: Sequence[Record]) -> list[str]:
    """Describe the machines and versions of a file, each once."""
    found = dict.fromkeys(describe(record) for record in records)
    return list(found)


def describe(record: Record) -> str:
    """Describe in one line what a record was measured on and with."""
    machine = record.get("machine") or {}
    versions = record.get("versions") or {}
    cores = machine.get("usable_cores", machine.get("cores"))
    parts = [str(machine.get("cpu", "unknown machine"))]
    parts += [f"{cores} cores"] if cores is not None else []
    parts += [str(machine[key]) for key in ("gpu", "system") if machine.get(key)]
    return ", ".join([*parts, *(f"{name} {number}" for name, number in versions.items())])


def compare_files(a: Path, b: Path) -> None:
    """Print what differs between two files of records.

    Raises:
        BadInput: One cannot be read or holds no records, or they have no case in common.
    """
    first, second = load(a), load(b)
    found = changes(first, second)
    if not found.both:
        raise BadInput(f"{a} and {b} have no measurement of the same model, form, size and runtime")
    print_whole(
        *(f"{name} = {path}" for name, path in (("A", a), ("B", b))),
        *remarks(found, first, second),
        table(found),
        *outcome(found),
    )
