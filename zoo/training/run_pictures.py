"""Pictures of a run: a batch as the model sees it, and the learning curves."""

import csv
import math
from pathlib import Path
from typing import Any

from zoo.training import pictures
from zoo.training.report_files import class_names
from zoo.training.tasks import denormalized

IMAGES = 16
FIRST = "batch.png"  # in the run folder
CURVES = "curves.png"  # in the run folder
_LEFT_OUT = ("epoch", "update", "lr", "images_per_s")


def draw_batch(folder: Path, loop: Any) -> Path | None:
    """Draw images of the first epoch after augmentation, with their labels; None for shards."""
    data = loop.components.data
    if data.streaming:
        return None
    dataset = loop.loader.dataset
    chosen = [(0, index) for index in range(min(IMAGES, len(dataset)))]
    loaded = dataset.load(chosen)
    images, targets = loaded[0], loaded[1]
    captions = [""] * len(images)
    if data.task == "classification":
        names = class_names(data)
        captions = [names[int(target)] for target in targets]
    elif data.task == "multi-label":
        names = class_names(data)
        captions = [
            ", ".join(name for name, value in zip(names, row, strict=True) if value) or "–"
            for row in targets.tolist()
        ]
    title = f"{data.config.name}: training images of epoch 1, as the model sees them"
    pictures.draw_captioned(folder / FIRST, denormalized(data, images), captions, title)
    return folder / FIRST


def draw_curves(folder: Path) -> Path | None:
    """Draw the columns of `metrics.csv`; None without such a table."""
    table = folder / "metrics.csv"
    if not table.is_file():
        return None
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name not in _LEFT_OUT] if rows else []
    names = [name for name in names if name.count("/") < 2]  # without those of single classes
    columns = {name: [_number(row.get(name)) for row in rows] for name in names}
    if not columns:
        return None
    pictures.draw_curves(folder / CURVES, columns, folder.name)
    return folder / CURVES


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan
