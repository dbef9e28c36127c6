"""Where images come from: something that can be asked for image number i and its label."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from zoo.data.images import read_image
from zoo.errors import BadInput

# The held-out part must stay the same from run to run, so the run's seed has no say in it.
SPLIT_SEED = 0


@dataclass
class Source:
    """Images that lie in memory, and the interface of the others.

    Attributes:
        labels: One class index an image.
        num_classes: How many classes there are.
        class_names: Their names in order, if known.
        images: 8-bit images, grey or RGB as the run asked.
    """

    labels: Sequence[int]
    num_classes: int
    class_names: list[str] | None
    images: Sequence[Image.Image] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        """Return image number `index`, decoded.

        Raises:
            BadInput: It cannot be read.
        """
        return self.images[index]

    def name(self, index: int) -> str:
        """Return what a message calls image number `index`."""
        return f"number {index}"


@dataclass
class Files(Source):
    """Image files.

    Attributes:
        paths: One a label.
        in_chans: 1 or 3.
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
        whole: The source.
        indices: Which of its images, in order.
    """

    whole: Any = None
    indices: Sequence[int] = field(default_factory=list)

    @classmethod
    def of(cls, whole: Source, indices: Sequence[int]) -> "Part":
        """Return the part of `whole` that `indices` names."""
        labels = [whole.labels[index] for index in indices]
        return cls(labels, whole.num_classes, whole.class_names, whole=whole, indices=indices)

    def image(self, index: int) -> Image.Image:
        return self.whole.image(self.indices[index])

    def name(self, index: int) -> str:
        return self.whole.name(self.indices[index])


def held_out(whole: Source, share: float) -> tuple[Part, Part]:
    """Split stratified by class into (train, val), always in the same way.

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
        raise BadInput(f"data.val_split={share} cannot be done: {error}") from error
    return Part.of(whole, sorted(train)), Part.of(whole, sorted(val))


def digits(size: tuple[int, int], in_chans: int) -> Source:
    """Return scikit-learn's 1,797 handwritten digits, 8 x 8 pixels, resized to (height, width)."""
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    pixels = np.round(found.images * (255 / 16)).astype(np.uint8)  # N H W, values 0..16 before
    height, width = size
    images = []
    for array in pixels:
        image = Image.fromarray(array).resize((width, height), Image.Resampling.BICUBIC)
        images.append(image if in_chans == 1 else image.convert("RGB"))
    names = [str(name) for name in found.target_names]
    return Source(found.target.tolist(), len(names), names, images)
