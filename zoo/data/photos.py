"""scikit-learn's two sample photographs, 640 x 427 pixels each: they come with the package."""

import functools
from typing import Any

import numpy as np

CHINA, FLOWER = "china", "flower"


@functools.cache
def photograph(name: str) -> np.ndarray:
    """Return `CHINA` (a temple) or `FLOWER` (a dahlia), bytes H W 3, not to be written to."""
    from sklearn.datasets import load_sample_image

    pixels: Any = load_sample_image(f"{name}.jpg")
    pixels.flags.writeable = False
    return pixels
