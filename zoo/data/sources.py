"""Labelled images by index: in memory, in files, or a part of another source."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from zoo.errors import BadInput, unknown_value
from zoo.images import read_image

DIGITS_VAL = 0.2  # share of the digits in the validation split
SPLIT_SEED = 0  # fixed: the validation split must not depend on the run's seed


@dataclass
class Source:
    """Labelled images in memory, and the interface of all other sources.

    Attributes:
        labels: A class index per image.
        num_classes: Number of classes.
        class_names: Their names in order, if known.
        images: 8-bit images, all grey or all RGB.
    """

    labels: Sequence[int]
    num_classes: int
    class_names: list[str] | None
    images: Sequence[Image.Image] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        """Return a decoded image.

        Raises:
            BadInput: The image cannot be read.
        """
        return self.images[index]

    def name(self, index: int) -> str:
        """Return the name of an image in error messages."""
        return f"number {index}"


@dataclass
class Files(Source):
    """Image files.

    Attributes:
        paths: A path per label.
        in_chans: 1 (grey) or 3 (RGB).
    """

    paths: Sequence[str] = field(default_factory=list)
    in_chans: int = 3

    def image(self, index: int) -> Image.Image:
        return read_image(self.paths[index], self.in_chans, self.paths[index])

    def name(self, index: int) -> str:
        return self.paths[index]


@dataclass
class Part(Source):
    """Some of the images of another source.

    Attributes:
        whole: The other source.
        indices: The indices of the images in `whole`, in order.
    """

    whole: Any = None
    indices: Sequence[int] = field(default_factory=list)

    @classmethod
    def of(cls, whole: Source, indices: Sequence[int]) -> "Part":
        """Return the images of `whole` at `indices`."""
        labels = [whole.labels[index] for index in indices]
        return cls(labels, whole.num_classes, whole.class_names, whole=whole, indices=indices)

    def image(self, index: int) -> Image.Image:
        return self.whole.image(self.indices[index])

    def name(self, index: int) -> str:
        return self.whole.name(self.indices[index])


def in_memory(source: Source) -> Source:
    """Return `source` with every image decoded: width x height x channels bytes per image.

    Raises:
        BadInput: An image cannot be read.
    """
    images = [source.image(index) for index in range(len(source))]
    return Source(source.labels, source.num_classes, source.class_names, images)


def held_out(whole: Source, share: float) -> tuple[Part, Part]:
    """Split into (train, val), stratified by class; every call returns the same split.

    Args:
        whole: The images to split.
        share: Share of the images in the validation part, between 0 and 1.

    Raises:
        BadInput: A class has fewer than two images, or a part would lack a class.
    """
    from sklearn.model_selection import train_test_split

    try:
        train, val = train_test_split(
            list(range(len(whole))),
            test_size=share,
            stratify=list(whole.labels),
            random_state=SPLIT_SEED,
        )
    except ValueError as error:
        raise BadInput(
            f"data.val_split={share}: cannot split these images by class: {error}"
        ) from error
    return Part.of(whole, sorted(train)), Part.of(whole, sorted(val))


def digits(size: tuple[int, int], in_chans: int) -> Source:
    """Return scikit-learn's 1,797 handwritten digits, resized from 8 x 8 to (height, width)."""
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    pixels = np.round(found.images * (255 / 16)).astype(np.uint8)  # N H W, scaled from 0..16
    height, width = size
    images = []
    for array in pixels:
        image = Image.fromarray(array).resize((width, height), Image.Resampling.BICUBIC)
        images.append(image if in_chans == 1 else image.convert("RGB"))
    names = [str(name) for name in found.target_names]
    return Source(found.target.tolist(), len(names), names, images)


def split_digits(size: tuple[int, int], in_chans: int) -> tuple[Part, Part]:
    """Return the (train, val) splits of `digits`."""
    return held_out(digits(size, in_chans), DIGITS_VAL)


def check_train_or_val(name: str, split: str) -> None:
    """Raise `BadInput` unless `split` is `"train"` or `"val"`, the only splits of `name`."""
    if split not in ("train", "val"):
        where = f" of data set {name}"
        raise BadInput(unknown_value("split", split, ("train", "val"), where=where))
