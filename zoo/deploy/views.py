"""Test-time augmentation: predict for an image and its mirror image, and average. No PyTorch."""

from typing import Any

import numpy as np

from zoo.errors import BadInput, unknown_value

CHOICES = ("none", "flip")
TASKS = ("classification", "multi-label")
_TINY = 1e-12  # probabilities are kept away from 0 and 1


def check(key: str, value: str, task: str) -> None:
    """Raise `BadInput` unless a task supports an augmentation.

    Args:
        key: The setting or the option, for messages.
        value: One of `CHOICES`.
        task: The task of the model.
    """
    if value not in CHOICES:
        raise BadInput(unknown_value(key, value, CHOICES))
    if value != "none" and task not in TASKS:
        raise BadInput(f"{key}={value} is not supported for {task}; leave it out")


class Mirrored:
    """Predicts the mean of the probabilities of an image and of its mirror image.

    Args:
        source: A `Classifier` of `zoo.deploy.predict`.

    Attributes:
        name: Name of the source.
        manifest: Its manifest.
    """

    def __init__(self, source: Any) -> None:
        self._source = source
        self.name, self.manifest = source.name, source.manifest

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return outputs of the same kind as those of the source, B K, for images B C H W."""
        plain = self._source(images)
        mirrored = self._source(np.ascontiguousarray(images[..., ::-1]))
        if self.manifest["postprocessing"] is not None:  # probabilities already
            return (plain + mirrored) / 2
        return mean_logits(plain, mirrored, self.manifest["task"])


def mean_logits(a: np.ndarray, b: np.ndarray, task: str) -> np.ndarray:
    """Return logits B K whose probabilities are the mean of those of two logits B K."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    if task == "multi-label":
        mean = (_sigmoid(x) + _sigmoid(y)) / 2
        mean = mean.clip(_TINY, 1 - _TINY)
        return np.log(mean / (1 - mean)).astype(a.dtype)
    return np.logaddexp(_log_softmax(x), _log_softmax(y)).astype(a.dtype) - np.float32(np.log(2))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x.clip(-700, 700)))


def _log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))
