"""The task of naming what every pixel of an image shows."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchmetrics import MetricCollection, SumMetric
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassJaccardIndex,
)

from zoo.data.pairs import IGNORE
from zoo.training import dense_losses, pictures, report
from zoo.training.tasks import (
    Batches,
    DenseTask,
    Forward,
    Result,
    denormalized,
    examples,
    outputs_of,
)

DRAWN = 6  # images in the picture


@dataclass
class Labelling(Result):
    """What a model got right.

    Attributes:
        images: How many images.
        mean_iou: Intersection over union of prediction and label over the whole set, a mean over
            the classes that occur in either.
        accuracy: Share of pixels whose class is right.
        loss: Mean cross-entropy of a pixel, nats.
        ious: Of each class, K; 0 where it occurs in neither.
        confusion: Pixels of class row taken for class column, K K.
    """

    images: int
    mean_iou: float
    accuracy: float
    loss: float
    ious: Tensor
    confusion: Tensor

    @property
    def score(self) -> float:
        return self.mean_iou

    def metrics(self) -> dict[str, float]:
        return {
            "val/loss": self.loss,
            "val/mean_iou": self.mean_iou,
            "val/pixel_accuracy": self.accuracy,
        }

    def words(self) -> str:
        return (
            f"mean IoU {self.mean_iou:.4f}, pixel accuracy {self.accuracy:.2%},"
            f" loss {self.loss:.4f}"
        )


class Segmentation(DenseTask):
    """One class for each pixel; what is labelled 255 is not judged."""

    name: ClassVar[str] = "segmentation"
    loss: ClassVar[str] = "cross-entropy"

    def best(self, score: float) -> str:
        return f"mean IoU {score:.4f}"

    @torch.inference_mode()
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
    ) -> Labelling:
        judges = _judges(data.num_classes).to(device)
        loss, pixels, count = (SumMetric(nan_strategy="disable").to(device) for _ in range(3))
        cross_entropy = dense_losses.PixelCrossEntropy()
        for images, labels in itertools.islice(batches, limit):
            images = images.to(device, non_blocking=True, memory_format=memory_format)
            labels = labels.to(device, non_blocking=True)
            logits = model(images).float()
            counted = (labels != IGNORE).sum()
            judges.update(logits.argmax(dim=1), labels)
            loss.update(cross_entropy(logits, labels) * counted)
            pixels.update(counted)
            count.update(len(images))
            after_batch()
        found = judges.compute()
        return Labelling(
            images=int(count.compute()),
            mean_iou=float(found["mean_iou"]),
            accuracy=float(found["accuracy"]),
            loss=float(loss.compute() / pixels.compute()),
            ious=found["ious"].cpu(),
            confusion=found["confusion"].cpu(),
        )

    def report(self, found: Labelling, data: Any) -> dict[str, Any]:
        names = report.class_names(data)
        pixels = found.confusion.sum(dim=1)
        right = found.confusion.diag()
        rows = zip(names, pixels.tolist(), right.tolist(), found.ious.tolist(), strict=True)
        taken = found.confusion.sum(dim=0).tolist()
        return {
            "images": found.images,
            "mean_iou": found.mean_iou,
            "pixel_accuracy": found.accuracy,
            "loss": found.loss,
            "classes": [
                {
                    "class": name,
                    "pixels": count,
                    "iou": iou if count or other else None,
                    "accuracy": hits / count if count else None,
                }
                for (name, count, hits, iou), other in zip(rows, taken, strict=True)
            ],
            "confusion": found.confusion.tolist(),
        }

    def show(self, console: Console, title: str, report: dict[str, Any]) -> None:
        console.print(title, markup=False)
        console.print(
            f"mean IoU {report['mean_iou']:.4f}, pixel accuracy {report['pixel_accuracy']:.2%}"
            f" ({report['images']} images)",
            markup=False,
        )
        table = Table()
        for column in ("class", "pixels", "IoU", "accuracy"):
            table.add_column(column, justify="left" if column == "class" else "right")
        for row in report["classes"]:
            shares = ("-" if row[key] is None else f"{row[key]:.4f}" for key in ("iou", "accuracy"))
            table.add_row(row["class"], f"{row['pixels']:,}", *shares)
        console.print(table)

    def write(self, folder: Path, report_: dict[str, Any]) -> None:
        names = [row["class"] for row in report_["classes"]]
        report.write_table(folder / "classes.csv", report_["classes"])
        report.write_confusion(folder / "confusion.csv", report_["confusion"], names)
        percent = [[round(100 * n / max(sum(row), 1)) for n in row] for row in report_["confusion"]]
        report.draw_confusion(folder / "confusion.png", percent, names)

    def draw(self, folder: Path, model: Forward, data: Any, device: torch.device) -> None:
        """Draw `predictions.png`: images, labels and predictions side by side."""
        images, labels = examples(data, DRAWN)
        chosen = outputs_of(model, images, device).argmax(dim=1)
        pictures.draw_labels(
            folder / "predictions.png",
            denormalized(data, images),
            labels,
            chosen,
            report.class_names(data),
        )


def _judges(num_classes: int) -> MetricCollection:
    """What is counted; metrics of the same counts share them."""
    common: dict[str, Any] = {
        "num_classes": num_classes,
        "ignore_index": IGNORE,
        "validate_args": False,
    }
    return MetricCollection(
        {
            "mean_iou": MulticlassJaccardIndex(average="macro", **common),
            "ious": MulticlassJaccardIndex(average="none", **common),
            "confusion": MulticlassConfusionMatrix(**common),
            "accuracy": MulticlassAccuracy(average="micro", **common),
        },
        compute_groups=[["mean_iou", "ious", "confusion"], ["accuracy"]],
    )


TASK = Segmentation()
