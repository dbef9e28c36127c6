"""Rank finalists on a user's own images: a linear classifier on the features of each.

The features of all images are computed once per model, with its published weights and the
preparation that they expect. A logistic regression is then cross-validated on them, which takes
seconds. The result predicts the order of fine-tuned models; it is not their accuracy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from zoo.data.folders import scan
from zoo.data.sources import Source
from zoo.data.transforms import eval_preparation
from zoo.errors import BadInput
from zoo.factory import create_model
from zoo.inputs import IMAGENET_MEAN, IMAGENET_STD, published_input
from zoo.picking.candidates import Candidate
from zoo.progress import track
from zoo.settings import DataConfig

MOST_IMAGES = 2000
FOLDS = 5
BATCH = 16


@dataclass(frozen=True)
class Score:
    """The cross-validated accuracy of a linear classifier.

    Attributes:
        accuracy: Mean over the folds, in percent.
        error: Standard error of that mean, in points.
        images: Number of images.
        folds: Number of folds.
    """

    accuracy: float
    error: float
    images: int
    folds: int


def open_images(folder: str) -> Source:
    """Return the images of `<folder>/train`, or of `folder`, which has one subfolder per class.

    Raises:
        BadInput: The folder has fewer than two classes, or a class has fewer than two images.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise BadInput(
            f"--data {folder}: there is no such folder; give one with a folder per class"
        )
    source = scan(root / "train" if (root / "train").is_dir() else root, 3)
    counts = np.bincount(source.labels, minlength=source.num_classes)
    if len(counts) < 2 or counts.min() < 2:
        raise BadInput(f"--data {folder}: needs at least two classes of two images each")
    return source


def chosen_images(source: Source, most: int = MOST_IMAGES) -> list[int]:
    """Return the indices of at most so many images, an equal share of each class."""
    labels = np.asarray(source.labels)
    if len(labels) <= most:
        return list(range(len(labels)))
    generator = np.random.default_rng(0)
    order = generator.permutation(len(labels))
    rank = np.empty(len(labels), dtype=np.int64)  # of an image within its class
    for label in range(source.num_classes):
        own = order[labels[order] == label]
        rank[own] = np.arange(len(own))
    return sorted(np.lexsort((order.argsort(), rank))[:most].tolist())


def features(candidate: Candidate, source: Source, indices: Sequence[int]) -> np.ndarray:
    """Return the pooled features of images, N x C, with the published weights.

    Raises:
        ZooError: The weights cannot be fetched, or an image cannot be read.
    """
    model = create_model(candidate.model, pretrained=True, num_classes=0).eval()
    return features_of(model, candidate, source, indices)


def features_of(
    model: nn.Module, candidate: Candidate, source: Source, indices: Sequence[int]
) -> np.ndarray:
    """Return the outputs of a model without a classifier, N x C."""
    expected = published_input(candidate.model)
    preparation = eval_preparation(
        DataConfig(
            image_size=[candidate.size, candidate.size],
            mean=expected["mean"] or IMAGENET_MEAN,
            std=expected["std"] or IMAGENET_STD,
            interpolation=expected["interpolation"],
            crop_pct=expected["crop_pct"],
        )
    )
    found = []
    starts = range(0, len(indices), BATCH)
    with torch.inference_mode():
        for start in track(starts, f"features of {candidate.model}", total=len(starts)):
            chosen = indices[start : start + BATCH]
            batch = torch.empty(len(chosen), 3, candidate.size, candidate.size)
            for row, index in zip(batch, chosen, strict=True):
                preparation.prepare_into(row, source.image(index))
            found.append(model(batch).flatten(1).numpy())
    return np.concatenate(found)


def score(values: np.ndarray, labels: np.ndarray) -> Score:
    """Return the cross-validated accuracy of a logistic regression on features.

    Args:
        values: Features, N x C.
        labels: Class of each of the N images.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    folds = min(FOLDS, int(np.bincount(labels)[np.unique(labels)].min()))
    splits = StratifiedKFold(folds, shuffle=True, random_state=0)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, C=0.1))
    parts = 100 * cross_val_score(classifier, values, labels, cv=splits)
    error = float(parts.std(ddof=1) / np.sqrt(folds))
    return Score(float(parts.mean()), error, len(labels), folds)
