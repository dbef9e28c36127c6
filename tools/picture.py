"""The picture of the README: published ImageNet-1k accuracy over measured CPU latency.

`make generated` draws `docs/accuracy_latency.svg` from `results/models.jsonl` and `zoo/facts`, if
the points have changed. The same records give the same file.
"""

import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

from tools.project import ROOT
from zoo import registry
from zoo.errors import BadInput
from zoo.reports.records import Record

FILE = ROOT / "docs" / "accuracy_latency.svg"

# Seven colours of Okabe and Ito that are visible on white. Readers with a colour vision deficiency
# can tell them apart; families that share a colour have different markers.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_MARKERS = ("o", "s", "^")

_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "svg.hashsalt": "accuracy_latency",  # the names of clip paths would be random otherwise
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_GAP = 1.5  # points around a label
_DISTANCES = (5, 12, 20, 30, 42, 56, 72)  # points between a model and its label
_DIRECTIONS = ((1, 0), (0, 1), (-1, 0), (0, -1), (0.7, 0.7), (-0.7, 0.7), (0.7, -0.7), (-0.7, -0.7))


@dataclass(frozen=True)
class Point:
    """A model in the picture.

    Attributes:
        latency: Lowest median of all runtimes, in ms.
        top1: Best published accuracy, in percent.
    """

    latency: float
    top1: float


def machine(records: Sequence[Record]) -> str:
    """Return the processor with the most records: latencies of others are not comparable."""
    processors = Counter(record["machine"].get("cpu", "unknown") for record in records)
    return processors.most_common(1)[0][0] if processors else ""


def points(records: Sequence[Record]) -> dict[str, list[Point]]:
    """Return the models of each family, from fast to slow.

    These are the ImageNet-1k classifiers that have an accuracy and a latency on the `machine` at
    the same image size, the model's own.
    """
    chosen = machine(records)
    fastest: dict[str, float] = {}
    for record in records:
        if record["machine"].get("cpu", "unknown") != chosen:
            continue
        name = record["model"]
        if registry.is_packaged(name) and tuple(record["input_size"][2:]) == _size(name):
            fastest[name] = min(record["p50_ms"], fastest.get(name, record["p50_ms"]))
    found: dict[str, list[Point]] = {}
    for name, latency in fastest.items():
        top1 = _top1(name)
        if top1 is not None:
            found.setdefault(registry.get_spec(name).family, []).append(Point(latency, top1))
    return {
        family: sorted(found[family], key=lambda point: (point.latency, point.top1))
        for family in sorted(found)
    }


def _top1(name: str) -> float | None:
    """Return the best accuracy that was published for images of the model's own size."""
    spec = registry.get_spec(name)
    if spec.task != "classification" or spec.num_classes != 1000:
        return None
    found = []
    for entry in spec.facts.get("published", []):
        other = re.search(r"(\d+) pixels", entry.get("source", ""))
        if "top1" in entry and (other is None or {int(other[1])} == set(_size(name))):
            found.append(entry["top1"])
    return max(found, default=None)


def _size(name: str) -> tuple[int, ...]:
    """Return the sides of the images that a model was published for."""
    return tuple(registry.get_spec(name).facts.get("input", {}).get("size", ()))[1:]


def digest(families: dict[str, list[Point]]) -> str:
    """Return a hash of the points; the picture contains it."""
    values = {
        family: [[round(p.latency, 4), p.top1] for p in row] for family, row in families.items()
    }
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def render(records: Sequence[Record]) -> str:
    """Return the picture as SVG.

    Raises:
        BadInput: There are no records, or no free place for a name.
    """
    families = points(records)
    if not families:
        raise BadInput("there are no latencies to draw; run `make results`")
    with matplotlib.rc_context(_STYLE):
        figure = draw(families)
        file = io.StringIO()
        about = {"Date": None, "Description": f"data {digest(families)}"}
        figure.savefig(file, format="svg", metadata=about)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def draw(families: dict[str, list[Point]]) -> Figure:
    """Return the figure, with a label for each family."""
    figure = Figure(figsize=(8.4, 5.0), layout="constrained")
    renderer = FigureCanvasAgg(figure).get_renderer()  # measures labels
    axes = figure.add_subplot()
    axes.set_xscale("log")
    ticks = [2, 5, 10, 20, 50, 100, 200, 500, 1000]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel(
        "median latency of one image on one CPU core, in ms (the fastest form measured)"
    )
    axes.set_ylabel("published ImageNet-1k top-1, in %")
    axes.grid(alpha=0.25, linewidth=0.6)
    colours = {family: _COLOURS[i % len(_COLOURS)] for i, family in enumerate(families)}
    for number, (family, row) in enumerate(families.items()):
        axes.plot(
            [point.latency for point in row],
            [point.top1 for point in row],
            color=colours[family],
            marker=_MARKERS[number // len(_COLOURS) % len(_MARKERS)],
            markersize=4.5,
            linewidth=0.9,
        )
    figure.draw_without_rendering()  # constrained layout settles the axes
    figure.set_layout_engine("none")
    _label(figure, renderer, families, colours)
    return figure


def _label(
    figure: Figure, renderer: Any, families: dict[str, list[Point]], colours: dict[str, str]
) -> None:
    """Write the name of each family next to one of its models, without overlaps.

    Raises:
        BadInput: There is no free place for a name.
    """
    (axes,) = figure.axes
    scale = figure.dpi / 72
    taken = [_square(xy, 3.5 * scale) for line in axes.lines for xy in _on_screen(line)]
    taken += [_square(xy, 0.8 * scale) for line in axes.lines for xy in _along(line)]
    for family in sorted(families, key=lambda family: (len(families[family]), family)):
        row = families[family]
        order = [row[-1], row[0], *row[1:-1]]
        box = _label_family(figure, renderer, family, order, colours[family], taken)
        if box is None:
            raise BadInput(f"the picture has no free place for the name {family!r}; enlarge it")
        taken.append(box)


def _label_family(
    figure: Figure,
    renderer: Any,
    family: str,
    row: Sequence[Point],
    colour: str,
    taken: Sequence[Bbox],
) -> Bbox | None:
    """Write a label at the first free place near one of its models.

    Returns:
        The box of the label with a margin; None if there is no free place.
    """
    (axes,) = figure.axes
    inside = axes.get_window_extent()
    for distance in _DISTANCES:
        leader = {"arrowstyle": "-", "color": colour, "lw": 0.6, "shrinkA": 1, "shrinkB": 3}
        for point in row:
            for x, y in _DIRECTIONS:
                label = axes.annotate(
                    family,
                    (point.latency, point.top1),
                    (x * distance, y * distance),
                    textcoords="offset points",
                    ha=("right", "center", "left")[round(x) + 1],
                    va=("top", "center", "bottom")[round(y) + 1],
                    color=[0.7 * part for part in to_rgb(colour)],  # readable on white
                    fontsize=8,
                    arrowprops=leader if distance > _DISTANCES[0] else None,
                )
                label.update_positions(renderer)
                box = box_of(label).padded(_GAP * figure.dpi / 72)
                fits = inside.contains(box.x0, box.y0) and inside.contains(box.x1, box.y1)
                if fits and not any(box.overlaps(other) for other in taken):
                    return box
                label.remove()
    return None


def box_of(label: Annotation) -> Bbox:
    """Return the box of the text of a label, without its line."""
    return Text.get_window_extent(label)


def _square(centre: Sequence[float], half: float) -> Bbox:
    x, y = centre
    return Bbox.from_extents(x - half, y - half, x + half, y + half)


def _on_screen(line) -> list[tuple[float, float]]:
    return [tuple(xy) for xy in line.axes.transData.transform(line.get_xydata())]


def _along(line, steps: int = 24) -> list[tuple[float, float]]:
    """Return points on the segments of a line, in pixels."""
    corners = _on_screen(line)
    return [
        (a[0] + (b[0] - a[0]) * i / steps, a[1] + (b[1] - a[1]) * i / steps)
        for a, b in zip(corners[:-1], corners[1:], strict=True)
        for i in range(1, steps)
    ]


def is_current(records: Sequence[Record]) -> bool:
    """Return whether the picture shows the records; without any there is nothing to show."""
    families = points(records)
    text = FILE.read_text("utf-8") if FILE.is_file() else ""
    return not families or f"data {digest(families)}" in text
