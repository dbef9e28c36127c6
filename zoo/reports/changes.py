"""Compare the latencies in two files of records: `python -m zoo compare A B`.

The two files come from separate runs, so each median has its own confidence interval. The interval
of the ratio combines both by the method of variance estimates recovery (Zou and Donner, 2008) on
logarithms. When a difference is reported: `zoo.reports.claims`.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from zoo.display import ms, shape
from zoo.errors import BadInput
from zoo.reports.claims import RULE, TOLERANCE, WIDE, is_wide, verdict
from zoo.reports.records import Record, load
from zoo.reports.table import Heading, fitted, fused_word, print_all

MAX_LISTED = 20  # cases that are only in one file

# Records with equal keys are compared; settings should be equal as well.
_CASE_KEYS = ("model", "args", "input_size", "fused", "runtime")
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
_CASE_TITLES = ("variant", "runtime", "input")


@dataclass(frozen=True)
class Ratio:
    """Latency of B divided by that of A, with its 95 % confidence interval.

    Attributes:
        value: The ratio; below 1, B is faster.
        low: Lower end of the interval; None if a record has no interval.
        high: Upper end of the interval.
        tolerance: Ratios within this distance of 1 count as no difference.
    """

    value: float
    low: float | None
    high: float | None
    tolerance: float = TOLERANCE

    @property
    def verdict(self) -> str:
        """`"faster"`, `"slower"`, or `"no difference"` if noise may be the reason."""
        return verdict(self.low, self.high, self.tolerance)

    def __str__(self) -> str:
        interval = "" if self.low is None else f" [{self.low:.3f}, {self.high:.3f}]"
        return f"{self.value:.3f}{interval}"


@dataclass(frozen=True)
class Change:
    """A case that is in both files.

    Attributes:
        a: Its record in the first file.
        b: Its record in the second file.
        ratio: Ratio of the median latencies.
        settings: Names of the settings that differ.
        counts: Names of the counts that differ, which means that the model has changed.
    """

    a: Record
    b: Record
    ratio: Ratio
    settings: tuple[str, ...]
    counts: tuple[str, ...]

    @property
    def is_wide(self) -> bool:
        """Whether one of the two medians has a wide interval, because the machine was busy."""
        return any(
            is_wide(r["p50_ms"], r.get("low_ms"), r.get("high_ms")) for r in (self.a, self.b)
        )


@dataclass(frozen=True)
class Changes:
    """All cases of two files.

    Attributes:
        both: Cases in both files, by decreasing ratio.
        only_a: Records of cases that are only in the first file.
        only_b: Records of cases that are only in the second file.
    """

    both: list[Change] = field(default_factory=list)
    only_a: list[Record] = field(default_factory=list)
    only_b: list[Record] = field(default_factory=list)


def ratio(a: Record, b: Record, tolerance: float = TOLERANCE) -> Ratio:
    """Return the ratio of two medians that were measured in separate runs."""
    (mid_a, low_a, high_a), (mid_b, low_b, high_b) = _logarithms(a), _logarithms(b)
    centre = mid_b - mid_a
    low = centre - math.hypot(mid_b - low_b, high_a - mid_a)
    high = centre + math.hypot(high_b - mid_b, mid_a - low_a)
    if math.isnan(low) or math.isnan(high):
        return Ratio(math.exp(centre), None, None, tolerance)
    return Ratio(math.exp(centre), math.exp(low), math.exp(high), tolerance)


def _logarithms(record: Record) -> tuple[float, float, float]:
    """Return the logarithms of median, low and high; NaN for a value that is missing."""
    values = (record.get(key) for key in ("p50_ms", "low_ms", "high_ms"))
    mid, low, high = (math.nan if v is None else math.log(v) for v in values)
    return mid, low, high


def changes(a: Sequence[Record], b: Sequence[Record]) -> Changes:
    """Match the records of two lists and compare each pair.

    Records of the same case with equal settings are matched first, then the remaining records of
    the same case with other settings. If a list has several records of a case, only the last is
    used.
    """
    left, right = ({_identity(r): r for r in records} for records in (a, b))
    pairs = [(left.pop(key), right.pop(key)) for key in list(left) if key in right]
    rest_a, rest_b = (_group_by_case(side) for side in (left, right))
    for case, keys in rest_a.items():
        if len(keys) == 1 and len(rest_b.get(case, ())) == 1:
            pairs.append((left.pop(keys[0]), right.pop(rest_b[case][0])))
    both = [
        Change(x, y, ratio(x, y), _differing_settings(x, y), _differing_counts(x, y))
        for x, y in pairs
    ]
    both.sort(key=lambda change: -change.ratio.value)
    return Changes(both, list(left.values()), list(right.values()))


def table(found: Changes, width: int | None = None) -> Table:
    """Return a table of the cases in both files: slower ones, faster ones, then the rest.

    Variant, runtime and input have columns only if the cases differ in them.

    Args:
        found: The cases.
        width: Number of characters; None for those of the terminal.
    """
    order = ("slower", "faster", "no difference")
    both = sorted(found.both, key=lambda change: order.index(change.ratio.verdict))
    cases = list(zip(*(case_of(change.a) for change in both), strict=True)) or [()] * 4
    headings = [Heading("model", list(cases[0]), right=False, folds=True)]
    headings += [
        Heading(title, list(cells), right=False, folds=True)
        for title, cells in zip(_CASE_TITLES, cases[1:], strict=True)
        if len(set(cells)) > 1
    ]
    for title, record in (("A ms", "a"), ("B ms", "b")):
        headings.append(Heading(title, [ms(getattr(c, record)["p50_ms"]) for c in both], rank=1))
    headings += [
        Heading("B / A", [f"{c.ratio}{'!' if c.is_wide else ''}" for c in both]),
        Heading("verdict", [c.ratio.verdict for c in both], right=False, folds=True),
        Heading(
            "differ",
            [", ".join(change.counts + change.settings) for change in both],
            rank=2,
            right=False,
            folds=True,
        ),
    ]
    return fitted(headings, width)[0]


def notes(found: Changes, a: Sequence[Record], b: Sequence[Record]) -> list[str]:
    """Return the lines above the table: machines, versions and warnings."""
    lines = []
    for name, records in (("A", a), ("B", b)):
        lines += [f"{name}: {text}" for text in _environments(records)]
    shared = [
        f"{title} {cells[0]}"
        for title, *cells in zip(_CASE_TITLES, *(case_of(c.a)[1:] for c in found.both), strict=True)
        if len(set(cells)) == 1
    ]
    lines += [f"all: {', '.join(shared)}"] if shared and found.both else []
    for name in dict.fromkeys(name for change in found.both for name in change.settings):
        values = dict.fromkeys(
            f"{_SETTINGS[name](c.a)} and {_SETTINGS[name](c.b)}"
            for c in found.both
            if name in c.settings
        )
        lines.append(f"warning: {name} differ: {'; '.join(values)}")
    for name in dict.fromkeys(name for change in found.both for name in change.counts):
        models = dict.fromkeys(c.a["model"] for c in found.both if name in c.counts)
        lines.append(f"warning: {name} differ, so these models have changed: {', '.join(models)}")
    for name, records in (("A", a), ("B", b)):
        earlier = len(records) - len({_identity(record) for record in records})
        if earlier:
            plural = "" if earlier == 1 else "s"
            lines.append(f"{name}: ignored {earlier} earlier measurement{plural} of the same cases")
    return lines


def outcome(found: Changes) -> list[str]:
    """Return the lines below the table: how many cases changed, and which have no counterpart."""
    verdicts = [change.ratio.verdict for change in found.both]
    parts = [f"{verdicts.count(v)} {v}" for v in ("slower", "faster", "no difference")]
    lines = [f"{', '.join(parts)}: {RULE}"]
    wide = sum(change.is_wide for change in found.both)
    if wide:
        lines.append(
            f"! {wide} of {len(found.both)} with an interval wider than ±{100 * WIDE:g} %: the "
            "machine was busy; measure again, or time both in turn with zoo.compare(a, b)"
        )
    for name, records in (("A", found.only_a), ("B", found.only_b)):
        if records:
            names = list(dict.fromkeys(" ".join(case_of(record)) for record in records))
            more = f"; and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
            lines.append(f"only in {name}: {'; '.join(names[:MAX_LISTED])}{more}")
    return lines


def case_of(record: Record) -> tuple[str, str, str, str]:
    """Return the model, variant, runtime and input size of a record as texts."""
    variant = fused_word(record.get("fused"))
    return (record["model"], variant, record["runtime"], shape(record["input_size"]))


def _identity(record: Record) -> str:
    settings = [value(record) for value in _SETTINGS.values()]
    return json.dumps([_case(record), *settings], sort_keys=True)


def _case(record: Record) -> str:
    return json.dumps([record.get(key) for key in _CASE_KEYS], sort_keys=True)


def _group_by_case(side: dict[str, Record]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for key, record in side.items():
        groups.setdefault(_case(record), []).append(key)
    return groups


def _differing_settings(a: Record, b: Record) -> tuple[str, ...]:
    return tuple(name for name, value in _SETTINGS.items() if value(a) != value(b))


def _differing_counts(a: Record, b: Record) -> tuple[str, ...]:
    return tuple(
        key for key in _COUNTS if None not in (a.get(key), b.get(key)) and a[key] != b[key]
    )


def _environments(records: Sequence[Record]) -> list[str]:
    """Describe the machines and versions of a file, without duplicates."""
    return list(dict.fromkeys(describe(record) for record in records))


def describe(record: Record) -> str:
    """Describe the machine and the versions of a record in one line."""
    machine = record.get("machine") or {}
    versions = record.get("versions") or {}
    cores = machine.get("usable_cores", machine.get("cores"))
    parts = [str(machine.get("cpu", "unknown machine"))]
    parts += [f"{cores} cores"] if cores is not None else []
    parts += [str(machine[key]) for key in ("gpu", "system") if machine.get(key)]
    return ", ".join([*parts, *(f"{name} {number}" for name, number in versions.items())])


def compare_files(a: Path, b: Path) -> None:
    """Print a comparison of two files of records.

    Raises:
        BadInput: A file cannot be read or has no records, or the files have no case in common.
    """
    first, second = load(a), load(b)
    found = changes(first, second)
    if not found.both:
        raise BadInput(
            f"{a} and {b} have no measurement of the same model, variant, input size and runtime"
        )
    print_all(
        *(f"{name} = {path}" for name, path in (("A", a), ("B", b))),
        *notes(found, first, second),
        table(found),
        *outcome(found),
    )
