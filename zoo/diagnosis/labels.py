"""Rank images by how much their label is in doubt.

Each image is classified by a logistic regression on the features of the trained model, fitted on
the other images (cross-validation). The score of an image is its self-confidence: the probability
of its own label. Labels with low scores are suspected first (Northcutt et al., Confident Learning,
arXiv 1911.00068, section 3).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

FOLDS = 5


@dataclass(frozen=True)
class Suspect:
    """An image and its label.

    Attributes:
        index: Number of the image.
        confidence: Probability of its own label.
        suggested: The most probable class.
    """

    index: int
    confidence: float
    suggested: int


def ranked(values: np.ndarray, labels: Sequence[int]) -> list[Suspect]:
    """Return all images, those whose labels are most in doubt first.

    A class with a single image cannot be cross-validated: its image comes last, with confidence 1.

    Args:
        values: Features, N x C.
        labels: The class of each image.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    numbers = np.asarray(labels)
    counts = np.bincount(numbers)
    usable = np.flatnonzero(counts[numbers] > 1)
    single = [Suspect(int(i), 1.0, int(numbers[i])) for i in np.flatnonzero(counts[numbers] == 1)]
    known = numbers[usable]
    classes = np.unique(known)
    if len(classes) < 2:
        return [Suspect(index, 1.0, int(label)) for index, label in enumerate(numbers)]
    folds = min(FOLDS, int(counts[classes].min()))
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500, C=0.1))
    shares: Any = cross_val_predict(
        classifier,
        values[usable],
        known,
        cv=StratifiedKFold(folds, shuffle=True, random_state=0),
        method="predict_proba",
    )
    own = shares[np.arange(len(known)), np.searchsorted(classes, known)]
    best = classes[shares.argmax(axis=1)]
    found = [
        Suspect(int(index), float(confidence), int(suggested))
        for index, confidence, suggested in zip(usable, own, best, strict=True)
    ]
    return sorted(found, key=lambda one: (one.confidence, one.index)) + single
