"""Labelled images by index: in memory, in files, or a part of another source."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from zoo.errors import BadInput, unknown_value
from zoo.images import read_image

DIGITS_VAL = 0.2  # share of the digits in the validation split
SPLIT_SEED = 0  # of the digits, fixed: the split must not depend on the run's seed


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

    def key(self, index: int) -> str:
        """Return what identifies an image in its data set, on every machine."""
        return str(index)

    def files(self, index: int) -> list[str]:
        """Return the paths of the files of an image, the image first; none if it is in memory."""
        return []


@dataclass
class Files(Source):
    """Image files.

    Attributes:
        paths: A path per label.
        in_chans: 1 (grey) or 3 (RGB).
        root: The folder that `key` is relative to.
    """

    paths: Sequence[str] = field(default_factory=list)
    in_chans: int = 3
    root: str = ""

    def image(self, index: int) -> Image.Image:
        return read_image(self.paths[index], self.in_chans, self.paths[index])

    def name(self, index: int) -> str:
        return self.paths[index]

    def key(self, index: int) -> str:
        return relative_key(self.paths[index], self.root)

    def files(self, index: int) -> list[str]:
        return [self.paths[index]]


def relative_key(path: str, root: str) -> str:
    """Return a path relative to `root`, with slashes on every system."""
    return os.path.relpath(path, root).replace(os.sep, "/")


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

    @classmethod
    def renumbered(
        cls, whole: Source, numbers: Sequence[int | None], names: list[str] | None, count: int
    ) -> "Part":
        """Return the images of `whole` with other class numbers.

        Args:
            whole: The images.
            numbers: The new number of each class; None leaves out the images of the class.
            names: Names of the new classes in order, if known.
            count: Number of new classes.
        """
        new = [numbers[label] for label in whole.labels]
        indices = [index for index, label in enumerate(new) if label is not None]
        labels = [label for label in new if label is not None]
        return cls(labels, count, names, whole=whole, indices=indices)

    def image(self, index: int) -> Image.Image:
        return self.whole.image(self.indices[index])

    def name(self, index: int) -> str:
        return self.whole.name(self.indices[index])

    def key(self, index: int) -> str:
        return self.whole.key(self.indices[index])

    def files(self, index: int) -> list[str]:
        return self.whole.files(self.indices[index])


@dataclass
class InMemory(Part):
    """A source whose images are decoded already, with the names and keys of the source."""

    def image(self, index: int) -> Image.Image:
        return self.images[index]


def in_memory(source: Source) -> Source:
    """Return `source` with every image decoded: width x height x channels bytes per image.

    Raises:
        BadInput: An image cannot be read.
    """
    images = [source.image(index) for index in range(len(source))]
    kept = InMemory.of(source, range(len(source)))
    kept.images = images
    return kept


def digits(size: tuple[int, int], in_chans: int) -> Source:
    """Return scikit-learn's 1,797 handwritten digits, resized from 8 x 8 to (height, width)."""
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    pixels = np.round(found.images * (255 / 16)).astype(np.uint8)  # N H W, scaled from 0..16
    names = [str(name) for name in found.target_names]
    images = [Image.fromarray(array) for array in pixels]
    return Digits(found.target.tolist(), len(names), names, images, size=size, in_chans=in_chans)


@dataclass
class Digits(Source):
    """Small grey images that are enlarged when they are read, since large ones fill the memory.

    Attributes:
        size: (height, width) in pixels.
        in_chans: 1 (grey) or 3 (RGB).
    """

    size: tuple[int, int] = (8, 8)
    in_chans: int = 1

    def image(self, index: int) -> Image.Image:
        height, width = self.size
        image = self.images[index].resize((width, height), Image.Resampling.BICUBIC)
        return image if self.in_chans == 1 else image.convert("RGB")


def split_digits(size: tuple[int, int], in_chans: int) -> tuple[Part, Part]:
    """Return the (train, val) splits of `digits`, stratified by class and always the same."""
    from sklearn.model_selection import train_test_split

    whole = digits(size, in_chans)
    train, val = train_test_split(
        list(range(len(whole))),
        test_size=DIGITS_VAL,
        stratify=list(whole.labels),
        random_state=SPLIT_SEED,
    )
    return Part.of(whole, sorted(train)), Part.of(whole, sorted(val))


def check_train_or_val(name: str, split: str) -> None:
    """Raise `BadInput` unless `split` is `"train"` or `"val"`, the only splits of `name`."""
    if split not in ("train", "val"):
        where = f" of data set {name}"
        raise BadInput(unknown_value("split", split, ("train", "val"), where=where))
