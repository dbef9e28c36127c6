"""Tasks whose output is an image: metrics next to those of a simple method, report, pictures."""

import abc
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from rich.console import Console
from torch import Tensor
from torchmetrics import MeanMetric, Metric, MetricCollection, SumMetric
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)
from torchmetrics.image import PeakSignalNoiseRatio

from zoo.training import dense_losses as dense_losses  # registers the losses of these tasks
from zoo.training import pictures, report_files
from zoo.training.tasks import (
    DenseTask,
    Forward,
    Meter,
    Result,
    denormalized,
    predict,
    sample_validation,
)

IMAGES_DRAWN = 4
CANDIDATES = 16  # images to choose from
VALUES = ("psnr", "ssim")


@dataclass
class ImageResult(Result):
    """Metrics of a model whose output is an image, next to those of a simple method.

    All metrics compare whole images, including their borders, as RGB or grey values clipped to
    0..1. PSNR is computed from the mean squared error of all images together. A mean of each
    image's PSNR would be dominated by smooth crops such as sky, where the smallest errors change it
    by many dB.

    Attributes:
        images: Number of images.
        psnr: Peak signal-to-noise ratio, dB.
        ssim: Mean structural similarity (11 x 11 Gaussian window, sigma 1.5).
        simple: Name of the simple method.
        simple_psnr: Its PSNR, dB.
        simple_ssim: Its mean structural similarity.
        loss: Mean absolute error of values in 0..1.
        rows: The four metrics for each image that this process evaluated.
    """

    images: int
    psnr: float
    ssim: float
    simple: str
    simple_psnr: float
    simple_ssim: float
    loss: float
    rows: list[dict[str, float]] = field(default_factory=list)

    @property
    def score(self) -> float:
        return self.psnr

    def metrics(self) -> dict[str, float]:
        return {"val/loss": self.loss} | {f"val/{key}": x for key, x in self.values().items()}

    def values(self) -> dict[str, float]:
        """Return the metrics by their names in a report."""
        own = {name: getattr(self, name) for name in VALUES}
        return own | {f"{self.simple}_{name}": getattr(self, f"simple_{name}") for name in VALUES}

    def summary(self) -> str:
        return (
            f"PSNR {self.psnr:.2f} dB ({self.simple} {self.simple_psnr:.2f}),"
            f" SSIM {self.ssim:.4f} ({self.simple} {self.simple_ssim:.4f})"
        )


class ImageMeter(Meter):
    """Accumulates PSNR, SSIM and loss of output images, and of those of a simple method.

    Args:
        data: The data module.
        name: Name of the simple method.
        method: Maps images with values in 0..1, N C H W, to images of the size of the targets.
    """

    def __init__(self, data: Any, name: str, method: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.data, self.name, self.method = data, name, method
        names = (*VALUES, *(f"simple_{value}" for value in VALUES), "loss")
        self.metrics = MetricCollection({key: _metric(key) for key in names}, compute_groups=False)
        self.images = SumMetric()
        self.rows: list[dict[str, float]] = []

    def update(self, images: Tensor, outputs: Tensor, targets: Tensor) -> None:
        columns: dict[str, Tensor] = {}
        simple = self.method(denormalized(self.data, images))
        for kind, shown, image in (("", "", outputs), ("simple_", f"{self.name}_", simple)):
            values = _psnr_and_ssim(image, targets)
            columns |= {shown + name: value for name, value in values.items()}
            self.metrics[f"{kind}psnr"].update(image.clamp(0, 1), targets)
            self.metrics[f"{kind}ssim"].update(values["ssim"])
        self.metrics["loss"].update((outputs - targets).abs().mean(dim=(1, 2, 3)))
        self.images.update(len(targets))
        self.rows += _rows(columns)

    def compute(self) -> ImageResult:
        values: Any = {name: float(value) for name, value in self.metrics.compute().items()}
        return ImageResult(
            images=int(self.images.compute()), simple=self.name, rows=self.rows, **values
        )


class ImageTask(DenseTask):
    """A task whose output is an image.

    Attributes:
        simple: Name of a simple method for the task.
        words: The same in words.
    """

    loss: ClassVar[str] = "charbonnier"
    simple: ClassVar[str]
    words: ClassVar[str]

    @abc.abstractmethod
    def apply(self, images: Tensor) -> Tensor:
        """Apply the simple method to images with values in 0..1, N C H W."""

    def format_score(self, score: float) -> str:
        return f"PSNR {score:.2f} dB"

    def meter(self, data: Any) -> ImageMeter:
        return ImageMeter(data, self.simple, self.apply)

    def report(self, result: ImageResult, data: Any) -> dict[str, Any]:
        values = {"images": result.images, **result.values(), "loss": result.loss}
        return {**values, "rows": result.rows}

    def show(self, console: Console, title: str, report: dict[str, Any]) -> None:
        console.print(title, markup=False)
        for prefix, name in (("", "the model"), (f"{self.simple}_", self.words)):
            console.print(
                f"PSNR {report[prefix + 'psnr']:.2f} dB, SSIM {report[prefix + 'ssim']:.4f}: {name}"
                f" ({report['images']} images)",
                markup=False,
            )

    def write(self, folder: Path, report: dict[str, Any]) -> None:
        rows = [{"image": number, **row} for number, row in enumerate(report["rows"])]
        report_files.write_table(folder / "images.csv", rows)

    def draw(
        self, folder: Path, model: Forward, data: Any, device: torch.device, title: str = ""
    ) -> None:
        """Draw `predictions.png`: columns of inputs, of the simple method, outputs and targets.

        The images are those with the most texture among some that are evenly spaced.
        """
        images, targets = sample_validation(data, CANDIDATES)
        chosen = pictures.most_textured(targets, IMAGES_DRAWN)
        images, targets = images[chosen], targets[chosen]
        given = denormalized(data, images)
        made = {self.simple: self.apply(given), "model": predict(model, images, device)}
        pictures.draw_images(
            folder / "predictions.png",
            given.clamp(0, 1),
            {name: output.clamp(0, 1) for name, output in made.items()},
            targets,
            {
                name: _psnr_and_ssim(output, targets)["psnr"].tolist()
                for name, output in made.items()
            },
            title,
        )


def _metric(name: str) -> Metric:
    """Return the metric that accumulates the value `name`."""
    if name.endswith("psnr"):
        return PeakSignalNoiseRatio(data_range=1.0)
    return MeanMetric(nan_strategy="disable")


def _psnr_and_ssim(outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Return PSNR and SSIM of each image, N each."""
    outputs = outputs.clamp(0, 1)
    psnr: Any = peak_signal_noise_ratio(
        outputs, targets, data_range=1.0, dim=(1, 2, 3), reduction="none"
    )
    ssim: Any = structural_similarity_index_measure(
        outputs, targets, data_range=1.0, reduction="none"
    )
    return {"psnr": psnr.reshape(len(targets)), "ssim": ssim.reshape(len(targets))}


def _rows(columns: dict[str, Tensor]) -> list[dict[str, float]]:
    """Turn a tensor N for each metric into a dictionary for each image."""
    lists = [values.tolist() for values in columns.values()]
    return [dict(zip(columns, row, strict=True)) for row in zip(*lists, strict=True)]
