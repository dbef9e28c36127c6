"""Scenes of handwritten digits on photographs: `digits_segmentation` and `digits_detection`.

The former has the class of every pixel, the latter the box of every digit's ink.

A scene is a function of its split and its index: the set is the same on every machine, and nothing
is stored or downloaded. It uses scikit-learn's 1,797 digits (8 x 8 pixels, split as for `digits`)
and its two sample photographs. Training scenes show digits of the training split on the left parts
of the photographs, validation scenes show the other digits on the right parts; the splits have no
pixel in common.

A scene of 48 x 48 pixels has six to ten digits. The number is proportional to the area (43 to 71 in
128 x 128 pixels), at least two; a digit is left out if no free place is found for it. Digits are
resized to squares of 10 to 14 pixels and cropped to their ink. Each is painted in one bright colour
on the darkened photograph. Two digits overlap by at most a fifth of the smaller one's box, the
later one on top. A pixel belongs to a digit if its ink is at least 0.5.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from zoo.data import photos, sources
from zoo.errors import BadInput
from zoo.images import MODES

NAMES = ["background", *"0123456789"]
SEED = 0
DIGITS = (6, 10)  # fewest and most per 48 x 48 pixels
SIDES = (10, 14)  # side of the smallest and the largest digit, pixels
MAX_OVERLAP = 0.2  # intersection of two digits' boxes / area of the smaller box
DARKENING = 0.5  # factor on the photograph's values
BRIGHTNESS = (0.75, 1.0)  # luma of the ink, lowest and highest
TRIES = 20  # attempts to place a digit before it is left out

Box = tuple[int, int, int, int]  # top, left, bottom, right

_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


@dataclass
class Scenes:
    """The scenes of one split, as image-mask pairs.

    Attributes:
        split: `"train"` or `"val"`.
        digits: The digits of the split.
        areas: The backgrounds: parts of photographs, bytes H W 3.
        size: (height, width) of a scene in pixels.
        count: Number of scenes.
        in_chans: 1 (grey) or 3 (RGB).
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
        """Names of the classes: background, then the ten digits."""
        return list(NAMES)

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        """Return the name of a scene in error messages."""
        return f"scene {index} of {self.split}"

    def pair(self, index: int) -> tuple[Image.Image, Image.Image]:
        """Return a scene and its mask of class numbers."""
        image, numbers, _ = self.draw(index)
        return image, Image.fromarray(numbers)

    def draw(self, index: int) -> tuple[Image.Image, np.ndarray, list[tuple[int, Box]]]:
        """Return a scene, the class number of each pixel, and the digits with their boxes."""
        rng = np.random.default_rng([SEED, self.split == "val", index])
        area = self.areas[int(rng.integers(len(self.areas)))]
        scene = np.asarray(photos.crop(area, self.size, rng)) * (DARKENING / 255)
        numbers = np.zeros(self.size, np.uint8)
        boxes: list[Box] = []
        labels: list[int] = []
        fewest, most = digit_counts(self.size)
        for _ in range(rng.integers(fewest, most + 1)):
            chosen = int(rng.integers(len(self.digits)))
            side = int(rng.integers(SIDES[0], SIDES[1] + 1))
            ink = ink_of(self.digits.image(chosen), side)
            box = _place(ink.shape, self.size, boxes, rng)
            if box is None:
                continue
            boxes.append(box)
            labels.append(int(self.digits.labels[chosen]))
            region = slice(box[0], box[2]), slice(box[1], box[3])
            _paint(scene[region], ink, rng)
            numbers[region][ink >= 0.5] = self.digits.labels[chosen] + 1
        image = Image.fromarray(np.round(scene * 255).astype(np.uint8))
        return image.convert(MODES[self.in_chans]), numbers, list(zip(labels, boxes, strict=True))


@dataclass
class BoxedScenes:
    """The scenes of one split, with the box of each digit.

    Attributes:
        scenes: The scenes.
    """

    scenes: Scenes
    num_classes: int = 10

    @property
    def class_names(self) -> list[str]:
        """Names of the ten digits."""
        return NAMES[1:]

    def __len__(self) -> int:
        return len(self.scenes)

    def name(self, index: int) -> str:
        """Return the name of a scene in error messages."""
        return self.scenes.name(index)

    def boxed(self, index: int) -> tuple[Image.Image, np.ndarray]:
        """Return a scene and its boxes, float32 n 6 (`zoo.data.boxes`)."""
        image, _, digits = self.scenes.draw(index)
        rows = [
            (digit, left, top, right, bottom, 0) for digit, (top, left, bottom, right) in digits
        ]
        return image, np.array(rows, np.float32).reshape(-1, 6)


def digit_counts(size: tuple[int, int]) -> tuple[int, int]:
    """Return the minimum and the maximum number of digits in a scene of (height, width)."""
    fewest, most = (max(2, round(n * size[0] * size[1] / 48**2)) for n in DIGITS)
    return fewest, most


def open_scenes(cfg: Any, split: str) -> Scenes:
    """Return the scenes of a resolved configuration.

    Raises:
        BadInput: There is no such split, or the image size is too small for digits.
    """
    sources.check_train_or_val(cfg.name, split)
    if min(cfg.image_size) < 32:
        raise BadInput(
            f"data.image_size={cfg.image_size} is too small for several digits; {cfg.name} needs"
            " at least 32 pixels per side"
        )
    train, val = sources.split_digits((8, 8), 1)
    height, width = cfg.image_size
    return Scenes(
        split=split,
        digits=train if split == "train" else val,
        areas=[
            photos.part(photos.photograph(name), split) for name in (photos.CHINA, photos.FLOWER)
        ],
        size=(height, width),
        count=cfg.train_images if split == "train" else cfg.val_images,
        in_chans=cfg.in_chans,
    )


def open_boxed_scenes(cfg: Any, split: str) -> BoxedScenes:
    """Return the scenes of a resolved configuration with the boxes of their digits.

    Raises:
        BadInput: As for `open_scenes`.
    """
    return BoxedScenes(open_scenes(cfg, split))


def ink_of(digit: Image.Image, side: int) -> np.ndarray:
    """Return a digit's ink (H W, values 0..1), resized to `side` pixels and cropped."""
    ink = np.asarray(digit.resize((side, side), Image.Resampling.BICUBIC)) / 255
    rows, columns = (np.flatnonzero((ink >= 0.5).any(axis=axis)) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _place(
    shape: tuple[int, ...], size: tuple[int, int], boxes: list[Box], rng: np.random.Generator
) -> Box | None:
    """Return a random box of `shape` within MAX_OVERLAP of all `boxes`; None if none was found."""
    for _ in range(TRIES):
        top = int(rng.integers(size[0] - shape[0] + 1))
        left = int(rng.integers(size[1] - shape[1] + 1))
        box = (top, left, top + shape[0], left + shape[1])
        if all(_overlap(box, other) <= MAX_OVERLAP for other in boxes):
            return box
    return None


def _overlap(one: Box, other: Box) -> float:
    """Return the intersection of two boxes divided by the area of the smaller one."""
    height = min(one[2], other[2]) - max(one[0], other[0])
    width = min(one[3], other[3]) - max(one[1], other[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return max(height, 0) * max(width, 0) / smaller


def _paint(window: np.ndarray, ink: np.ndarray, rng: np.random.Generator) -> None:
    """Blend a random colour into `window` (H W 3, values 0..1) in place, by the amount of ink."""
    luma = rng.uniform(*BRIGHTNESS)
    tint = rng.uniform(-0.2, 0.2, 3)
    color = np.clip(luma + tint - tint @ _LUMA, 0, 1)
    window += ink[:, :, None] * (color - window)
