"""What an evaluation says: intervals, a table of classes, the confusion matrix, files of them."""

import csv
import json
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor

from zoo.training.validation import Validation

Z95 = 1.959963984540054  # the normal distribution's 97.5 % point


def wilson(share: float, n: int, z: float = Z95) -> tuple[float, float]:
    """Return the interval that holds a proportion with 95 % confidence (Wilson's, 1927).

    Args:
        share: The observed proportion.
        n: Of how many.
        z: Quantile of the normal distribution.
    """
    if n == 0:
        return 0.0, 1.0
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, center - half), min(1.0, center + half)


def per_class(confusion: Tensor, names: list[str]) -> list[dict[str, Any]]:
    """Return name, n, precision, recall and F1 of every class; None where nothing defines it.

    Args:
        confusion: Images of class row taken for class column, K K.
        names: Of the K classes.
    """
    right = confusion.diag().tolist()
    actual, predicted = confusion.sum(dim=1).tolist(), confusion.sum(dim=0).tolist()
    return [
        {
            "class": name,
            "n": n,
            "precision": hits / taken if taken else None,
            "recall": hits / n if n else None,
            "f1": 2 * hits / (n + taken) if n + taken else None,
        }
        for name, hits, n, taken in zip(names, right, actual, predicted, strict=True)
    ]


def summarize(found: Validation, names: list[str]) -> dict[str, Any]:
    """Return everything that is known of an evaluation as plain values."""
    low, high = wilson(found.top1, found.images)
    low_k, high_k = wilson(found.topk, found.images)
    return {
        "images": found.images,
        "top1": {"value": found.top1, "low": low, "high": high},
        f"top{found.k}": {"value": found.topk, "low": low_k, "high": high_k},
        "interval": "95 %, Wilson",
        "loss": found.loss,
        "classes": per_class(found.confusion, names),
        "confusion": found.confusion.tolist(),
    }


def show(console: Console, title: str, report: dict[str, Any], most: int = 40) -> None:
    """Print the accuracies and the table of classes, the worst `most` of them if there are more."""
    console.print(title, markup=False)
    for name in (key for key in report if key.startswith("top")):
        entry = report[name]
        console.print(
            f"{name} {entry['value']:.2%}  [{entry['low']:.2%}, {entry['high']:.2%}]"
            f" (95 % confidence, {report['images']} images)",
            markup=False,
        )
    console.print(f"loss {report['loss']:.4f}")
    rows = report["classes"]
    if len(rows) > most:
        rows = sorted(rows, key=lambda row: row["f1"] if row["f1"] is not None else 2.0)[:most]
        console.print(f"the {most} classes with the lowest F1:")
    table = Table("class", *(("n", "precision", "recall", "F1")))
    for row in rows:
        cells = (
            "–" if row[key] is None else f"{row[key]:.3f}" for key in ("precision", "recall", "f1")
        )
        table.add_row(str(row["class"]), str(row["n"]), *cells)
    console.print(table)


def write(folder: Path, report: dict[str, Any], fill: Callable[[Path], None]) -> None:
    """Write `report.json` and what `fill` writes into `folder`.

    All are made elsewhere first: either all of them appear, or none.

    Args:
        folder: Made if need be.
        report: Plain values.
        fill: Called with a folder to write more files to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".part") as part:
        (Path(part) / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
        fill(Path(part))
        for file in sorted(Path(part).iterdir()):
            os.replace(file, folder / file.name)


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows of the same columns as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_confusion(path: Path, confusion: list[list[int]], names: list[str]) -> None:
    """Write a confusion matrix as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["actual \\ predicted", *names])
        table.writerows([name, *line] for name, line in zip(names, confusion, strict=True))


def class_names(data: Any) -> list[str]:
    """Return the names of the classes of a datamodule; their numbers where they have none."""
    return data.class_names or [str(number) for number in range(data.num_classes)]


def draw_confusion(path: Path, confusion: list[list[int]], names: list[str]) -> None:
    """Draw a confusion matrix: shares of each actual class, with the counts if they fit."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    few = len(names) <= 30
    edge = 2.5 + 0.45 * len(names) if few else 12
    figure = Figure(figsize=(edge, edge), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shares = [[n / max(sum(row), 1) for n in row] for row in confusion]
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the actual class")
    axes.set(xlabel="predicted", ylabel="actual")
    if few:
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
        for y, row in enumerate(confusion):
            for x, n in enumerate(row):
                if n:
                    color = "white" if shares[y][x] > 0.5 else "black"
                    axes.text(x, y, str(n), ha="center", va="center", color=color, fontsize=8)
    figure.savefig(path, dpi=120)
