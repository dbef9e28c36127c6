"""Files of an evaluation report that several tasks write: JSON, CSV tables, confusion matrix."""

import csv
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_report(folder: Path, report: dict[str, Any], write_files: Callable[[Path], None]) -> None:
    """Write `report.json` and further files to `folder`: all of them, or none.

    Args:
        folder: Created if it does not exist.
        report: The content of `report.json`, plain values.
        write_files: Writes the other files to the folder that it is called with.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".part") as part:
        (Path(part) / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
        write_files(Path(part))
        for file in sorted(Path(part).iterdir()):
            os.replace(file, folder / file.name)


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows with the same columns as CSV."""
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
    """Return the class names of a data module, or the class numbers if it has no names."""
    return data.class_names or [str(number) for number in range(data.num_classes)]


def draw_confusion(path: Path, confusion: list[list[int]], names: list[str]) -> None:
    """Draw a confusion matrix: shares of each actual class, and the counts of up to 30 classes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    has_labels = len(names) <= 30
    side = 2.5 + 0.45 * len(names) if has_labels else 12  # inches
    figure = Figure(figsize=(side, side), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shares = [[n / max(sum(row), 1) for n in row] for row in confusion]
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the actual class")
    axes.set(xlabel="predicted", ylabel="actual")
    if has_labels:
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
        for y, row in enumerate(confusion):
            for x, n in enumerate(row):
                if n:
                    color = "white" if shares[y][x] > 0.5 else "black"
                    axes.text(x, y, str(n), ha="center", va="center", color=color, fontsize=8)
    figure.savefig(path, dpi=120)
