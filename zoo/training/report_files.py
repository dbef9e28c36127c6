"""Files of an evaluation report that several tasks write: JSON and CSV tables."""

import csv
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_report(
    folder: Path, report: dict[str, Any], write_files: Callable[[Path], None]
) -> list[str]:
    """Write `report.json` and further files to `folder`: all of them, or none.

    Args:
        folder: Created if it does not exist.
        report: The content of `report.json`, plain values.
        write_files: Writes the other files to the folder that it is called with.

    Returns:
        The names of the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".part") as part:
        (Path(part) / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
        write_files(Path(part))
        files = sorted(Path(part).iterdir())
        for file in files:
            with file.open("rb") as written:
                os.fsync(written.fileno())
        for file in files:
            os.replace(file, folder / file.name)
        return [file.name for file in files]


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
