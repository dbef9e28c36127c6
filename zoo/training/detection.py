"""The task of finding objects: their boxes and classes."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torchmetrics import SumMetric

from zoo.deploy.detections import Detections, detect
from zoo.errors import BadInput, MissingExtra
from zoo.settings import TrainConfig
from zoo.training import box_pictures, report_files
from zoo.training.losses import register_loss
from zoo.training.tasks import (
    DenseTask,
    Forward,
    Meter,
    Result,
    denormalized,
    predict,
    sample_validation,
)

IMAGES_DRAWN = 6


@dataclass
class DetectionResult(Result):
    """Metrics of a detector, as COCO defines them.

    Attributes:
        images: Number of images.
        mean_ap: Average precision, averaged over the classes with boxes and over the overlaps 0.50,
            0.55, ..., 0.95 that a detection must have with a box to count.
        ap_50: The same for the overlap 0.50.
        ap_75: The same for the overlap 0.75.
        recall: Average recall of the best 100 detections, averaged likewise.
        class_ap: `mean_ap` of each class; NaN without boxes.
        class_boxes: Number of boxes of each class.
    """

    images: int
    mean_ap: float
    ap_50: float
    ap_75: float
    recall: float
    class_ap: list[float]
    class_boxes: list[int]

    @property
    def score(self) -> float:
        return self.mean_ap

    def metrics(self) -> dict[str, float]:
        return {
            "val/map": self.mean_ap,
            "val/map_50": self.ap_50,
            "val/map_75": self.ap_75,
            "val/recall_100": self.recall,
        }

    def summary(self) -> str:
        return f"mAP {self.mean_ap:.4f}, mAP50 {self.ap_50:.4f}, mAP75 {self.ap_75:.4f}"


class DetectionMeter(Meter):
    """Accumulates the average precision of outputs N A 4+K and boxes N M 6."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        if importlib.util.find_spec("pycocotools") is None:
            raise MissingExtra(
                "detection needs the package pycocotools to compute mean average precision;"
                " pip install 'zoo-vision[detection]'"
            )
        from torchmetrics.detection import MeanAveragePrecision

        self.num_classes = num_classes
        self.precision = MeanAveragePrecision(class_metrics=True, backend="pycocotools")
        self.boxes = SumMetric(nan_strategy="disable")
        self.boxes_of = nn.ModuleList(SumMetric(nan_strategy="disable") for _ in range(num_classes))
        self.images = SumMetric(nan_strategy="disable")

    def update(self, images: Tensor, outputs: Tensor, targets: Tensor) -> None:
        height, width = images.shape[-2:]
        size = torch.tensor([width, height, width, height], dtype=torch.float32)
        found, wanted = [], []
        for output, rows in zip(outputs.cpu(), targets.cpu(), strict=True):
            seen = detect(output.numpy())
            found.append(
                {
                    "boxes": torch.from_numpy(seen.boxes) * size,
                    "scores": torch.from_numpy(seen.scores),
                    "labels": torch.from_numpy(seen.classes),
                }
            )
            rows = rows[rows[:, 0] >= 0]
            labels = rows[:, 0].long()
            wanted.append({"boxes": rows[:, 1:5], "labels": labels, "iscrowd": rows[:, 5].long()})
            counted = labels[rows[:, 5] == 0]
            for number, count in enumerate(counted.bincount(minlength=self.num_classes)):
                self.boxes_of[number].update(count)  # type: ignore[operator]
        self.precision.update(found, wanted)
        self.images.update(len(images))

    def compute(self) -> DetectionResult:
        images = int(self.images.compute())
        counts = [int(metric.compute()) for metric in self.boxes_of]  # type: ignore[operator]
        if not any(counts):
            raise BadInput(
                f"there is no box to find in {images} validation images; raise"
                " train.limit_val_batches, or check the annotations"
            )
        values = self.precision.compute()
        per_class = dict(
            zip(
                values["classes"].flatten().tolist(),
                values["map_per_class"].flatten().tolist(),
                strict=True,
            )
        )
        return DetectionResult(
            images=images,
            mean_ap=float(values["map"]),
            ap_50=float(values["map_50"]),
            ap_75=float(values["map_75"]),
            recall=float(values["mar_100"]),
            class_ap=[
                per_class.get(number, 0.0) if count else float("nan")
                for number, count in enumerate(counts)
            ],
            class_boxes=counts,
        )


class DetectorLoss(nn.Module):
    """The loss of the detector that is trained, as torchvision defines it."""

    def watch(self, model: nn.Module) -> None:
        """Use the loss of a detector.

        Raises:
            BadInput: The model is not a detector of this package.
        """
        if not hasattr(model, "loss"):
            raise BadInput(f"{type(model).__name__} is not a detector, so it has no loss to train")
        self.__dict__["_model"] = model  # no submodule: its weights are not those of a loss

    def forward(self, outputs: dict[str, Tensor], targets: Tensor) -> Tensor:
        """Return the loss of the outputs in training mode and boxes N M 6."""
        model: Any = self._model
        return model.loss(outputs, targets)


register_loss("detector", DetectorLoss, task="detection")


class Detection(DenseTask):
    """Predicts boxes and their classes."""

    name: ClassVar[str] = "detection"
    loss: ClassVar[str] = "detector"
    selectable: ClassVar[tuple[str, ...]] = ("map", "map_50")

    def format_score(self, score: float) -> str:
        return f"mAP {score:.4f}"

    def meter(self, data: Any) -> DetectionMeter:
        return DetectionMeter(data.num_classes)

    def check_settings(self, train: TrainConfig) -> None:
        """Raise `BadInput` for settings that apply only to classes of whole images or pixels."""
        super().check_settings(train)
        if train.qat:
            raise BadInput(f"train.qat=True is not supported for {self.name}; leave it out")

    def report(self, result: DetectionResult, data: Any) -> dict[str, Any]:
        rows = zip(report_files.class_names(data), result.class_boxes, result.class_ap, strict=True)
        return {
            "images": result.images,
            "map": result.mean_ap,
            "map_50": result.ap_50,
            "map_75": result.ap_75,
            "recall_100": result.recall,
            "classes": [
                {"class": name, "boxes": count, "ap": value if count else None}
                for name, count, value in rows
            ],
        }

    def show(self, console: Console, title: str, report: dict[str, Any]) -> None:
        console.print(title, markup=False)
        console.print(
            f"mAP {report['map']:.4f}, mAP50 {report['map_50']:.4f}, mAP75 {report['map_75']:.4f}"
            f" ({report['images']} images)",
            markup=False,
        )
        table = Table()
        for column in ("class", "boxes", "AP"):
            table.add_column(column, justify="left" if column == "class" else "right")
        for row in report["classes"]:
            value = "-" if row["ap"] is None else f"{row['ap']:.4f}"
            table.add_row(row["class"], f"{row['boxes']:,}", value)
        console.print(table)

    def write(self, folder: Path, report: dict[str, Any]) -> None:
        report_files.write_table(folder / "classes.csv", report["classes"])

    def draw(
        self, folder: Path, model: Forward, data: Any, device: torch.device, title: str = ""
    ) -> None:
        """Draw `predictions.png`: columns of images with their boxes, and with the detections."""
        images, targets = sample_validation(data, IMAGES_DRAWN)
        height, width = images.shape[-2:]
        size = torch.tensor([width, height, width, height])
        wanted = [
            Detections(
                (rows[:, 1:5] / size).numpy(), rows[:, 0].new_ones(len(rows)).numpy(),
                rows[:, 0].long().numpy(),
            )
            for rows in (rows[rows[:, 0] >= 0] for rows in targets)
        ]  # fmt: skip
        box_pictures.draw_boxes(
            folder / "predictions.png",
            denormalized(data, images),
            wanted,
            [detect(output.numpy()) for output in predict(model, images, device)],
            report_files.class_names(data),
            title,
        )


TASK = Detection()
