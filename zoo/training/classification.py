"""The task of naming what an image shows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from rich.console import Console

from zoo.training import report, validation
from zoo.training.tasks import Batches, Forward, Task


class Classification(Task):
    """One class for each image."""

    name: ClassVar[str] = "classification"
    loss: ClassVar[str] = "cross-entropy"

    def best(self, score: float) -> str:
        return f"top-1 {score:.2%}"

    def validate(
        self,
        model: Forward,
        batches: Batches,
        data: Any,
        device: torch.device,
        *,
        limit: int | None = None,
        after_batch: Callable[[], None] = lambda: None,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> validation.Validation:
        return validation.validate(
            model,
            batches,
            data.num_classes,
            device,
            limit=limit,
            after_batch=after_batch,
            memory_format=memory_format,
        )

    def report(self, found: validation.Validation, data: Any) -> dict[str, Any]:
        return report.summarize(found, report.class_names(data))

    def show(self, console: Console, title: str, report_: dict[str, Any]) -> None:
        report.show(console, title, report_)

    def write(self, folder: Path, report_: dict[str, Any]) -> None:
        names = [row["class"] for row in report_["classes"]]
        report.write_table(folder / "classes.csv", report_["classes"])
        report.write_confusion(folder / "confusion.csv", report_["confusion"], names)
        report.draw_confusion(folder / "confusion.png", report_["confusion"], names)


TASK = Classification()
