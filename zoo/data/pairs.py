"""Pairs of an image and its mask, which contains a class number per pixel."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image

from zoo.data.sources import relative_key
from zoo.errors import BadInput
from zoo.images import image_size, open_image, read_image, reason, upright

IGNORE = 255  # the mask's number for pixels without a class: neither trained on nor evaluated


class Pairs(Protocol):
    """Image-mask pairs by index."""

    @property
    def num_classes(self) -> int: ...

    @property
    def class_names(self) -> list[str] | None: ...

    def __len__(self) -> int: ...

    def name(self, index: int) -> str: ...

    def pair(self, index: int) -> tuple[Image.Image, Image.Image]: ...

    def key(self, index: int) -> str: ...

    def files(self, index: int) -> list[str]: ...


@dataclass
class FilePairs:
    """Image files and mask files.

    Attributes:
        images: Paths.
        masks: Paths, in the order of `images`.
        num_classes: Number of classes.
        class_names: Their names in order, if known.
        in_chans: 1 (grey) or 3 (RGB).
        palette: For coloured masks, the colours of the classes in order: bytes K 3.
        first: The number of the first class in the mask files.
        root: The folder that `key` is relative to.
    """

    images: Sequence[str]
    masks: Sequence[str]
    num_classes: int
    class_names: list[str] | None = None
    in_chans: int = 3
    palette: np.ndarray | None = None
    first: int = 0
    root: str = ""

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        """Return the name of an image in error messages."""
        return self.images[index]

    def key(self, index: int) -> str:
        """Return what identifies a pair in its data set, on every machine."""
        return relative_key(self.images[index], self.root)

    def files(self, index: int) -> list[str]:
        """Return the paths of the image and of its mask."""
        return [self.images[index], self.masks[index]]

    def pair(self, index: int) -> tuple[Image.Image, Image.Image]:
        """Return an image and its mask: class numbers from 0, and `IGNORE`.

        Raises:
            BadInput: A file cannot be read, the two differ in size, or the mask contains a number
                or colour that belongs to no class.
        """
        image = read_image(self.images[index], self.in_chans, self.images[index])
        mask = self._mask(self.masks[index])
        self._check_sizes(index, mask.size, image.size)
        return image, mask

    def check_files(self, index: int) -> np.ndarray:
        """Check a whole mask and the header of its image, and return `pixel_counts` of the mask.

        Raises:
            BadInput: `pair` would raise, unless only the image's pixel data is damaged.
        """
        mask = self._mask(self.masks[index])
        self._check_sizes(index, mask.size, image_size(self.images[index]))
        return pixel_counts(mask)

    def check_whole(self, index: int) -> np.ndarray:
        """Check a mask and its image, and return `pixel_counts` of the mask.

        Raises:
            BadInput: `pair` would raise.
        """
        return pixel_counts(self.pair(index)[1])

    def _check_sizes(self, index: int, mask: tuple[int, int], image: tuple[int, int]) -> None:
        if mask != image:
            raise BadInput(
                f"mask {self.masks[index]} has {mask[0]} x {mask[1]} pixels, but its image "
                f"{self.images[index]} has {image[0]} x {image[1]}; make the sizes equal (both are"
                " turned as their EXIF orientation says)"
            )

    def _mask(self, path: str) -> Image.Image:
        pixels = _decode_mask(path, coloured=self.palette is not None)
        if self.palette is not None:
            return Image.fromarray(_class_numbers(pixels, self.palette, path))
        if pixels.ndim != 2:
            raise BadInput(
                f"mask {path} is coloured; set data.palette to the colours of the classes in order"
            )
        if pixels.dtype.kind == "f" and not np.isin(pixels, np.arange(256)).all():
            raise BadInput(
                f"mask {path} contains numbers that are not whole from 0 to 255; save class numbers"
                " with 8 bits"
            )
        numbers = np.where(pixels == IGNORE, IGNORE, pixels.astype(np.int64) - self.first)
        wrong = (numbers != IGNORE) & ((numbers < 0) | (numbers >= self.num_classes))
        if wrong.any():
            raise BadInput(
                f"mask {path} contains the number {int(pixels[wrong][0])}; valid numbers for "
                f"{self.num_classes} classes: {self.first} to {self.first + self.num_classes - 1},"
                f" and {IGNORE} for pixels without a class"
            )
        return Image.fromarray(numbers.astype(np.uint8))


@dataclass
class PairPart:
    """Some of the pairs of another source.

    Attributes:
        whole: The other source.
        indices: The indices of the pairs in `whole`, in order.
    """

    whole: Any
    indices: Sequence[int]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.whole.num_classes

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes in order, if known."""
        return self.whole.class_names

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        """Return the name of an image in error messages."""
        return self.whole.name(self.indices[index])

    def pair(self, index: int) -> tuple[Image.Image, Image.Image]:
        """Return an image and its mask."""
        return self.whole.pair(self.indices[index])

    def key(self, index: int) -> str:
        """Return what identifies a pair in its data set."""
        return self.whole.key(self.indices[index])

    def files(self, index: int) -> list[str]:
        """Return the paths of the image and of its mask."""
        return self.whole.files(self.indices[index])

    def check_files(self, index: int) -> np.ndarray:
        """Like `FilePairs.check_files`."""
        return self.whole.check_files(self.indices[index])

    def check_whole(self, index: int) -> np.ndarray:
        """Like `FilePairs.check_whole`."""
        return self.whole.check_whole(self.indices[index])


@dataclass
class RenumberedPairs(PairPart):
    """All pairs of another source, with other class numbers in the masks.

    Attributes:
        numbers: The new number of each class; None makes its pixels belong to no class.
        count: Number of new classes.
        names: Their names in order, if known.
    """

    numbers: Sequence[int | None] = ()
    count: int = 0
    names: list[str] | None = None

    @property
    def num_classes(self) -> int:
        return self.count

    @property
    def class_names(self) -> list[str] | None:
        return self.names

    def pair(self, index: int) -> tuple[Image.Image, Image.Image]:
        image, mask = super().pair(index)
        table = np.full(256, IGNORE, np.uint8)
        for before, after in enumerate(self.numbers):
            table[before] = IGNORE if after is None else after
        return image, Image.fromarray(table[np.asarray(mask)])


def pixel_counts(mask: Image.Image) -> np.ndarray:
    """Return how many pixels of a mask have each number: 256 integers."""
    return np.bincount(np.asarray(mask).ravel(), minlength=256)


def _decode_mask(path: str, coloured: bool) -> np.ndarray:
    """Return the pixels of a mask: H W 3 if `coloured`, otherwise in the layout of the file."""
    try:
        with open_image(path) as opened:
            mask = upright(opened)
            return np.asarray(mask.convert("RGB") if coloured else mask)
    except Exception as error:  # Pillow's decoders raise errors of many types
        raise BadInput(
            f"cannot read mask {path} ({reason(error)}); "
            "repair or remove it, or set data.skip_corrupt=true to skip such files"
        ) from error


def _class_numbers(pixels: np.ndarray, palette: np.ndarray, path: str) -> np.ndarray:
    """Return the class number of each pixel's colour: H W 3 -> H W."""
    codes = pixels.astype(np.int64) @ (65536, 256, 1)
    known = palette.astype(np.int64) @ (65536, 256, 1)
    order = np.argsort(known)
    found = order[np.searchsorted(known[order], codes).clip(max=len(known) - 1)]
    unknown = known[found] != codes
    if unknown.any():
        raise BadInput(
            f"mask {path} contains the colour {pixels[unknown][0].tolist()}, which is not in "
            "data.palette; add it"
        )
    return found.astype(np.uint8)
