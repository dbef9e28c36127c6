"""The task of predicting one class for each image: metrics, report, and how it is shown."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from zoo.training import pictures, report_files
from zoo.training.tasks import Meter, Result, Task, report_title

TOP_K = 5  # left out for at most so many classes
MAX_CLASSES_SHOWN = 40  # rows of the printed table
FEW_CLASSES = 10  # up to so many classes, the recall of each is a metric


@dataclass
class ClassificationResult(Result):
    """Metrics of a classifier.

    Attributes:
        images: Number of images.
        top1: Share of images whose class has the highest logit.
        top5: Share of images whose class is among the five highest logits; None for at most five
            classes, where it would be 1.
        loss: Mean cross-entropy, nats.
        confusion: Number of images by actual class (row) and predicted class (column), K K.
        class_names: Names of the K classes.
    """

    images: int
    top1: float
    top5: float | None
    loss: float
    confusion: Tensor
    class_names: list[str]

    @property
    def score(self) -> float:
        return self.top1

    @property
    def classes(self) -> list[dict[str, Any]]:
        """n, precision, recall and F1 of every class."""
        return per_class(self.confusion, self.class_names)

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the classes that an image has or is predicted to have."""
        return _mean(row["f1"] for row in self.classes)

    @property
    def macro_recall(self) -> float:
        """Mean recall of the classes that have images (balanced accuracy)."""
        return _mean(row["recall"] for row in self.classes)

    def summary(self) -> str:
        top5 = "" if self.top5 is None else f"top-5 {self.top5:.2%}, "
        return f"top-1 {self.top1:.2%}, {top5}macro-F1 {self.macro_f1:.2%}, loss {self.loss:.4f}"

    def metrics(self) -> dict[str, float]:
        scalars = {"val/loss": self.loss, "val/top1": self.top1, "val/macro_f1": self.macro_f1}
        if self.top5 is not None:
            scalars["val/top5"] = self.top5
        if len(self.class_names) <= FEW_CLASSES:
            for row in self.classes:
                name = row["class"].encode("utf-8", "backslashreplace").decode()
                if row["recall"] is not None:
                    scalars[f"val/recall/{name}"] = row["recall"]
        return scalars


class ClassificationMeter(Meter):
    """Accumulates accuracy, loss and confusion matrix from logits N K and classes N."""

    def __init__(self, num_classes: int, class_names: list[str] | None = None) -> None:
        super().__init__()
        self.class_names = class_names or [str(number) for number in range(num_classes)]
        common: dict[str, Any] = {"num_classes": num_classes, "validate_args": False}
        self.top1 = MulticlassAccuracy(average="micro", **common)
        self.top5 = None
        if num_classes > TOP_K:
            self.top5 = MulticlassAccuracy(average="micro", top_k=TOP_K, **common)
        self.confusion = MulticlassConfusionMatrix(**common)
        self.loss = MeanMetric(nan_strategy="ignore")

    def update(self, images: Tensor, outputs: Tensor, targets: Tensor) -> None:
        self.top1.update(outputs, targets)
        if self.top5 is not None:
            self.top5.update(outputs, targets)
        self.confusion.update(outputs.argmax(dim=1), targets)
        self.loss.update(F.cross_entropy(outputs, targets), weight=len(targets))

    def compute(self) -> ClassificationResult:
        confusion = self.confusion.compute().cpu()
        return ClassificationResult(
            images=int(confusion.sum()),
            top1=float(self.top1.compute()),
            top5=None if self.top5 is None else float(self.top5.compute()),
            loss=float(self.loss.compute()),
            confusion=confusion,
            class_names=self.class_names,
        )


class Classification(Task):
    """Predicts one class for each image."""

    name: ClassVar[str] = "classification"
    loss: ClassVar[str] = "cross-entropy"
    selectable: ClassVar[tuple[str, ...]] = ("top1", "macro_f1", "loss")

    def format_score(self, score: float) -> str:
        return f"top-1 {score:.2%}"

    def meter(self, data: Any) -> ClassificationMeter:
        return ClassificationMeter(data.num_classes, getattr(data, "class_names", None))

    def report(self, result: ClassificationResult, data: Any) -> dict[str, Any]:
        shares = {"top1": result.top1, "top5": result.top5}
        return {
            "images": result.images,
            **{
                name: _with_interval(share, result.images)
                for name, share in shares.items()
                if share is not None
            },
            "interval": "95 %, Wilson",
            "macro_f1": result.macro_f1,
            "macro_recall": result.macro_recall,
            "loss": result.loss,
            "classes": per_class(result.confusion, report_files.class_names(data)),
            "confusion": result.confusion.tolist(),
        }

    def show(self, console: Console, title: str, report: dict[str, Any]) -> None:
        """Print the accuracies and a table of the classes; of many, those with the lowest F1."""
        console.print(title, markup=False)
        for name in (key for key in report if key.startswith("top")):
            entry = report[name]
            console.print(
                f"{name} {entry['value']:.2%}  [{entry['low']:.2%}, {entry['high']:.2%}]"
                f" (95 % confidence, {report['images']} images)",
                markup=False,
            )
        console.print(
            f"macro-F1 {report['macro_f1']:.2%}, macro recall {report['macro_recall']:.2%}"
        )
        console.print(f"loss {report['loss']:.4f}")
        rows = report["classes"]
        if len(rows) > MAX_CLASSES_SHOWN:
            rows = sorted(rows, key=lambda row: row["f1"] if row["f1"] is not None else 2.0)
            rows = rows[:MAX_CLASSES_SHOWN]
            console.print(f"the {MAX_CLASSES_SHOWN} classes with the lowest F1:")
        table = Table("class", "n", "precision", "recall", "F1")
        for row in rows:
            values = (row[key] for key in ("precision", "recall", "f1"))
            cells = ("–" if value is None else f"{value:.3f}" for value in values)
            table.add_row(str(row["class"]), str(row["n"]), *cells)
        console.print(table)

    def write(self, folder: Path, report: dict[str, Any]) -> None:
        names = [row["class"] for row in report["classes"]]
        report_files.write_table(folder / "classes.csv", report["classes"])
        report_files.write_confusion(folder / "confusion.csv", report["confusion"], names)
        title = f"{report_title(report)}, top-1 {report['top1']['value']:.2%}"
        pictures.draw_confusion(folder / "confusion.png", report["confusion"], names, title)


def confidence_interval(share: float, n: int) -> tuple[float, float]:
    """Return the Wilson interval that covers a proportion with 95 % confidence.

    Args:
        share: The observed proportion.
        n: The number of observations; the interval of none is 0 to 1.
    """
    from scipy.stats import binomtest  # takes half a second, and training does without it

    if n == 0:
        return 0.0, 1.0
    interval = binomtest(round(share * n), n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def per_class(confusion: Tensor, names: list[str]) -> list[dict[str, Any]]:
    """Return n, precision, recall and F1 of every class; None for a ratio of zeros.

    Args:
        confusion: Number of images by actual class (row) and predicted class (column), K K.
        names: Names of the K classes.
    """
    correct = confusion.diag().tolist()
    actual, predicted = confusion.sum(dim=1).tolist(), confusion.sum(dim=0).tolist()
    return [
        {
            "class": name,
            "n": n,
            "precision": hits / n_predicted if n_predicted else None,
            "recall": hits / n if n else None,
            "f1": 2 * hits / (n + n_predicted) if n + n_predicted else None,
        }
        for name, hits, n, n_predicted in zip(names, correct, actual, predicted, strict=True)
    ]


def _mean(values: Iterable[float | None]) -> float:
    """Return the mean of the values that are not None; 0 of none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else 0.0


def _with_interval(share: float, n: int) -> dict[str, float]:
    low, high = confidence_interval(share, n)
    return {"value": share, "low": low, "high": high}


TASK = Classification()
