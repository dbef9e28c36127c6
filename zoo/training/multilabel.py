"""The task of predicting any number of labels for each image: metrics, report, loss."""

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.classification import MultilabelAveragePrecision, MultilabelStatScores

from zoo.errors import BadInput
from zoo.settings import TrainConfig
from zoo.training import report_files
from zoo.training.losses import register_loss
from zoo.training.tasks import DenseTask, Meter, Result

FEW_CLASSES = 10  # up to so many classes, the average precision of each is a metric
THRESHOLD = 0.5  # probability from which a label is predicted


@dataclass
class MultiLabelResult(Result):
    """Metrics of a model that predicts labels.

    Attributes:
        images: Number of images.
        loss: Mean binary cross-entropy of a label, nats.
        classes: For each class its name, the number of images that have it (n), average precision
            (None without such images), precision, recall and F1 at probability 0.5.
    """

    images: int
    loss: float
    classes: list[dict[str, Any]]

    @property
    def map(self) -> float:
        """Mean average precision over the classes that an image has."""
        return _mean([row["average_precision"] for row in self.classes])

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the classes that an image has or is predicted to have."""
        return _mean([row["f1"] for row in self.classes])

    @property
    def score(self) -> float:
        return self.map

    def metrics(self) -> dict[str, float]:
        scalars = {"val/loss": self.loss, "val/map": self.map, "val/macro_f1": self.macro_f1}
        if len(self.classes) <= FEW_CLASSES:
            for row in self.classes:
                name = row["class"].encode("utf-8", "backslashreplace").decode()
                if row["average_precision"] is not None:
                    scalars[f"val/average_precision/{name}"] = row["average_precision"]
        return scalars

    def summary(self) -> str:
        return f"mAP {self.map:.2%}, macro-F1 {self.macro_f1:.2%}, loss {self.loss:.4f}"


class MultiLabelMeter(Meter):
    """Accumulates average precision and counts from logits N K and zeros and ones N K."""

    def __init__(self, class_names: list[str]) -> None:
        super().__init__()
        self.class_names = class_names
        common: dict[str, Any] = {"num_labels": len(class_names), "validate_args": False}
        if len(class_names) > 1:
            self.precision: Any = MultilabelAveragePrecision(average="none", **common)
        else:  # torchmetrics has another class for a single label
            from torchmetrics.classification import BinaryAveragePrecision

            self.precision = BinaryAveragePrecision(validate_args=False)
        self.counts = MultilabelStatScores(average="none", threshold=THRESHOLD, **common)
        self.loss = MeanMetric(nan_strategy="ignore")

    def update(self, images: Tensor, outputs: Tensor, targets: Tensor) -> None:
        shares = outputs.double().sigmoid()
        single = len(self.class_names) == 1
        self.precision.update(*((x[:, 0] if single else x) for x in (shares, targets)))
        self.counts.update(shares, targets)
        loss = F.binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype))
        self.loss.update(loss, weight=targets.numel())

    def compute(self) -> MultiLabelResult:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*positive samples.*")
            precisions = self.precision.compute().reshape(-1).tolist()
        counts = self.counts.compute().reshape(-1, 5).tolist()
        rows = []
        for name, own, (hits, false, _, missed, support) in zip(
            self.class_names, precisions, counts, strict=True
        ):
            rows.append(
                {
                    "class": name,
                    "n": support,
                    "average_precision": own if support and math.isfinite(own) else None,
                    "precision": hits / (hits + false) if hits + false else None,
                    "recall": hits / support if support else None,
                    "f1": 2 * hits / (2 * hits + false + missed) if hits + false + missed else None,
                }
            )
        images = sum(counts[0][:4])
        return MultiLabelResult(int(images), float(self.loss.compute()), rows)


class MultiLabel(DenseTask):
    """Predicts for each class whether an image has it."""

    name: ClassVar[str] = "multi-label"
    loss: ClassVar[str] = "bce"
    selectable: ClassVar[tuple[str, ...]] = ("map", "macro_f1", "loss")

    def format_score(self, score: float) -> str:
        return f"mAP {score:.2%}"

    def meter(self, data: Any) -> MultiLabelMeter:
        return MultiLabelMeter(report_files.class_names(data))

    def check_settings(self, train: TrainConfig) -> None:
        """Raise `BadInput` for settings that need one class for each image."""
        super().check_settings(train)
        if train.sampler != "shuffle":
            raise BadInput(
                f"train.sampler={train.sampler} is not supported for {self.name}: an image has"
                " several classes; leave it out"
            )

    def report(self, result: MultiLabelResult, data: Any) -> dict[str, Any]:
        return {
            "images": result.images,
            "map": result.map,
            "macro_f1": result.macro_f1,
            "loss": result.loss,
            "threshold": THRESHOLD,
            "classes": result.classes,
        }

    def show(self, console: Console, title: str, report: dict[str, Any]) -> None:
        """Print the metrics and a table of the classes."""
        console.print(title, markup=False)
        console.print(
            f"mAP {report['map']:.2%}, macro-F1 {report['macro_f1']:.2%} at probability"
            f" {report['threshold']}, loss {report['loss']:.4f}, {report['images']} images"
        )
        table = Table("class", "n", "average precision", "precision", "recall", "F1")
        for row in report["classes"]:
            values = (row[key] for key in ("average_precision", "precision", "recall", "f1"))
            cells = ("–" if value is None else f"{value:.3f}" for value in values)
            table.add_row(str(row["class"]), str(row["n"]), *cells)
        console.print(table)

    def write(self, folder: Path, report: dict[str, Any]) -> None:
        report_files.write_table(folder / "classes.csv", report["classes"])


class LabelCrossEntropy(nn.Module):
    """Binary cross-entropy of each label, for targets of zeros and ones N K.

    Args:
        class_weights: A weight for each of the K classes; None for equal ones.
        label_smoothing: Targets are moved by so much towards 0.5.
    """

    def __init__(self, class_weights: Tensor | None = None, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of a label for logits N K."""
        smoothed = targets.to(logits.dtype) * (1 - self.label_smoothing) + self.label_smoothing / 2
        weights: Any = self.class_weights
        return F.binary_cross_entropy_with_logits(logits, smoothed, weight=weights)


def _mean(values: list[float | None]) -> float:
    """Return the mean of the values that are not None; 0 of none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else 0.0


register_loss("bce", LabelCrossEntropy, task="multi-label")
TASK = MultiLabel()
