"""The content of a report: rows and columns, Pareto fronts, and pairs of fused and unfused models.

`report` writes it as Markdown and `page` as HTML; neither computes anything itself.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from zoo import registry
from zoo.reports import ledger
from zoo.reports.changes import Ratio, ratio
from zoo.reports.claims import percentile
from zoo.reports.pareto import front, published
from zoo.reports.records import Record
from zoo.reports.table import fused_word

Value = str | float | int | None


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        key: Name in the data of the HTML page.
        title: Heading.
        kind: Format: `"text"`, `"count"` (12.3 M), `"ms"`, `"bytes"`, `"joules"`, `"percent"` or
            `"number"`.
        help: Explanation of the values in one sentence.
        value: Function that returns the value for a record.
    """

    key: str
    title: str
    kind: str
    help: str
    value: Callable[[Record], Value]


def _field(key: str) -> Callable[[Record], Value]:
    return lambda record: record.get(key)


def _image(record: Record) -> str:
    return "x".join(map(str, record["input_size"][2:]))


def _images_per_s(record: Record) -> float | None:
    return 1e3 * record["input_size"][0] / record["p50_ms"] if record["p50_ms"] else None


def _runtime(record: Record) -> str:
    version = re.split("[-+]", record.get("runtime_version") or "")[0]  # without the build
    return f"{record['runtime']} {version}".strip()


def _top1(record: Record) -> float | None:
    accuracy = published(record)
    return accuracy.top1 if accuracy else None


def _verified(record: Record) -> str | None:
    return ledger.in_short(record["model"], ledger.entries()) or None


def family(name: str) -> str:
    """Return the family of a model, or the package for a model of another package."""
    if "/" in name:
        return name.split("/")[0]
    return registry.get_spec(name).family if registry.is_model(name) else ""


# Only records with equal runtime and settings are compared with each other.
RUNTIME = Column("runtime", "runtime", "text", "Runtime and its version.", _runtime)
SETTINGS = (
    Column("batch", "batch", "number", "Images per call.", lambda r: r["input_size"][0]),
    Column("threads", "threads", "number", "Threads per call.", _field("threads")),
    Column("dtype", "dtype", "text", "Floating-point type of the computation.", _field("dtype")),
    Column("layout", "layout", "text", "Memory layout of the images.", _field("layout")),
    Column("device", "device", "text", "Device that the model ran on.", _field("device")),
)
NAMES = (
    Column("model", "model", "text", "Model name for zoo.create_model.", _field("model")),
    Column(
        "variant",
        "variant",
        "text",
        "fused: re-parameterised for inference; unfused: as trained.",
        lambda r: fused_word(r.get("fused")),
    ),
    Column("image", "image", "text", "Height x width.", _image),
)
_INTERVAL = "of the 95 % confidence interval of the median."
FIGURES = (
    Column("top1", "top-1", "percent", "Best published accuracy on ImageNet-1k.", _top1),
    Column(
        "verified",
        "verified",
        "text",
        "What running published weights gave: an accuracy, outputs for a picture only, or never.",
        _verified,
    ),
    Column("params", "params", "count", "Parameters.", _field("params")),
    Column("macs", "MACs", "count", "Multiply-accumulates of one image.", _field("macs")),
    Column("p50_ms", "p50 ms", "ms", "Median latency of the whole batch.", _field("p50_ms")),
    Column("low_ms", "low", "ms", "Lower end " + _INTERVAL, _field("low_ms")),
    Column("high_ms", "high", "ms", "Upper end " + _INTERVAL, _field("high_ms")),
    Column(
        "p90_ms", "p90", "ms", "90 % of the calls were faster.", lambda r: percentile(r, "p90_ms")
    ),
    Column(
        "p99_ms", "p99", "ms", "99 % of the calls were faster.", lambda r: percentile(r, "p99_ms")
    ),
    Column("min_ms", "min", "ms", "The fastest call.", _field("min_ms")),
    Column("n", "n", "number", "Measured calls.", _field("n")),
    Column("rate", "images/s", "number", "Images per second at the median.", _images_per_s),
    Column("first_call_ms", "cold ms", "ms", "The very first call.", _field("first_call_ms")),
    Column("load_ms", "load ms", "ms", "Time to load the model.", _field("load_ms")),
    Column(
        "peak_memory_bytes",
        "memory",
        "bytes",
        "Peak rise of the process memory during a call (on CUDA: of allocated memory).",
        _field("peak_memory_bytes"),
    ),
    Column("energy_j", "energy", "joules", "Energy per call.", _field("energy_j")),
    Column("flops", "FLOPs", "count", "2 x MACs + elementwise FLOPs, one image.", _field("flops")),
    Column(
        "activations", "activations", "count", "Elements written, one image.", _field("activations")
    ),
    Column(
        "peak_activation_bytes",
        "peak activations",
        "bytes",
        "Peak memory of input and intermediate results for one image, without parameters.",
        _field("peak_activation_bytes"),
    ),
    Column("intensity", "FLOP/byte", "number", "FLOPs per byte moved.", _field("intensity")),
    Column("family", "family", "text", "Model family, or timm.", lambda r: family(r["model"])),
)


@dataclass(frozen=True)
class Point:
    """A record in the plot of accuracy and cost.

    Attributes:
        row: Index of the record.
        top1: Published accuracy; None if there is none that can be compared.
        source: Where it was published.
        at_size: Whether the latency was measured at the image size of the accuracy.
        front: Whether the point is on the Pareto front of its settings; False unless `at_size`.
    """

    row: int
    top1: float | None
    source: str
    at_size: bool
    front: bool


@dataclass(frozen=True)
class Pair:
    """A model that was measured unfused and fused with the same settings.

    Attributes:
        unfused: Record of the unfused model.
        fused: Record of the fused model.
        setting: The runtime, and the settings in which the records of the view differ.
        ratio: Fused latency divided by unfused latency.
        verdict: Whether the fused model is faster. Only calls in turn can show it: what the machine
            does between two separate measurements is part of their ratio.
    """

    unfused: Record
    fused: Record
    setting: str
    ratio: Ratio
    verdict: str


class View:
    """The records of a report, arranged for display.

    Attributes:
        records: The records, in the order of the file.
        columns: The columns with values, without the settings that all records share.
        shared: The settings that all records share, by title.
        environments: The distinct combinations of machine and versions.
        environment: For each record, its index in `environments`.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = list(records)
        self.environments: list[dict[str, Any]] = []
        self.environment = [self._environment_index(record) for record in self.records]
        self.shared: dict[str, Value] = {}
        self._settings = [RUNTIME]
        for column in SETTINGS:
            values = {column.value(record) for record in self.records}
            if len(values) > 1:
                self._settings.append(column)
            elif (value := values.pop()) is not None:
                self.shared[column.title] = value
        if len(self.environments) > 1:
            self._settings.append(_machine_column(self))
        self.columns = [
            *NAMES,
            *self._settings,
            *(c for c in FIGURES if any(c.value(record) is not None for record in self.records)),
        ]

    def headline(self) -> str:
        """Return what was measured and where: models, processors, threads and runtimes."""
        models = list(dict.fromkeys(record["model"] for record in self.records))
        what = models[0] if len(models) == 1 else f"{len(models)} backbones"
        cpus = _distinct(machine.get("gpu") or machine.get("cpu") for machine in self._machines())
        threads = sorted({r["threads"] for r in self.records if r.get("threads") is not None})
        parts = [f"{what} on {_listed(cpus, 'machines')}" if cpus else what]
        if threads:
            plural = "" if threads == [1] else "s"
            parts.append(f"{_listed(list(map(str, threads)), 'numbers of')} thread{plural}")
        parts.append(_listed(_distinct(r["runtime"] for r in self.records), "runtimes"))
        return ", ".join(parts)

    def _machines(self) -> list[dict[str, Any]]:
        return [environment["machine"] for environment in self.environments]

    def summary(self) -> str:
        """Return the number of measurements and models, and the dates."""
        models = len({record["model"] for record in self.records})
        days = sorted({record["date"][:10] for record in self.records if record.get("date")})
        when = f", measured {' to '.join(dict.fromkeys((days[0], days[-1])))}" if days else ""
        parts = ((len(self.records), "measurement"), (models, "model"))
        return " of ".join(f"{n} {word}{'' if n == 1 else 's'}" for n, word in parts) + when

    def shared_settings(self) -> str:
        """Return a sentence with the settings that all records share."""
        settings = ", ".join(f"{title} {value}" for title, value in self.shared.items())
        return f"All measured with {settings}." if settings else ""

    def setting(self, record: Record) -> str:
        """Return the runtime of a record, and the settings in which the records differ."""
        return _named(self._settings, record)

    def points(self) -> dict[str, list[Point]]:
        """Return the points of the plot for each setting.

        The setting with most models comes first, and of equals the one with the lowest latencies.
        """
        groups: dict[str, list[Point]] = {}
        for row, record in enumerate(self.records):
            accuracy = published(record)
            point = Point(row, None, "", at_size=False, front=False)
            if accuracy is not None:
                at_size = tuple(record["input_size"][2:]) == accuracy.size
                point = Point(row, accuracy.top1, accuracy.source, at_size, front=False)
            groups.setdefault(self.setting(record), []).append(point)

        def order(item: tuple[str, list[Point]]) -> tuple[int, float]:
            records = [self.records[point.row] for point in item[1]]
            models = {record["model"] for record in records}
            return -len(models), median(record["p50_ms"] for record in records)

        ordered = sorted(groups.items(), key=order)
        return {setting: self._with_front(points) for setting, points in ordered}

    def pairs(self) -> list[Pair]:
        """Return the models that were measured unfused and fused with the same settings."""
        found: dict[tuple[Any, ...], dict[bool, Record]] = {}
        for record in self.records:
            if record.get("fused") is not None:
                args = repr(record.get("args"))
                key = (record["model"], args, _image(record), self.setting(record))
                found.setdefault(key, {})[record["fused"]] = record
        both = [(pair[False], pair[True]) for pair in found.values() if len(pair) == 2]
        return [self._pair(unfused, fused) for unfused, fused in both]

    def _pair(self, unfused: Record, fused: Record) -> Pair:
        setting, paired = self.setting(unfused), fused.get("paired")
        if paired is None:
            return Pair(unfused, fused, setting, ratio(unfused, fused), "not timed in turn")
        found = Ratio(paired["ratio"], paired.get("low"), paired.get("high"))
        return Pair(unfused, fused, setting, found, found.verdict)

    def _with_front(self, points: list[Point]) -> list[Point]:
        comparable = [point for point in points if point.at_size]
        values = [(self.records[p.row]["p50_ms"], p.top1 or 0.0) for p in comparable]
        best = {p.row for p, chosen in zip(comparable, front(values), strict=True) if chosen}
        return [Point(p.row, p.top1, p.source, p.at_size, front=p.row in best) for p in points]

    def _environment_index(self, record: Record) -> int:
        keys = ("machine", "versions")
        environment = {key: record.get(key) or {} for key in keys}
        if environment not in self.environments:
            self.environments.append(environment)
        return self.environments.index(environment)


def _distinct(values: Iterable[Any]) -> list[str]:
    return list(dict.fromkeys(str(value) for value in values if value))


def _listed(values: Sequence[str], what: str) -> str:
    """Write up to three values; of more, only how many there are."""
    return " and ".join(values) if len(values) <= 3 else f"{len(values)} {what}"


def _named(columns: Sequence[Column], record: Record) -> str:
    values = [(column, column.value(record)) for column in columns]
    return ", ".join(
        str(value) if column.kind == "text" else f"{column.title} {value}"
        for column, value in values
        if value is not None
    )


def _machine_column(view: View) -> Column:
    indices = {
        id(record): index for record, index in zip(view.records, view.environment, strict=True)
    }
    return Column(
        "machine",
        "machine",
        "number",
        "Number of the machine and versions listed below.",
        lambda record: indices[id(record)] + 1,
    )
