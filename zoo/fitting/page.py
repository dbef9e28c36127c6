"""The page of `zoo fit`: one HTML file with everything that was found, which works offline."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo.errors import BadInput
from zoo.fitting.inspection import lines
from zoo.images import read_image
from zoo.reports import html_parts as html

NAME = "fit.html"
THUMBNAIL = 112  # pixels
MOST_LISTED = 30  # groups of copies and broken files on the page


def render(steps: dict[str, Any], folder: Path, photos: Path, verdict: Sequence[str]) -> str:
    """Return the HTML of the page.

    Args:
        steps: What each step found.
        folder: The folder of the command, with the pictures.
        photos: The folder of the images.
        verdict: The result in sentences.
    """
    chosen, data = steps["choose"], steps["inspect"]
    title = f"{chosen['model']} on {steps['inspect']['name']}"
    evaluation = steps["evaluate"]
    parts = [
        html.bullets(verdict),
        "<h2>Artefacts</h2>",
        _artefacts(steps),
        "<h2>Images</h2>",
        html.bullets(lines(data)),
        _classes(data, evaluation["float"]["report"]),
        _faults(data),
        "<h2>Training</h2>",
        html.bullets(_training(steps)),
        html.picture(_curves(folder / steps["train"]["run"] / "metrics.csv"), "learning curves"),
        "<h2>Mistakes</h2>",
        _reports(evaluation),
        html.picture(
            _read(folder / evaluation["float"]["folder"] / "confusion.png"), "confusion matrix"
        ),
    ]
    if steps["labels"]["doubted"]:
        parts += ["<h2>Labels in doubt</h2>", _suspects(steps["labels"], photos)]
    return html.document(title, parts)


def _reports(evaluation: dict[str, Any]) -> str:
    """Return links to the pages of `zoo eval`, and what the files changed."""
    shown = []
    for form, found in evaluation.items():
        changes = found["report"].get("changes")
        if changes is None:  # of an older version of this package
            continue
        shown.append(
            f"<li>{html.text(form)}: {html.link(found['folder'] + '/report.html')};"
            f" {changes['flipped']} of {changes['images']} predictions differ from those of the"
            f" checkpoint, top-1 by {100 * changes['difference']:+.2f} points"
            f" [{100 * changes['low']:+.2f}, {100 * changes['high']:+.2f}]</li>"
        )
    return f"<ul>{''.join(shown)}</ul>"


def percent(entry: dict[str, float]) -> str:
    """Return a share of a report with its interval."""
    return f"{entry['value']:.2%} [{entry['low']:.2%}, {entry['high']:.2%}]"


def _artefacts(steps: dict[str, Any]) -> str:
    rows = []
    for form in ("float", "int8"):
        found = steps["evaluate"].get(form)
        if found is not None:
            report = found["report"]
            rows.append(
                (
                    form,
                    found["artefact"],
                    f"{found['bytes'] / 1e6:.2f} MB",
                    f"{found['p50_ms']:.2f} ms" if found["p50_ms"] else "–",
                    percent(report["top1"]),
                    f"{report['macro_f1']:.2%}",
                )
            )
    table = html.table(
        ("artefact", "file", "size", "median latency", "top-1 [95 %]", "macro-F1"), rows
    )
    failed = steps["int8"].get("error")
    return table + (f"<p>int8 failed: {html.text(failed)}</p>" if failed else "")


def _classes(data: dict[str, Any], report: dict[str, Any]) -> str:
    scores = {row["class"]: row for row in report["classes"]}
    rows = []
    for row in data["classes"]:
        found = scores.get(row["class"], {})
        values = [found.get(key) for key in ("precision", "recall", "f1")]
        cells = ["–" if value is None else f"{value:.1%}" for value in values]
        rows.append((row["class"], row["train"], row["val"], *cells))
    return html.table(("class", "training", "validation", "precision", "recall", "F1"), rows)


def _faults(data: dict[str, Any]) -> str:
    parts = []
    broken = [f"{one['file']}: {one['reason']}" for one in data["broken"]]
    for title, items in (
        ("Files that cannot be read", broken),
        ("Copies in several classes: one label is wrong", _joined(data["copies_across_classes"])),
        ("Copies in both halves", _joined(data["copies_across_split"])),
        ("Copies", _joined(data["copies"])),
    ):
        if items:
            more = len(items) - MOST_LISTED
            shown = [*items[:MOST_LISTED], *([f"and {more} more"] if more > 0 else [])]
            parts.append(f"<h3>{html.text(title)}</h3>{html.bullets(shown)}")
    return "".join(parts)


def _suspects(found: dict[str, Any], photos: Path) -> str:
    """Return small pictures of the images whose labels are most in doubt."""
    figures = []
    for one in found["first"]:
        caption = f"{one['file']}: {one['class']}, or {one['suggested']}?"
        picture = _thumbnail(photos / one["file"])
        figures.append(html.figure(picture, caption))
    words = (
        f"{found['doubted']} of the labels are not what a classifier of the other images predicts."
        f" All images, the most doubtful first: {found['file']}"
    )
    return f"<p>{html.text(words)}</p><div>{''.join(figures)}</div>"


def _thumbnail(path: Path) -> str:
    """Return a small picture of an image; nothing if it is gone."""
    try:
        image = read_image(str(path), 3, str(path))
    except BadInput:
        return ""
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return html.picture(buffer.getvalue(), path.name)


def _joined(groups: Sequence[Sequence[str]]) -> list[str]:
    return [" = ".join(group) for group in groups]


def _training(steps: dict[str, Any]) -> list[str]:
    chosen, trained = steps["choose"], steps["train"]
    start = {
        "published": "started from the published weights",
        "none": f"started from random weights: {chosen['reason']}",
    }.get(chosen["weights"], f"started from {chosen['weights']}")
    return [
        f"{chosen['model']} at {chosen['image_size']} pixels; {start}",
        f"{trained['epochs']} epochs, the best is epoch {trained['best_epoch']}"
        f" by {chosen['best']} ({trained['score']:.2%})",
        f"the run: {trained['run']}",
    ]


def _curves(path: Path) -> bytes:
    """Return a picture of the losses and the accuracy of each epoch; empty without a table."""
    if not path.is_file():
        return b""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, names in zip(
        figure.subplots(1, 2),
        (("train/loss", "val/loss"), ("val/top1", "val/macro_f1")),
        strict=True,
    ):
        for name in names:
            axes.plot(
                [int(row["epoch"]) for row in rows], [float(row[name]) for row in rows], label=name
            )
        axes.set_xlabel("epoch")
        axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    return buffer.getvalue()


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""
