"""The task of drawing an image at twice its size."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric, SumMetric
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)
from torchmetrics.image import PeakSignalNoiseRatio

from zoo.training import dense_losses as dense_losses  # makes the losses known
from zoo.training import pictures, report
from zoo.training.tasks import (
    Batches,
    DenseTask,
    Forward,
    Result,
    denormalized,
    examples,
    outputs_of,
)

DRAWN = 4  # images in the picture
NAMES = ("psnr", "ssim", "bicubic_psnr", "bicubic_ssim")


@dataclass
class Enlargement(Result):
    """How near a model comes to the large images, beside bicubic interpolation.

    All figures are of RGB (or grey) values clipped to 0..1, whole images with their borders. The
    images are parts of one photograph: a mean of the ratios of its parts would speak of the sky,
    where an error of a hundredth of a grey level makes many dB, and hardly of what has detail.

    Attributes:
        images: How many images.
        psnr: Peak signal-to-noise ratio of all images together, dB.
        ssim: Structural similarity (11 x 11 Gaussian window, sigma 1.5), a mean over the images.
        bicubic_psnr: The same of bicubic interpolation, dB.
        bicubic_ssim: The same of bicubic interpolation.
        loss: Mean absolute difference, of values in 0..1.
        rows: The four of each image that this process has seen.
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
        return {"val/loss": self.loss} | {f"val/{name}": getattr(self, name) for name in NAMES}

    def words(self) -> str:
        return (
            f"PSNR {self.psnr:.2f} dB (bicubic {self.bicubic_psnr:.2f}),"
            f" SSIM {self.ssim:.4f} (bicubic {self.bicubic_ssim:.4f})"
        )


class SuperResolution(DenseTask):
    """An image at twice its size."""

    name: ClassVar[str] = "super-resolution"
    loss: ClassVar[str] = "charbonnier"

    def best(self, score: float) -> str:
        return f"PSNR {score:.2f} dB"

    def target(self, data: Any) -> str:
        return f"{data.num_classes} channels at twice the size"

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
    ) -> Enlargement:
        judges = {name: _judge(name).to(device) for name in (*NAMES, "loss")}
        count = SumMetric().to(device)
        rows: list[dict[str, float]] = []
        for images, targets in itertools.islice(batches, limit):
            images = images.to(device, non_blocking=True, memory_format=memory_format)
            targets = targets.to(device, non_blocking=True)
            found: dict[str, Tensor] = {}
            drawn = model(images).float()
            for prefix, large in (("", drawn), ("bicubic_", bicubic(denormalized(data, images)))):
                each = _judged(large, targets)
                found |= {prefix + name: values for name, values in each.items()}
                judges[f"{prefix}psnr"].update(large.clamp(0, 1), targets)
                judges[f"{prefix}ssim"].update(each["ssim"])
            judges["loss"].update((drawn - targets).abs().mean(dim=(1, 2, 3)))
            count.update(len(targets))
            rows += _rows(found)
            after_batch()
        values = {name: float(judge.compute()) for name, judge in judges.items()}
        return Enlargement(images=int(count.compute()), rows=rows, **values)

    def report(self, found: Enlargement, data: Any) -> dict[str, Any]:
        values = {name: getattr(found, name) for name in ("images", *NAMES, "loss")}
        return {**values, "rows": found.rows}

    def show(self, console: Console, title: str, report: dict[str, Any]) -> None:
        console.print(title, markup=False)
        for what in ("", "bicubic_"):
            name = "bicubic interpolation" if what else "the model"
            console.print(
                f"PSNR {report[what + 'psnr']:.2f} dB, SSIM {report[what + 'ssim']:.4f}: {name}"
                f" ({report['images']} images)",
                markup=False,
            )

    def write(self, folder: Path, report_: dict[str, Any]) -> None:
        rows = [{"image": number, **row} for number, row in enumerate(report_["rows"])]
        report.write_table(folder / "images.csv", rows)

    def draw(self, folder: Path, model: Forward, data: Any, device: torch.device) -> None:
        """Draw `predictions.png`: input, bicubic interpolation, model and target side by side."""
        images, targets = examples(data, DRAWN)
        small = denormalized(data, images)
        enlarged = {"bicubic": bicubic(small), "model": outputs_of(model, images, device)}
        pictures.draw_enlargements(
            folder / "predictions.png",
            small,
            {name: drawn.clamp(0, 1) for name, drawn in enlarged.items()},
            targets,
            {name: _judged(drawn, targets)["psnr"].tolist() for name, drawn in enlarged.items()},
        )


def bicubic(images: Tensor) -> Tensor:
    """Enlarge images of values 0..1 to twice their size, as image programs do.

    The kernel is Keys' with a = -0.5, as in the literature; PyTorch takes it where it is asked for
    antialiasing (which changes nothing else when images grow) and a = -0.75 otherwise.
    """
    return F.interpolate(images, scale_factor=2, mode="bicubic", antialias=True)


def _judge(name: str) -> Metric:
    """Return what gathers the figure `name` over the batches of all processes."""
    if name.endswith("psnr"):
        return PeakSignalNoiseRatio(data_range=1.0)
    return MeanMetric(nan_strategy="disable")


def _judged(drawn: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Return PSNR and SSIM of each image, N each."""
    drawn = drawn.clamp(0, 1)
    psnr: Any = peak_signal_noise_ratio(
        drawn, targets, data_range=1.0, dim=(1, 2, 3), reduction="none"
    )
    ssim: Any = structural_similarity_index_measure(
        drawn, targets, data_range=1.0, reduction="none"
    )
    return {"psnr": psnr.reshape(len(targets)), "ssim": ssim.reshape(len(targets))}


def _rows(found: dict[str, Tensor]) -> list[dict[str, float]]:
    columns = {name: values.tolist() for name, values in found.items()}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


TASK = SuperResolution()
