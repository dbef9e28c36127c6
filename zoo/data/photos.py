"""The two sample photographs that scikit-learn contains, 640 x 427 pixels each."""

import functools
from typing import Any

import numpy as np
from PIL import Image

CHINA, FLOWER = "china", "flower"
TRAIN_WIDTH = 0.65  # share of a photograph's width that is for training


@functools.cache
def photograph(name: str) -> np.ndarray:
    """Return `CHINA` (a temple) or `FLOWER` (a dahlia): read-only bytes H W 3."""
    from sklearn.datasets import load_sample_image

    pixels: Any = load_sample_image(f"{name}.jpg")
    pixels.flags.writeable = False
    return pixels


def part(photo: np.ndarray, split: str) -> np.ndarray:
    """Return the left part of a photograph for the split `"train"`, otherwise the rest."""
    cut = round(TRAIN_WIDTH * photo.shape[1])
    return photo[:, :cut] if split == "train" else photo[:, cut:]


def crop(area: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Return a random crop of `area` (bytes H W 3), resized to `size` (height, width).

    The crop is once to twice as large as `size` if `area` allows.
    """
    largest = min(area.shape[0] / size[0], area.shape[1] / size[1])
    zoom = rng.uniform(min(1.0, largest), min(2.0, largest))
    height, width = (max(1, int(zoom * edge)) for edge in size)
    top = rng.integers(area.shape[0] - height + 1)
    left = rng.integers(area.shape[1] - width + 1)
    window = Image.fromarray(area[top : top + height, left : left + width])
    return window.resize((size[1], size[0]), Image.Resampling.BICUBIC)
