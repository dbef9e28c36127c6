"""The task of predicting a class for every pixel: metrics, report, and how it is shown."""

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

from zoo.binary import class_map
from zoo.data.pairs import IGNORE
from zoo.errors import BadInput
from zoo.training import dense_losses, pictures, report_files
from zoo.training.tasks import (
    DenseTask,
    Forward,
    Meter,
    Result,
    denormalized,
    predict,
    report_title,
    sample_validation,
)

IMAGES_DRAWN = 6


@dataclass
class SegmentationResult(Result):
    """Metrics of a segmentation model, without the pixels of the ignored class 255.

    Attributes:
        images: Number of images.
        mean_iou: Mean intersection over union of the classes that occur in the labels or the
            predictions. Intersections and unions are summed over the whole set.
        accuracy: Share of pixels with the correct class.
        loss: Mean cross-entropy of a pixel, nats.
        ious: Intersection over union of each class, K; 0 for a class that does not occur.
        confusion: Number of pixels by actual class (row) and predicted class (column), K K.
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

    def summary(self) -> str:
        return (
            f"mean IoU {self.mean_iou:.4f}, pixel accuracy {self.accuracy:.2%},"
            f" loss {self.loss:.4f}"
        )


class SegmentationMeter(Meter):
    """Accumulates IoU, accuracy and loss from logits N K H W and class numbers N H W.

    A single logit, K = 1, is that of the second of two classes.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        common: dict[str, Any] = {
            "num_classes": num_classes,
            "ignore_index": IGNORE,
            "validate_args": False,
        }
        self.metrics = MetricCollection(
            {
                "mean_iou": MulticlassJaccardIndex(average="macro", **common),
                "ious": MulticlassJaccardIndex(average="none", **common),
                "confusion": MulticlassConfusionMatrix(**common),
                "accuracy": MulticlassAccuracy(average="micro", **common),
            },
            compute_groups=[["mean_iou", "ious", "confusion"], ["accuracy"]],  # shared counts
        )
        self.cross_entropy = dense_losses.PixelCrossEntropy()
        self.loss_sum = SumMetric(nan_strategy="disable")
        self.pixels = SumMetric(nan_strategy="disable")
        self.images = SumMetric(nan_strategy="disable")

    def update(self, images: Tensor, outputs: Tensor, targets: Tensor) -> None:
        pixels = (targets != IGNORE).sum()
        self.metrics.update(class_map(outputs), targets)
        self.loss_sum.update(self.cross_entropy(outputs, targets) * pixels)
        self.pixels.update(pixels)
        self.images.update(len(images))

    def compute(self) -> SegmentationResult:
        pixels, images = int(self.pixels.compute()), int(self.images.compute())
        if not pixels:
            raise BadInput(
                f"no pixel of the validation masks has a class: in {images} images all are"
                f" {IGNORE}, which means no class; raise train.limit_val_batches or"
                " data.image_size, or check the masks (those of 0 and 255 need"
                " data.palette=[[0,0,0],[255,255,255]])"
            )
        values = self.metrics.compute()
        return SegmentationResult(
            images=images,
            mean_iou=float(values["mean_iou"]),
            accuracy=float(values["accuracy"]),
            loss=float(self.loss_sum.compute() / pixels),
            ious=values["ious"].cpu(),
            confusion=values["confusion"].cpu(),
        )


class Segmentation(DenseTask):
    """Predicts one class for every pixel; pixels labelled 255 are ignored."""

    name: ClassVar[str] = "segmentation"
    loss: ClassVar[str] = "cross-entropy"

    def format_score(self, score: float) -> str:
        return f"mean IoU {score:.4f}"

    def meter(self, data: Any) -> SegmentationMeter:
        return SegmentationMeter(data.num_classes)

    def report(self, result: SegmentationResult, data: Any) -> dict[str, Any]:
        columns = zip(
            report_files.class_names(data),
            result.confusion.sum(dim=1).tolist(),
            result.confusion.sum(dim=0).tolist(),
            result.confusion.diag().tolist(),
            result.ious.tolist(),
            strict=True,
        )
        return {
            "images": result.images,
            "mean_iou": result.mean_iou,
            "pixel_accuracy": result.accuracy,
            "loss": result.loss,
            "classes": [
                {
                    "class": name,
                    "pixels": pixels,
                    "iou": iou if pixels or predicted else None,
                    "accuracy": correct / pixels if pixels else None,
                }
                for name, pixels, predicted, correct, iou in columns
            ],
            "confusion": result.confusion.tolist(),
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

    def write(self, folder: Path, report: dict[str, Any]) -> None:
        confusion = report["confusion"]
        names = [row["class"] for row in report["classes"]]
        report_files.write_table(folder / "classes.csv", report["classes"])
        report_files.write_confusion(folder / "confusion.csv", confusion, names)
        percent = [[round(100 * n / max(sum(row), 1)) for n in row] for row in confusion]
        title = f"{report_title(report)}, mean IoU {report['mean_iou']:.4f}, % of the actual class"
        pictures.draw_confusion(folder / "confusion.png", percent, names, title)

    def draw(
        self, folder: Path, model: Forward, data: Any, device: torch.device, title: str = ""
    ) -> None:
        """Draw `predictions.png`: columns of images, labels and predictions."""
        images, labels = sample_validation(data, IMAGES_DRAWN)
        pictures.draw_labels(
            folder / "predictions.png",
            denormalized(data, images),
            labels,
            class_map(predict(model, images, device)),
            report_files.class_names(data),
            title,
        )


TASK = Segmentation()
