"""`digits_in_photos`: one handwritten digit on a crop of a photograph, for classification.

The plain digits are too easy: every network is above 98 % after minutes, and differences between
methods disappear. Here the size, the position and the contrast of the digit vary, and fragments of
other digits are scattered behind it.

An image is a function of its split and its index: the set is the same on every machine, and nothing
is stored or downloaded. It uses scikit-learn's 1,797 digits (8 x 8 pixels, split as for `digits`)
and its two sample photographs. Training images show digits of the training split on the left parts
of the photographs, validation images show the other digits on the right parts. Fragments are of
the digits of the same split, so the splits have no pixel in common.

How an image of side s is drawn:

- background: a crop of a photograph, once to twice as large as the image, resized to s and darkened
  by `DARKENING`;
- clutter: `FRAGMENTS` quarters of digits at random positions, resized as digits of `SIDES`;
- digit: resized to a square whose side is a share of s (`SIDES`), cropped to its ink, at a random
  position where it is wholly visible, on top of the clutter.

Digits and fragments have one colour each: the mean colour behind them, lighter by `CONTRASTS`. The
digits of a split take turns in a fixed random order, so each is drawn as often as any other or once
more.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from zoo.data import photos, scenes, sources
from zoo.errors import BadInput
from zoo.images import MODES

SEED = 1
SMALLEST = 32  # side of an image, pixels
SIDES = (0.5, 0.9)  # side of the smallest and the largest digit / side of the image
DARKENING = 0.6  # factor on the photograph's values
CONTRASTS = (
    0.2,
    0.5,
)  # least and most that a colour is lighter than what is behind it, values 0..1
TINT = 0.1  # largest difference of a channel from that
FRAGMENTS = (1, 4)  # fewest and most


@dataclass(frozen=True)
class Drawing:
    """An image and what it was made of.

    Attributes:
        pixels: The image, values 0..1, H W 3.
        behind: The image without its digit.
        ink: Share of the digit's colour in each pixel, values 0..1, H W.
    """

    pixels: np.ndarray
    behind: np.ndarray
    ink: np.ndarray


@dataclass
class DigitsInPhotos(sources.Source):
    """The images of one split.

    Attributes:
        split: `"train"` or `"val"`.
        digits: The digits of the split, 8 x 8 pixels.
        chosen: Which of them each image shows.
        areas: The backgrounds: parts of photographs, bytes H W 3.
        side: Height and width of an image in pixels.
        in_chans: 1 (grey) or 3 (RGB).
    """

    split: str = "train"
    digits: Any = None
    chosen: Sequence[int] = ()
    areas: Sequence[np.ndarray] = field(default_factory=list)
    side: int = 64
    in_chans: int = 3

    def image(self, index: int) -> Image.Image:
        """Return an image."""
        pixels = np.round(self.draw(index).pixels * 255).astype(np.uint8)
        return Image.fromarray(pixels).convert(MODES[self.in_chans])

    def name(self, index: int) -> str:
        """Return the name of an image in error messages."""
        return f"image {index} of {self.split}"

    def draw(self, index: int) -> Drawing:
        """Return an image and what it was made of."""
        rng = np.random.default_rng([SEED, self.split == "val", index])
        area = self.areas[int(rng.integers(len(self.areas)))]
        pixels = np.asarray(photos.crop(area, (self.side, self.side), rng)) * (DARKENING / 255)
        for _ in range(rng.integers(FRAGMENTS[0], FRAGMENTS[1] + 1)):
            other = self.digits.image(int(rng.integers(len(self.digits))))
            self._paint(pixels, _quarter(self._resized(other, rng), rng), rng)
        behind = pixels.copy()
        digit = self.digits.image(self.chosen[index])
        ink = self._paint(pixels, self._resized(digit, rng), rng)
        return Drawing(pixels, behind, ink)

    def _resized(self, digit: Image.Image, rng: np.random.Generator) -> np.ndarray:
        """Return the ink of a digit, of random size."""
        return scenes.ink_of(digit, round(self.side * rng.uniform(*SIDES)))

    def _paint(self, pixels: np.ndarray, ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Paint `ink` somewhere into `pixels` in place, and return its share in each pixel."""
        top, left = (
            int(rng.integers(self.side - edge + 1)) for edge in (ink.shape[0], ink.shape[1])
        )
        region = slice(top, top + ink.shape[0]), slice(left, left + ink.shape[1])
        window = pixels[region]
        color = _color(window.mean(axis=(0, 1)), rng)
        window += ink[:, :, None] * (color - window)
        whole = np.zeros(pixels.shape[:2])
        whole[region] = ink
        return whole


def _quarter(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a random quarter of a digit: a part of a stroke or two, which is no digit."""
    half = [max(1, edge // 2) for edge in ink.shape]
    top, left = (
        int(rng.integers(edge - part + 1)) for edge, part in zip(ink.shape, half, strict=True)
    )
    return ink[top : top + half[0], left : left + half[1]]


def _color(mean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a random colour that is lighter than `mean`."""
    return np.clip(mean + rng.uniform(*CONTRASTS) + rng.uniform(-TINT, TINT, 3), 0, 1)


def open_images(cfg: Any, split: str) -> DigitsInPhotos:
    """Return the images of a split of a resolved configuration.

    Raises:
        BadInput: There is no such split, or the image size is no square or too small.
    """
    sources.check_train_or_val(cfg.name, split)
    height, width = cfg.image_size
    if height != width or height < SMALLEST:
        raise BadInput(
            f"data.image_size={cfg.image_size} must be a square of at least {SMALLEST} pixels a"
            f" side for data.name={cfg.name}"
        )
    digits = sources.split_digits((8, 8), 1)[0 if split == "train" else 1]
    count = cfg.train_images if split == "train" else cfg.val_images
    order = np.random.default_rng([SEED, split == "val"]).permutation(len(digits))
    chosen = [int(order[index % len(order)]) for index in range(count)]
    return DigitsInPhotos(
        labels=[digits.labels[number] for number in chosen],
        num_classes=digits.num_classes,
        class_names=digits.class_names,
        split=split,
        digits=digits,
        chosen=chosen,
        areas=[
            photos.part(photos.photograph(name), split) for name in (photos.CHINA, photos.FLOWER)
        ],
        side=height,
        in_chans=cfg.in_chans,
    )
