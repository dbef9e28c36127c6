"""The tables of a sweep: a row for each cell, and one for each setting with mean and interval.

    cells.csv    every cell: its settings, how it ended, and the metrics of its last epoch
    table.csv    every setting: mean, 95 % interval, and the difference to the best, paired
    table.md     the same to read

They have neither times nor names of machines, so equal sweeps have equal tables.
"""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.reports.markdown import grid
from zoo.sweeping.cells import OF_A_MACHINE, Cell, cells_of
from zoo.training.disk import atomic_file
from zoo.training.run_comparison import PLAIN, half_width
from zoo.training.run_groups import default_metric

DIVERGED = "diverged"
_HIDDEN = {*OF_A_MACHINE, "train.seed", "data.fold", "train.out", "train.sweep", "train.resume"}
_HIDDEN -= {"data.root"}


@dataclass(frozen=True)
class Row:
    """A setting of a sweep.

    Attributes:
        name: Its name.
        values: The settings that differ within the sweep.
        cells: Number of its cells.
        diverged: Number of cells whose loss was not finite.
        scores: The score of each finished cell, by (seed, fold), in points if it is a share.
        folds: Number of folds; None without cross-validation.
    """

    name: str
    values: Mapping[str, Any]
    cells: int
    diverged: int
    scores: Mapping[tuple[int, int | None], float]
    folds: int | None

    @property
    def is_complete(self) -> bool:
        """Whether every cell has a score."""
        return len(self.scores) == self.cells

    @property
    def mean(self) -> float | None:
        """The mean score; None without one, or if a cell diverged."""
        if self.diverged or not self.scores:
            return None
        return math.fsum(self.scores.values()) / len(self.scores)

    def half(self) -> float | None:
        """Half the width of the 95 % interval of the mean; None if it has none."""
        return None if self.mean is None else _half(self.scores, self.folds)

    def minus(self, other: "Row") -> tuple[float, float] | None:
        """Return the mean difference of cells with equal seed and fold, and half its interval."""
        shared = {
            key: score - other.scores[key]
            for key, score in self.scores.items()
            if key in other.scores
        }
        if self.diverged or other.diverged or (half := _half(shared, self.folds)) is None:
            return None
        return math.fsum(shared.values()) / len(shared), half


def _half(scores: Mapping[tuple[int, int | None], float], folds: int | None) -> float | None:
    """Return half the width of an interval: over seeds, or over folds of the mean over seeds."""
    if folds is None:
        return half_width(list(scores.values()))
    by_fold: dict[Any, list[float]] = {}
    for (_, fold), score in scores.items():
        by_fold.setdefault(fold, []).append(score)
    means = [math.fsum(values) / len(values) for values in by_fold.values()]
    return half_width(means, folds=folds)


def rows_of(cells: Sequence[Cell]) -> tuple[str | None, list[Row]]:
    """Return the metric, and the settings in the order of their values.

    Raises:
        BadInput: A result is damaged.
    """
    results = {cell.folder: cell.result() for cell in cells if cell.is_finished()}
    done = [r["metrics"] for r in results.values() if r["outcome"] != DIVERGED]
    shared = [name for name in (done[0] if done else {}) if all(name in one for one in done)]
    metric = default_metric([name.removeprefix("val/") for name in shared])
    factor = 1 if metric in PLAIN else 100
    keys = varying(cells)
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.setting, []).append(cell)
    rows = []
    for name, members in groups.items():
        flat = members[0].flat()
        found = {(c.seed, c.fold): results[c.folder] for c in members if c.folder in results}
        scores = {
            key: factor * result["metrics"][f"val/{metric}"]
            for key, result in sorted(found.items(), key=lambda item: str(item[0]))
            if result["outcome"] != DIVERGED and metric is not None
        }
        diverged = sum(result["outcome"] == DIVERGED for result in found.values())
        values = {key: flat.get(key) for key in keys}
        rows.append(Row(name, values, len(members), diverged, scores, flat.get("data.folds")))
    return metric, sorted(rows, key=lambda row: [_order(v) for v in row.values.values()])


def varying(cells: Sequence[Cell]) -> list[str]:
    """Return the model, and the settings that are not equal in all cells."""
    settings = [cell.flat() for cell in cells]
    keys = sorted({key for flat in settings for key in flat} - _HIDDEN - {"model.name"})
    return ["model.name"] + [
        key for key in keys if any(flat.get(key) != settings[0].get(key) for flat in settings)
    ]


def _order(value: Any) -> tuple[int, float, str]:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return 1, float(value), ""
    return (0, 0.0, "") if value is None else (2, 0.0, _text(value))


def best_of(rows: Sequence[Row]) -> Row | None:
    """Return the complete setting with the highest mean, the first of equal ones."""
    complete = [row for row in rows if row.is_complete and row.mean is not None]
    return max(complete, key=lambda row: row.mean or 0.0, default=None)


def table_of(cells: Sequence[Cell]) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of the table of settings, with all digits."""
    metric, rows = rows_of(cells)
    best = best_of(rows)
    head = [*varying(cells), "finished", "cells", "diverged"]
    head += [metric or "score", "half_interval", "minus_best", "half_interval_of_difference"]
    lines = []
    for row in rows:
        step = None if best is None or row is best else row.minus(best)
        numbers = [row.mean, row.half(), *(step or (None, None))]
        counts = [len(row.scores), row.cells, row.diverged]
        texts = [_text(value) for value in row.values.values()]
        lines.append([*texts, *map(str, counts), *("" if n is None else repr(n) for n in numbers)])
    return head, lines


def page_of(cells: Sequence[Cell]) -> str:
    """Return the table of settings as Markdown."""
    metric, rows = rows_of(cells)
    best = best_of(rows)
    digits = 4 if metric in PLAIN else 2
    unit = "" if metric is None or metric in PLAIN else " (%)"
    repeats = "folds" if any(row.folds for row in rows) else "seeds"
    head = [*varying(cells), "cells", f"{metric or 'score'}{unit}", "difference to the best"]
    lines = []
    for row in rows:
        counts = f"{len(row.scores)} of {row.cells}"
        score = f"{row.diverged} diverged" if row.diverged else ""
        if row.mean is not None:
            score = f"{row.mean:.{digits}f}" + _plus_minus(row.half(), digits)
        lines.append(
            [*(_text(v) for v in row.values.values()), counts, score, _versus(row, best, digits)]
        )
    notes = [
        f"Intervals: 95 %, over {repeats}; differences are paired by seed"
        + (" and fold." if repeats == "folds" else "."),
    ]
    finished = sum(cell.is_finished() for cell in cells)
    if finished < len(cells):
        notes.append(f"{finished} of {len(cells)} cells are finished: the table is preliminary.")
    return "\n".join([grid(head, lines), "", *notes]) + "\n"


def _versus(row: Row, best: Row | None, digits: int) -> str:
    if best is None or row.mean is None:
        return ""
    if row is best:
        return "best"
    step = row.minus(best)
    if step is None:
        return f"{row.mean - (best.mean or 0.0):+.{digits}f}"
    mean, half = step
    verdict = "worse" if mean < -half else "no difference shown"
    return f"{mean:+.{digits}f}{_plus_minus(half, digits)}, {verdict}"


def _plus_minus(half: float | None, digits: int) -> str:
    return "" if half is None else f" ± {half:.{digits}f}"


def _cells_table(cells: Sequence[Cell]) -> tuple[list[str], list[list[str]]]:
    results = {cell.folder: cell.result() for cell in cells if cell.is_finished()}
    metrics = sorted({name for result in results.values() for name in result["metrics"]})
    keys = varying(cells)
    lines = []
    for cell in cells:
        flat, result = cell.flat(), results.get(cell.folder, {"outcome": "", "metrics": {}})
        texts = [_text(flat.get(key)) for key in keys]
        texts += [str(cell.seed), _text(cell.fold), f"runs/{cell.setting}/{cell.name}"]
        numbers = [result["metrics"].get(name) for name in metrics]
        lines.append([*texts, result["outcome"], *map(_text, numbers)])
    return [*keys, "seed", "fold", "run", "outcome", *metrics], lines


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)


def _csv(table: tuple[list[str], list[list[str]]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([table[0], *table[1]])
    return text.getvalue()


def write_tables(sweep: Path) -> None:
    """Write the three tables.

    A worker that read the results before another one finished a cell may write later. Each worker
    therefore looks again after writing, so the last one to write has seen all.

    Raises:
        BadInput: A cell or a result is damaged.
    """
    while True:
        cells = cells_of(sweep)
        finished = [cell.is_finished() for cell in cells]
        texts = {
            "cells.csv": _csv(_cells_table(cells)),
            "table.csv": _csv(table_of(cells)),
            "table.md": page_of(cells),
        }
        for name, text in texts.items():
            with atomic_file(sweep / name, "w", encoding="utf-8", newline="") as file:
                file.write(text)
        now = cells_of(sweep)
        if [cell.folder for cell in now] == [cell.folder for cell in cells] and finished == [
            cell.is_finished() for cell in now
        ]:
            return
