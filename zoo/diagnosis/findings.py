"""What the outputs of a classifier say about its images: mistakes, doubts, abstention, changes."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zoo.diagnosis.labels import Suspect

BINS = 15  # of confidence
GOALS = (0.9, 0.95, 0.98, 0.99)  # accuracies that abstaining may reach
_Z = 1.959964  # 97.5 % quantile of the normal distribution


def worst(logits: Tensor, targets: Tensor) -> list[int]:
    """Return the images with wrong predictions, those with the highest loss first.

    Args:
        logits: N K.
        targets: Class numbers, N.
    """
    wrong = (logits.argmax(dim=1) != targets).nonzero()[:, 0]
    losses = torch.nn.functional.cross_entropy(
        logits[wrong].double(), targets[wrong], reduction="none"
    )
    return wrong[losses.argsort(descending=True, stable=True)].tolist()


def suspects(logits: Tensor, targets: Tensor) -> list[Suspect]:
    """Return all images, those whose label the model doubts most first.

    The model must not have been trained on these images. See `zoo.diagnosis.labels` for images
    that it was trained on.

    Args:
        logits: N K.
        targets: Class numbers, N.
    """
    shares = logits.double().softmax(dim=1)
    own = shares.gather(1, targets[:, None])[:, 0]
    best = shares.argmax(dim=1)
    return [
        Suspect(index, float(own[index]), int(best[index]))
        for index in own.argsort(stable=True).tolist()
    ]


def is_doubted(logits: Tensor, targets: Tensor) -> Tensor:
    """Return for which images the model is sure enough of another class to doubt the label, N.

    It is sure of a class if its probability is at least the mean probability of that class over
    the images that have it (Northcutt et al., arXiv 1911.00068, equation 2).

    Args:
        logits: N K.
        targets: Class numbers, N.
    """
    shares = logits.double().softmax(dim=1)
    one_hot = torch.nn.functional.one_hot(targets, logits.shape[1]).double()
    counts = one_hot.sum(dim=0)
    means = (shares * one_hot).sum(dim=0) / counts.clamp(min=1)
    thresholds = torch.where(counts > 0, means, math.inf)
    best = shares.where(shares >= thresholds, -1.0)
    top, chosen = best.max(dim=1)
    return (top > 0) & (chosen != targets)


def abstention_curve(logits: Tensor, targets: Tensor) -> list[tuple[float, float, float]]:
    """Return (threshold, coverage, accuracy) if the model abstains below each confidence.

    The first row is for the highest threshold; images of equal confidence stay together.

    Args:
        logits: N K.
        targets: Class numbers, N.
    """
    confidence, predicted = logits.double().softmax(dim=1).max(dim=1)
    order = confidence.argsort(descending=True, stable=True)
    confidence, hits = confidence[order], (predicted == targets)[order].double()
    kept = torch.arange(1, len(hits) + 1)
    accuracy = hits.cumsum(dim=0) / kept
    is_last = torch.ones(len(hits), dtype=torch.bool)  # of the images of its confidence
    is_last[:-1] = confidence[1:] != confidence[:-1]
    columns = (confidence[is_last], (kept / len(hits))[is_last], accuracy[is_last])
    return list(zip(*(column.tolist() for column in columns), strict=True))


def abstention(logits: Tensor, targets: Tensor) -> list[dict[str, float | None]]:
    """Return the threshold and the coverage with which each accuracy of `GOALS` is reached.

    The threshold is the lowest that reaches it; None if no threshold does.
    """
    curve = abstention_curve(logits, targets)
    rows: list[dict[str, float | None]] = []
    for goal in GOALS:
        reached = [row for row in curve if row[2] >= goal]
        threshold, coverage, accuracy = reached[-1] if reached else (None, 0.0, None)
        rows.append(
            {"goal": goal, "threshold": threshold, "coverage": coverage, "accuracy": accuracy}
        )
    return rows


def reliability(logits: Tensor, targets: Tensor) -> list[tuple[float, float]]:
    """Return the mean confidence and the accuracy of the images in each bin that has some."""
    confidence, predicted = logits.double().softmax(dim=1).max(dim=1)
    hits = (predicted == targets).double()
    numbers = (confidence * BINS).long().clamp(max=BINS - 1)
    return [
        (float(confidence[numbers == bin].mean()), float(hits[numbers == bin].mean()))
        for bin in numbers.unique().tolist()
    ]


@dataclass(frozen=True)
class Flip:
    """An image with another prediction than before.

    Attributes:
        image: Its key.
        label: Name of its class.
        before: Name of the class that was predicted before.
        after: Name of the class that is predicted now.
    """

    image: str
    label: str
    before: str
    after: str


def change(before: dict[str, str], after: dict[str, tuple[str, str]]) -> dict[str, Any]:
    """Return how predictions for the same images changed, with a paired interval.

    The difference is the accuracy after minus the accuracy before. Its interval is that of Agresti
    and Min (Statistics in Medicine 24, 2005): Wald's, with half an image added to each of the four
    cells. `p` is McNemar's, exact.

    Args:
        before: The predicted class by image.
        after: The label and the predicted class by image; images that are not in both are left
            out.

    Returns:
        Plain values, with `flips` as a list of `Flip`.
    """
    from scipy.stats import binomtest

    flips, gained, lost = [], 0, 0
    common = [image for image in after if image in before]
    for image in common:
        label, now = after[image]
        if now != before[image]:
            flips.append(Flip(image, label, before[image], now))
            gained += now == label
            lost += before[image] == label
    n = len(common)
    low, high = paired_interval(gained, lost, n)
    return {
        "images": n,
        "flipped": len(flips),
        "gained": gained,
        "lost": lost,
        "difference": (gained - lost) / n if n else 0.0,
        "low": low,
        "high": high,
        "p": float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0,
        "flips": flips,
    }


def paired_interval(gained: int, lost: int, n: int) -> tuple[float, float]:
    """Return the interval that covers the difference of two accuracies with 95 % confidence.

    Args:
        gained: Number of images that became right.
        lost: Number of images that became wrong.
        n: Number of images.
    """
    more, less, total = gained + 0.5, lost + 0.5, n + 2
    difference = (more - less) / total
    deviation = math.sqrt((more + less) / total - difference**2) / math.sqrt(total)
    return max(-1.0, difference - _Z * deviation), min(1.0, difference + _Z * deviation)
