"""What a report shows of records: rows with all their figures, groups that may be compared.

Markdown and the page are two ways to write this down; nothing is computed there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from zoo import registry
from zoo.reports.changes import Ratio, ratio
from zoo.reports.pareto import front, published
from zoo.reports.records import Record
from zoo.reports.table import fused_word

Value = str | float | int | None


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        key: Its name in the data of the page.
        title: Its heading.
        kind: `"text"`, `"count"` (12.3 M), `"ms"`, `"bytes"`, `"joules"`, `"percent"`, `"number"`.
        help: What the figure is, in a sentence.
        value: How to get it from a record.
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


def _rate(record: Record) -> float | None:
    return 1e3 * record["input_size"][0] / record["p50_ms"] if record["p50_ms"] else None


def _runtime(record: Record) -> str:
    version = (record.get("runtime_version") or "").split("-")[0]  # some append their build
    return f"{record['runtime']} {version}".strip()


def _top1(record: Record) -> float | None:
    accuracy = published(record)
    return accuracy.top1 if accuracy else None


def family(name: str) -> str:
    """Return what a model is grouped under: its family, or the package it is from."""
    if "/" in name:
        return name.split("/")[0]
    return registry.get_spec(name).family if registry.is_model(name) else ""


# What rows must agree in to be compared; stated once where all do.
RUNTIME = Column("runtime", "runtime", "text", "What executed it, and its version.", _runtime)
SETTINGS = (
    Column("batch", "batch", "number", "Images in a call.", lambda r: r["input_size"][0]),
    Column("threads", "threads", "number", "Threads that shared a call.", _field("threads")),
    Column("dtype", "dtype", "text", "The type in which it computed.", _field("dtype")),
    Column("layout", "layout", "text", "Order of the images in memory.", _field("layout")),
    Column("device", "device", "text", "Where it computed.", _field("device")),
)
NAMES = (
    Column("model", "model", "text", "Name for zoo.create_model.", _field("model")),
    Column(
        "form",
        "form",
        "text",
        "fused: re-parameterised, batch norms folded; unfused: as trained.",
        lambda r: fused_word(r.get("fused")),
    ),
    Column("image", "image", "text", "Height x width.", _image),
)
_INTERVAL = "95 % confidence interval of the median: "
FIGURES = (
    Column("top1", "top-1", "percent", "Published, on ImageNet-1k; the best there is.", _top1),
    Column("params", "params", "count", "Parameters.", _field("params")),
    Column("macs", "MACs", "count", "Multiply-accumulates of one image.", _field("macs")),
    Column("p50_ms", "p50 ms", "ms", "Median time of a call, the whole batch.", _field("p50_ms")),
    Column("low_ms", "low", "ms", _INTERVAL + "its lower end.", _field("low_ms")),
    Column("high_ms", "high", "ms", _INTERVAL + "its upper end.", _field("high_ms")),
    Column("p90_ms", "p90", "ms", "90 % of the calls were faster.", _field("p90_ms")),
    Column("p99_ms", "p99", "ms", "99 % of the calls were faster.", _field("p99_ms")),
    Column("min_ms", "min", "ms", "The fastest call.", _field("min_ms")),
    Column("n", "n", "number", "Calls that were kept.", _field("n")),
    Column("rate", "images/s", "number", "Images a second, at the median.", _rate),
    Column("first_call_ms", "cold ms", "ms", "The very first call.", _field("first_call_ms")),
    Column("load_ms", "load ms", "ms", "Loading the model into the runtime.", _field("load_ms")),
    Column(
        "peak_memory_bytes",
        "memory",
        "bytes",
        "Growth of the process (CUDA: of the allocator) at the peak of a call.",
        _field("peak_memory_bytes"),
    ),
    Column("energy_j", "energy", "joules", "Of one call, by the counters.", _field("energy_j")),
    Column("flops", "FLOPs", "count", "2 x MACs + elementwise, one image.", _field("flops")),
    Column("activations", "activations", "count", "Written, one image.", _field("activations")),
    Column(
        "peak_activation_bytes",
        "peak activations",
        "bytes",
        "The most that inputs and results of one image take at once, parameters aside.",
        _field("peak_activation_bytes"),
    ),
    Column("intensity", "FLOP/byte", "number", "FLOPs for each byte moved.", _field("intensity")),
    Column("family", "family", "text", "Family, or timm.", lambda r: family(r["model"])),
)


@dataclass(frozen=True)
class Point:
    """A record in the plot of accuracy and latency.

    Attributes:
        row: Its place in the records.
        top1: As published.
        source: Where that stands.
        at_size: Whether it was measured at the image size that the accuracy was published for.
        front: Whether nothing measured alike is as fast and more accurate; False off that size.
    """

    row: int
    top1: float
    source: str
    at_size: bool
    front: bool


@dataclass(frozen=True)
class Pair:
    """One model as trained and re-parameterised, measured alike.

    Attributes:
        unfused: Its record as trained.
        fused: Its record when re-parameterised.
        setting: The runtime, and the settings in which records differ.
        ratio: Time of fused divided by time of unfused.
    """

    unfused: Record
    fused: Record
    setting: str
    ratio: Ratio


class View:
    """Records, sorted out.

    Attributes:
        records: As they stand in the file.
        columns: Those in which records have something to tell, and do not all say the same.
        shared: What all records agree in: settings by their titles.
        environments: Machine and versions of each different one.
        environment: For each record, its place in `environments`.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = list(records)
        self.environments: list[dict[str, Any]] = []
        self.environment = [self._place(record) for record in self.records]
        self.shared: dict[str, Value] = {}
        self._settings = [RUNTIME]
        for column in SETTINGS:
            values = {column.value(record) for record in self.records}
            if len(values) > 1:
                self._settings.append(column)
            elif (value := values.pop()) is not None:
                self.shared[column.title] = value
        if len(self.environments) > 1:
            self._settings.append(_where(self))
        self.columns = [
            *NAMES,
            *self._settings,
            *(c for c in FIGURES if any(c.value(record) is not None for record in self.records)),
        ]

    def summary(self) -> str:
        """Say how much there is, and of when."""
        models = len({record["model"] for record in self.records})
        days = sorted({record["date"][:10] for record in self.records if record.get("date")})
        when = f", measured {' to '.join(dict.fromkeys((days[0], days[-1])))}" if days else ""
        parts = ((len(self.records), "measurement"), (models, "model"))
        return " of ".join(f"{n} {word}{'' if n == 1 else 's'}" for n, word in parts) + when

    def stated(self) -> str:
        """Say what all records agree in."""
        said = ", ".join(f"{title} {value}" for title, value in self.shared.items())
        return f"All with {said}." if said else ""

    def setting(self, record: Record) -> str:
        """Name what a record was measured under, except for model, form and image."""
        return _named([*self._settings, *(c for c in SETTINGS if c not in self._settings)], record)

    def points(self) -> dict[str, list[Point]]:
        """Return the points of the plot for every setting, those with most points first."""
        groups: dict[str, list[Point]] = {}
        for row, record in enumerate(self.records):
            accuracy = published(record)
            if accuracy is not None and record["p50_ms"] > 0:
                at_size = tuple(record["input_size"][2:]) == accuracy.size
                point = Point(row, accuracy.top1, accuracy.source, at_size, False)
                groups.setdefault(self.setting(record), []).append(point)
        ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
        return {setting: self._with_front(points) for setting, points in ordered}

    def pairs(self) -> list[Pair]:
        """Return every model that was measured both ways under the same setting."""
        found: dict[tuple[Any, ...], dict[bool, Record]] = {}
        for record in self.records:
            if record.get("fused") is not None:
                args = repr(record.get("args"))
                key = (record["model"], args, _image(record), self.setting(record))
                found.setdefault(key, {})[record["fused"]] = record
        both = [(forms[False], forms[True]) for forms in found.values() if len(forms) == 2]
        return [Pair(a, b, _named(self._settings, a), ratio(a, b)) for a, b in both]

    def _with_front(self, points: list[Point]) -> list[Point]:
        sound = [point for point in points if point.at_size]
        places = [(self.records[p.row]["p50_ms"], p.top1) for p in sound]
        chosen = {p.row for p, best in zip(sound, front(places), strict=True) if best}
        return [Point(p.row, p.top1, p.source, p.at_size, front=p.row in chosen) for p in points]

    def _place(self, record: Record) -> int:
        keys = ("machine", "versions")
        environment = {key: record.get(key) or {} for key in keys}
        if environment not in self.environments:
            self.environments.append(environment)
        return self.environments.index(environment)


def _named(columns: Sequence[Column], record: Record) -> str:
    values = [(column, column.value(record)) for column in columns]
    return ", ".join(
        str(value) if column.kind == "text" else f"{column.title} {value}"
        for column, value in values
        if value is not None
    )


def _where(view: View) -> Column:
    places = {
        id(record): place for record, place in zip(view.records, view.environment, strict=True)
    }
    return Column(
        "machine",
        "machine",
        "number",
        "Which of the machines and sets of versions described below.",
        lambda record: places[id(record)] + 1,
    )
