"""The page of `zoo fit`: one HTML file with everything that was found, which works offline."""

import base64
import csv
import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from zoo.errors import BadInput
from zoo.fitting.inspection import lines
from zoo.images import read_image

NAME = "fit.html"
THUMBNAIL = 112  # pixels
MOST_LISTED = 30  # groups of copies and broken files on the page

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { text-align: right; padding: .25rem .75rem; border-bottom: 1px solid #ccc; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; }
figure { display: inline-block; width: 9rem; margin: .5rem; vertical-align: top; }
figcaption { font-size: .75rem; overflow-wrap: anywhere; }
code { overflow-wrap: anywhere; }
@media (prefers-color-scheme: dark) { body { background: #111; color: #eee; } }
"""


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
        f"<h1>{_text(title)}</h1>",
        _list(verdict),
        "<h2>Artefacts</h2>",
        _artefacts(steps),
        "<h2>Images</h2>",
        _list(lines(data)),
        _classes(data, evaluation["float"]["report"]),
        _faults(data),
        "<h2>Training</h2>",
        _list(_training(steps)),
        _picture(_curves(folder / steps["train"]["run"] / "metrics.csv"), "learning curves"),
        "<h2>Mistakes</h2>",
        _picture(
            _read(folder / evaluation["float"]["folder"] / "confusion.png"), "confusion matrix"
        ),
    ]
    if steps["labels"]["doubted"]:
        parts += ["<h2>Labels in doubt</h2>", _suspects(steps["labels"], photos)]
    body = "\n".join(part for part in parts if part)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


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
    table = _table(("artefact", "file", "size", "median latency", "top-1 [95 %]", "macro-F1"), rows)
    failed = steps["int8"].get("error")
    return table + (f"<p>int8 failed: {_text(failed)}</p>" if failed else "")


def _classes(data: dict[str, Any], report: dict[str, Any]) -> str:
    scores = {row["class"]: row for row in report["classes"]}
    rows = []
    for row in data["classes"]:
        found = scores.get(row["class"], {})
        values = [found.get(key) for key in ("precision", "recall", "f1")]
        cells = ["–" if value is None else f"{value:.1%}" for value in values]
        rows.append((row["class"], row["train"], row["val"], *cells))
    return _table(("class", "training", "validation", "precision", "recall", "F1"), rows)


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
            parts.append(f"<h3>{_text(title)}</h3>{_list(shown)}")
    return "".join(parts)


def _suspects(found: dict[str, Any], photos: Path) -> str:
    """Return small pictures of the images whose labels are most in doubt."""
    figures = []
    for one in found["first"]:
        caption = f"{one['file']}: {one['class']}, or {one['suggested']}?"
        picture = _thumbnail(photos / one["file"])
        figures.append(f"<figure>{picture}<figcaption>{_text(caption)}</figcaption></figure>")
    words = (
        f"{found['doubted']} of the labels are not what a classifier of the other images predicts."
        f" All images, the most doubtful first: {found['file']}"
    )
    return f"<p>{_text(words)}</p><div>{''.join(figures)}</div>"


def _thumbnail(path: Path) -> str:
    """Return a small picture of an image; nothing if it is gone."""
    try:
        image = read_image(str(path), 3, str(path))
    except BadInput:
        return ""
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return _picture(buffer.getvalue(), path.name)


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


def _picture(content: bytes, title: str) -> str:
    if not content:
        return ""
    data = base64.b64encode(content).decode()
    return f'<img alt="{_text(title)}" src="data:image/png;base64,{data}">'


def _list(items: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{_text(item)}</li>" for item in items) + "</ul>"


def _table(heading: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    head = "".join(f"<th>{_text(cell)}</th>" for cell in heading)
    body = "".join(
        "<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _text(value: object) -> str:
    # Names of files may have bytes that are not UTF-8.
    return html.escape(str(value).encode("utf-8", "replace").decode())
