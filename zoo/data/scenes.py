"""Scenes of handwritten digits on photographs, and the class of every pixel: `digits_segmentation`.

What is in a scene follows from its split and its number alone, so the set is the same on every
machine and nothing is stored or fetched. The digits are scikit-learn's 1,797 (8 x 8 pixels, split
as for `digits`), the photographs its two sample images: those of training show digits of the
training split on the left parts of the photographs, those of validation the other digits on the
right parts. No pixel that is validated on was seen in training.

A scene of 48 x 48 pixels has six to ten digits, one of another size as many for its area (43 to 71
in 128 x 128 pixels), but at least two; one that finds no place is left out. They are resized to
squares of 10 to 14 pixels before what is empty around them is cut away. Each is painted in one
bright colour, and the photograph is darkened, so that ink is brighter than what lies under it. Of
the boxes around two digits at most a fifth is shared; where their ink meets, the later digit lies
on top. A pixel belongs to a digit where at least half of it is ink.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from zoo.data import photos, sources
from zoo.data.catalogue import DIGITS_VAL
from zoo.data.images import MODES
from zoo.errors import BadInput

NAMES = ["background", *"0123456789"]
SEED = 0
DIGITS = (6, 10)  # fewest and most in 48 x 48 pixels; in proportion to the area elsewhere
SIDES = (10, 14)  # smallest and largest digit, pixels
OVERLAP = 0.2  # largest area that the boxes of two digits share, over that of the smaller
DARKENED = 0.5  # what the values of the photograph are multiplied by
BRIGHTNESS = (0.75, 1.0)  # of the ink
TRIES = 20  # places for a digit before the scene goes without it
BOUNDARY = 0.65  # share of a photograph's width that lies left of the cut

Box = tuple[int, int, int, int]  # top, left, bottom, right

_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


@dataclass
class Scenes:
    """The scenes of one split; a source of pairs.

    Attributes:
        split: `"train"` or `"val"`.
        digits: What is placed.
        areas: Parts of photographs, bytes H W 3.
        size: (height, width) of a scene in pixels.
        count: How many scenes there are.
        in_chans: 1 or 3.
    """

    split: str
    digits: sources.Source
    areas: Sequence[np.ndarray]
    size: tuple[int, int]
    count: int
    in_chans: int
    num_classes: int = len(NAMES)

    @property
    def class_names(self) -> list[str]:
        """Background, then the ten digits."""
        return list(NAMES)

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        """Return what a message calls scene number `index`."""
        return f"scene {index} of {self.split}"

    def pair(self, index: int) -> tuple[Image.Image, Image.Image]:
        """Return a scene and its mask of class numbers."""
        rng = np.random.default_rng([SEED, self.split == "val", index])
        area = self.areas[int(rng.integers(len(self.areas)))]
        scene = np.asarray(_crop(area, self.size, rng)) * (DARKENED / 255)
        numbers = np.zeros(self.size, np.uint8)
        boxes: list[Box] = []
        fewest, most = digits_in(self.size)
        for _ in range(rng.integers(fewest, most + 1)):
            chosen = int(rng.integers(len(self.digits)))
            side = int(rng.integers(SIDES[0], SIDES[1] + 1))
            ink = _ink(self.digits.image(chosen), side)
            box = _place(ink.shape, self.size, boxes, rng)
            if box is None:
                continue
            boxes.append(box)
            where = slice(box[0], box[2]), slice(box[1], box[3])
            _paint(scene[where], ink, rng)
            numbers[where][ink >= 0.5] = self.digits.labels[chosen] + 1
        image = Image.fromarray(np.round(scene * 255).astype(np.uint8))
        return image.convert(MODES[self.in_chans]), Image.fromarray(numbers)


def digits_in(size: tuple[int, int]) -> tuple[int, int]:
    """Return the fewest and the most digits of a scene of (height, width) pixels."""
    fewest, most = (max(2, round(n * size[0] * size[1] / 48**2)) for n in DIGITS)
    return fewest, most


def open_scenes(cfg: Any, split: str) -> Scenes:
    """Return the scenes of a resolved configuration.

    Raises:
        BadInput: No such split, or an image size that is too small for digits.
    """
    if split not in ("train", "val"):
        raise BadInput(f"{cfg.name} has no split {split!r}; there are train and val")
    if min(cfg.image_size) < 32:
        raise BadInput(
            f"data.image_size={cfg.image_size}: {cfg.name} needs at least 32 pixels a side, or"
            " several digits cannot be told apart"
        )
    train, val = sources.held_out(sources.digits((8, 8), 1), DIGITS_VAL)
    height, width = cfg.image_size
    return Scenes(
        split=split,
        digits=train if split == "train" else val,
        areas=[_side(photos.photograph(name), split) for name in (photos.CHINA, photos.FLOWER)],
        size=(height, width),
        count=cfg.train_images if split == "train" else cfg.val_images,
        in_chans=cfg.in_chans,
    )


def _side(photo: np.ndarray, split: str) -> np.ndarray:
    cut = round(BOUNDARY * photo.shape[1])
    return photo[:, :cut] if split == "train" else photo[:, cut:]


def _crop(area: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Cut a window of the shape of `size`, once to twice as large where it fits, and resize it."""
    largest = min(area.shape[0] / size[0], area.shape[1] / size[1])
    zoom = rng.uniform(min(1.0, largest), min(2.0, largest))
    height, width = (max(1, int(zoom * edge)) for edge in size)
    top = rng.integers(area.shape[0] - height + 1)
    left = rng.integers(area.shape[1] - width + 1)
    window = Image.fromarray(area[top : top + height, left : left + width])
    return window.resize((size[1], size[0]), Image.Resampling.BICUBIC)


def _ink(digit: Image.Image, side: int) -> np.ndarray:
    """Resize a digit to `side` pixels and cut away what is empty around it; values 0..1."""
    ink = np.asarray(digit.resize((side, side), Image.Resampling.BICUBIC)) / 255
    rows, columns = (np.flatnonzero((ink >= 0.5).any(axis=axis)) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _place(
    shape: tuple[int, ...], size: tuple[int, int], boxes: list[Box], rng: np.random.Generator
) -> Box | None:
    """Return a box for a digit of `shape` that hardly overlaps others; None if none is found."""
    for _ in range(TRIES):
        top = int(rng.integers(size[0] - shape[0] + 1))
        left = int(rng.integers(size[1] - shape[1] + 1))
        box = (top, left, top + shape[0], left + shape[1])
        if all(_overlap(box, other) <= OVERLAP for other in boxes):
            return box
    return None


def _overlap(one: Box, other: Box) -> float:
    """Return the area that two boxes share, over that of the smaller."""
    height = min(one[2], other[2]) - max(one[0], other[0])
    width = min(one[3], other[3]) - max(one[1], other[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return max(height, 0) * max(width, 0) / smaller


def _paint(window: np.ndarray, ink: np.ndarray, rng: np.random.Generator) -> None:
    """Blend one colour into `window` (values 0..1, S S 3, changed in place) where there is ink."""
    luma = rng.uniform(*BRIGHTNESS)
    tint = rng.uniform(-0.2, 0.2, 3)
    color = np.clip(luma + tint - tint @ _LUMA, 0, 1)
    window += ink[:, :, None] * (color - window)
