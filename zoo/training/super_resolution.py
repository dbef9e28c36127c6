"""The task of enlarging an image to twice its size: metrics, report, and how it is shown."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric, MetricCollection, SumMetric
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)
from torchmetrics.image import PeakSignalNoiseRatio

from zoo.training import dense_losses as dense_losses  # registers the losses of this task
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
METRICS = ("psnr", "ssim", "bicubic_psnr", "bicubic_ssim")


@dataclass
class SuperResolutionResult(Result):
    """Metrics of a super-resolution model, next to those of bicubic interpolation.

    All metrics compare whole images, including their borders, as RGB or grey values clipped to
    0..1. PSNR is computed from the mean squared error of all images together. A mean of each
    image's PSNR would be dominated by smooth crops such as sky, where the smallest errors change it
    by many dB.

    Attributes:
        images: Number of images.
        psnr: Peak signal-to-noise ratio, dB.
        ssim: Mean structural similarity (11 x 11 Gaussian window, sigma 1.5).
        bicubic_psnr: PSNR of bicubic interpolation, dB.
        bicubic_ssim: Mean structural similarity of bicubic interpolation.
        loss: Mean absolute error of values in 0..1.
        rows: The four metrics for each image that this process evaluated.
    """

    images: int
    psnr: float
    ssim: float
    bicubic_psnr: float
    bicubic_ssim: float
    loss: float
    rows: list[dict[str, float]] = field(default_factory=list)

    @property
    def score(self) -> float:
        return self.psnr

    def metrics(self) -> dict[str, float]:
        return {"val/loss": self.loss} | {f"val/{name}": getattr(self, name) for name in METRICS}

    def summary(self) -> str:
        return (
            f"PSNR {self.psnr:.2f} dB (bicubic {self.bicubic_psnr:.2f}),"
            f" SSIM {self.ssim:.4f} (bicubic {self.bicubic_ssim:.4f})"
        )


class SuperResolutionMeter(Meter):
    """Accumulates PSNR, SSIM and loss of enlarged images N C 2H 2W and of bicubic interpolation."""

    def __init__(self, data: Any) -> None:
        super().__init__()
        self.data = data
        names = (*METRICS, "loss")
        self.metrics = MetricCollection(
            {name: _metric(name) for name in names}, compute_groups=False
        )
        self.images = SumMetric()
        self.rows: list[dict[str, float]] = []

    def update(self, images: Tensor, outputs: Tensor, targets: Tensor) -> None:
        columns: dict[str, Tensor] = {}
        interpolated = bicubic(denormalized(self.data, images))
        for prefix, enlarged in (("", outputs), ("bicubic_", interpolated)):
            values = _psnr_and_ssim(enlarged, targets)
            columns |= {prefix + name: value for name, value in values.items()}
            self.metrics[f"{prefix}psnr"].update(enlarged.clamp(0, 1), targets)
            self.metrics[f"{prefix}ssim"].update(values["ssim"])
        self.metrics["loss"].update((outputs - targets).abs().mean(dim=(1, 2, 3)))
        self.images.update(len(targets))
        self.rows += _rows(columns)

    def compute(self) -> SuperResolutionResult:
        values = {name: float(value) for name, value in self.metrics.compute().items()}
        return SuperResolutionResult(images=int(self.images.compute()), rows=self.rows, **values)


class SuperResolution(DenseTask):
    """Enlarges an image to twice its size."""

    name: ClassVar[str] = "super-resolution"
    loss: ClassVar[str] = "charbonnier"

    def format_score(self, score: float) -> str:
        return f"PSNR {score:.2f} dB"

    def describe_output(self, data: Any) -> str:
        return f"{data.num_classes} channels at twice the size"

    def meter(self, data: Any) -> SuperResolutionMeter:
        return SuperResolutionMeter(data)

    def report(self, result: SuperResolutionResult, data: Any) -> dict[str, Any]:
        values = {name: getattr(result, name) for name in ("images", *METRICS, "loss")}
        return {**values, "rows": result.rows}

    def show(self, console: Console, title: str, report: dict[str, Any]) -> None:
        console.print(title, markup=False)
        for prefix, name in (("", "the model"), ("bicubic_", "bicubic interpolation")):
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
        """Draw `predictions.png`: columns of inputs, bicubic interpolation, outputs and targets.

        The images are those with the most texture among some that are evenly spaced.
        """
        images, targets = sample_validation(data, CANDIDATES)
        chosen = pictures.most_textured(targets, IMAGES_DRAWN)
        images, targets = images[chosen], targets[chosen]
        small = denormalized(data, images)
        enlarged = {"bicubic": bicubic(small), "model": predict(model, images, device)}
        pictures.draw_enlargements(
            folder / "predictions.png",
            small,
            {name: output.clamp(0, 1) for name, output in enlarged.items()},
            targets,
            {
                name: _psnr_and_ssim(output, targets)["psnr"].tolist()
                for name, output in enlarged.items()
            },
            title,
        )


def bicubic(images: Tensor) -> Tensor:
    """Enlarge images with values in 0..1 to twice their size, with Keys' kernel for a = -0.5.

    The literature and image editors use this kernel. PyTorch uses it only with `antialias=True`,
    which has no other effect on an enlargement, and a = -0.75 otherwise.
    """
    return F.interpolate(images, scale_factor=2, mode="bicubic", antialias=True)


def _metric(name: str) -> Metric:
    """Return the metric that accumulates the value `name`."""
    if name.endswith("psnr"):
        return PeakSignalNoiseRatio(data_range=1.0)
    return MeanMetric(nan_strategy="disable")


def _psnr_and_ssim(enlarged: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Return PSNR and SSIM of each image, N each."""
    enlarged = enlarged.clamp(0, 1)
    psnr: Any = peak_signal_noise_ratio(
        enlarged, targets, data_range=1.0, dim=(1, 2, 3), reduction="none"
    )
    ssim: Any = structural_similarity_index_measure(
        enlarged, targets, data_range=1.0, reduction="none"
    )
    return {"psnr": psnr.reshape(len(targets)), "ssim": ssim.reshape(len(targets))}


def _rows(columns: dict[str, Tensor]) -> list[dict[str, float]]:
    """Turn a tensor N for each metric into a dictionary for each image."""
    lists = [values.tolist() for values in columns.values()]
    return [dict(zip(columns, row, strict=True)) for row in zip(*lists, strict=True)]


TASK = SuperResolution()
