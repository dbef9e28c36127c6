"""The two sample photographs that scikit-learn contains, 640 x 427 pixels each."""

import functools
from typing import Any

import numpy as np

CHINA, FLOWER = "china", "flower"


@functools.cache
def photograph(name: str) -> np.ndarray:
    """Return `CHINA` (a temple) or `FLOWER` (a dahlia): read-only bytes H W 3."""
    from sklearn.datasets import load_sample_image

    pixels: Any = load_sample_image(f"{name}.jpg")
    pixels.flags.writeable = False
    return pixels
