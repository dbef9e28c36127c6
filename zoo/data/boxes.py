"""Images and their boxes.

The boxes of an image are rows of `ROW` numbers: class number, x1, y1, x2, y2 in pixels, and 1 for a
crowd, which is neither trained on nor evaluated.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from zoo.data.sources import relative_key
from zoo.images import read_image

ROW = 6
NO_CLASS = -1  # class number of the rows that fill up a tensor of several images


@dataclass
class BoxFiles:
    """Image files and the boxes in them.

    Attributes:
        images: Paths.
        rows: For each image, its boxes, float32 n 6.
        class_names: Names of the classes in order.
        annotations: For each image, the file that has its boxes.
        in_chans: 1 (grey) or 3 (RGB).
        root: The folder that `key` is relative to.
    """

    images: Sequence[str]
    rows: Sequence[np.ndarray]
    class_names: list[str]
    annotations: Sequence[str]
    in_chans: int = 3
    root: str = ""

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        """Return the name of an image in error messages."""
        return self.images[index]

    def key(self, index: int) -> str:
        """Return what identifies an image in its data set, on every machine."""
        return relative_key(self.images[index], self.root)

    def files(self, index: int) -> list[str]:
        """Return the paths of the image and of the file with its boxes."""
        return [self.images[index], self.annotations[index]]

    def boxes(self, index: int) -> np.ndarray:
        """Return the boxes of an image, float32 n 6."""
        return self.rows[index]

    def boxed(self, index: int) -> tuple[Image.Image, np.ndarray]:
        """Return an image and its boxes.

        Raises:
            BadInput: The image cannot be read.
        """
        path = self.images[index]
        return read_image(path, self.in_chans, path), self.rows[index]


@dataclass
class BoxPart:
    """Some of the images of another source, with other class numbers if `numbers` is given.

    Attributes:
        whole: The other source.
        indices: The indices of the images in `whole`, in order.
        numbers: The new number of each class; None leaves out its boxes.
        names: Names of the new classes in order, if known.
        count: Number of new classes.
    """

    whole: Any
    indices: Sequence[int]
    numbers: Sequence[int | None] | None = None
    names: list[str] | None = None
    count: int = 0

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.whole.num_classes if self.numbers is None else self.count

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes in order, if known."""
        return self.whole.class_names if self.numbers is None else self.names

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        """Return the name of an image in error messages."""
        return self.whole.name(self.indices[index])

    def key(self, index: int) -> str:
        """Return what identifies an image in its data set."""
        return self.whole.key(self.indices[index])

    def files(self, index: int) -> list[str]:
        """Return the paths of the image and of the file with its boxes."""
        return self.whole.files(self.indices[index])

    def boxes(self, index: int) -> np.ndarray:
        """Return the boxes of an image, float32 n 6."""
        return self._renumbered(self.whole.boxes(self.indices[index]))

    def boxed(self, index: int) -> tuple[Image.Image, np.ndarray]:
        """Return an image and its boxes."""
        image, rows = self.whole.boxed(self.indices[index])
        return image, self._renumbered(rows)

    def _renumbered(self, rows: np.ndarray) -> np.ndarray:
        if self.numbers is None:
            return rows
        new = [self.numbers[int(number)] for number in rows[:, 0]]
        kept = [index for index, number in enumerate(new) if number is not None]
        rows = rows[kept].copy()
        rows[:, 0] = [number for number in new if number is not None]
        return rows
