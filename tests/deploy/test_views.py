"""Test-time augmentation: probabilities are averaged with those of the mirrored image."""

from typing import Any

import numpy as np
import pytest
import torch

from zoo.deploy import views
from zoo.errors import BadInput
from zoo.training import evaluation


class Source:
    """Returns the left column of an image as logits, or their probabilities."""

    name = "source"

    def __init__(self, task: str, postprocessing: str | None) -> None:
        self.manifest = {"task": task, "postprocessing": postprocessing}

    def __call__(self, images: np.ndarray) -> np.ndarray:
        logits = images[:, 0, :, 0]
        return (
            shares_of(logits, self.manifest["task"]) if self.manifest["postprocessing"] else logits
        )


def shares_of(logits: np.ndarray, task: Any) -> np.ndarray:
    tensor = torch.from_numpy(logits)
    return (tensor.sigmoid() if task == "multi-label" else tensor.softmax(-1)).numpy()


IMAGES = np.random.default_rng(0).normal(0, 3, (4, 1, 5, 2)).astype(np.float32)


@pytest.mark.parametrize(
    ("task", "postprocessing"), [("classification", "softmax"), ("multi-label", "sigmoid")]
)
def test_probabilities_are_averaged(task: str, postprocessing: str) -> None:
    left, right = (shares_of(IMAGES[:, 0, :, side], task) for side in (0, 1))
    expected = (left + right) / 2
    found = views.Mirrored(Source(task, postprocessing))(IMAGES)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    logits = views.Mirrored(Source(task, None))(IMAGES)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(shares_of(logits, task), expected, rtol=1e-4)
    forward = evaluation.mirrored(lambda x: x[:, 0, :, 0], task)
    np.testing.assert_allclose(forward(torch.from_numpy(IMAGES)), logits, rtol=1e-5, atol=1e-6)


def test_extreme_logits_stay_finite() -> None:
    for task in views.TASKS:
        found = views.mean_logits(np.array([[1e4, -1e4]]), np.array([[-1e4, 1e4]]), task)
        assert np.isfinite(found).all()
        assert found == pytest.approx(np.full((1, 2), found[0, 0]))


def test_unknown_and_unsupported_augmentations_are_errors() -> None:
    with pytest.raises(BadInput, match=r"tta 'flop'; did you mean 'flip'"):
        views.check("tta", "flop", "classification")
    with pytest.raises(BadInput, match=r"tta=flip is not supported for segmentation"):
        views.check("tta", "flip", "segmentation")
    views.check("tta", "none", "segmentation")
