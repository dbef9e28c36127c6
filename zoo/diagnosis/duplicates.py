"""Find images that are copies of each other, also resized or compressed again.

Two images are copies if few bits of their perceptual hashes differ, and small versions of them have
almost the same colours. The hash has the signs of the 63 lowest frequencies of the discrete cosine
transform of the grey image, relative to their median. Crops and mirrored images are not found.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.fft import dctn

SIDE = 32  # pixels of the grey image
LOW = 8  # frequencies per axis
MOST_BITS = 6  # that differ
MOST_COLOUR = 12.0  # mean difference of the small images, of 255
_ROWS = 256  # images compared with all others at once


@dataclass(frozen=True)
class Look:
    """What an image looks like.

    Attributes:
        bits: The perceptual hash.
        small: 8 x 8 pixels, RGB.
    """

    bits: int
    small: np.ndarray


def look(image: Image.Image) -> Look:
    """Return what an RGB image looks like."""
    grey = image.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    waves = np.asarray(dctn(np.asarray(grey, dtype=np.float64), norm="ortho"))[:LOW, :LOW]
    values = waves.ravel()[1:].round(6)  # without the mean; rounded, so that a flat image has none
    bits = 0
    for is_above in values > np.median(values):
        bits = 2 * bits + int(is_above)
    small = image.convert("RGB").resize((LOW, LOW), Image.Resampling.BILINEAR)
    return Look(bits, np.asarray(small, dtype=np.float32))


def groups(looks: Sequence[Look]) -> list[list[int]]:
    """Return the indices of images that are copies of each other, at least two a group."""
    parents = list(range(len(looks)))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    bits = np.array([one.bits for one in looks], dtype=np.uint64)
    for start in range(0, len(looks), _ROWS):
        rows = bits[start : start + _ROWS]
        distances = np.bitwise_count(rows[:, None] ^ bits[None, start:])
        for row, column in np.argwhere(distances <= MOST_BITS).tolist():
            a, b = start + row, start + column
            if a < b and root(a) != root(b):
                difference = np.abs(looks[a].small - looks[b].small).mean()
                if difference <= MOST_COLOUR:
                    parents[root(b)] = root(a)
    found: dict[int, list[int]] = defaultdict(list)
    for index in range(len(looks)):
        found[root(index)].append(index)
    return [members for members in found.values() if len(members) > 1]
