"""What a classifier says about each image, and whether its probabilities can be believed."""

import csv
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.training import report_files
from zoo.training.tasks import Forward

BINS = 15  # of the calibration error
FILE = "images.csv"
_HIGHEST = math.log(100)  # of the temperature, either way


class Predictions:
    """The outputs and the targets of an evaluation, in the order of the images.

    Args:
        forward: Maps images N C H W to logits N K.
    """

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self._logits: list[Tensor] = []
        self._targets: list[Tensor] = []

    def __call__(self, images: Tensor) -> Tensor:
        """Return the outputs for a batch, and keep them."""
        outputs = self._forward(images)
        self._logits.append(outputs.detach().float().cpu())
        return outputs

    def noted(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches, and keep their targets."""
        for images, targets in batches:
            self._targets.append(targets.cpu())
            yield images, targets

    @property
    def logits(self) -> Tensor:
        """N K."""
        return torch.cat(self._logits)

    @property
    def targets(self) -> Tensor:
        """Class numbers, N."""
        return torch.cat(self._targets)


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """Return the temperature by which to divide logits for the lowest cross-entropy.

    Guo et al., On Calibration of Modern Neural Networks, arXiv 1706.04599, section 4.2.

    Args:
        logits: N K.
        targets: Class numbers, N.
    """
    from scipy.optimize import minimize_scalar

    logits = logits.double()

    def loss(logarithm: float) -> float:
        return float(F.cross_entropy(logits / math.exp(logarithm), targets))

    found: Any = minimize_scalar(loss, bounds=(-_HIGHEST, _HIGHEST), method="bounded")
    return math.exp(found.x)


def calibration(logits: Tensor, targets: Tensor) -> dict[str, Any]:
    """Return the expected calibration error, before and after fitting a temperature.

    The error is the mean distance between confidence and accuracy of the images in each of `BINS`
    bins of equal width. The temperature is fitted on the same images.

    Args:
        logits: N K.
        targets: Class numbers, N.
    """
    temperature = fit_temperature(logits, targets)
    return {
        "ece": _ece(logits, targets),
        "temperature": temperature,
        "ece_with_temperature": _ece(logits / temperature, targets),
        "bins": BINS,
    }


def _ece(logits: Tensor, targets: Tensor) -> float:
    from torchmetrics.functional.classification import multiclass_calibration_error

    shares = logits.softmax(dim=1)
    found = multiclass_calibration_error(shares, targets, logits.shape[1], n_bins=BINS)
    return float(found)


def write_images(folder: Path, found: Predictions, data: Any) -> None:
    """Write `images.csv`: the label, the prediction and its probability for each image.

    Args:
        folder: Where to write it.
        found: The predictions for the validation images, in order.
        data: The data module, after `setup`.
    """
    names = report_files.class_names(data)
    source = None if data.streaming else data.source("val")
    shares, targets = found.logits.softmax(dim=1), found.targets
    confidences, predicted = shares.max(dim=1)
    own = shares.gather(1, targets[:, None])[:, 0]
    with (folder / FILE).open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.writer(file)
        heading = ("image", "class", "predicted", "correct", "confidence", "class_probability")
        table.writerow(heading)
        rows = zip(
            targets.tolist(), predicted.tolist(), confidences.tolist(), own.tolist(), strict=True
        )
        for index, (target, guess, confidence, probability) in enumerate(rows):
            key = str(index) if source is None else source.key(index)
            shown = (f"{confidence:.6f}", f"{probability:.6f}")
            table.writerow((key, names[target], names[guess], int(target == guess), *shown))
