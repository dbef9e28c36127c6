"""Images with a class number for each pixel, in files: the pairs that segmentation learns from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image

from zoo.data.images import image_size, read_image, reason
from zoo.data.sources import SPLIT_SEED
from zoo.errors import BadInput

IGNORE = 255  # what has this number belongs to no class: it is neither trained on nor judged


class Pairs(Protocol):
    """What can be asked for image number i and its mask."""

    num_classes: int

    @property
    def class_names(self) -> list[str] | None: ...

    def __len__(self) -> int: ...

    def name(self, index: int) -> str: ...

    def pair(self, index: int) -> tuple[Image.Image, Image.Image]: ...


@dataclass
class FilePairs:
    """Image files and mask files.

    Attributes:
        images: Paths.
        masks: As many paths, in the same order.
        num_classes: How many classes there are.
        class_names: Their names in order, if known.
        in_chans: 1 or 3.
        palette: Colours of the classes in order where masks are coloured, K 3.
        first: The number that the masks give to the first class.
    """

    images: Sequence[str]
    masks: Sequence[str]
    num_classes: int
    class_names: list[str] | None = None
    in_chans: int = 3
    palette: np.ndarray | None = None
    first: int = 0

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        """Return what a message calls image number `index`."""
        return self.images[index]

    def pair(self, index: int) -> tuple[Image.Image, Image.Image]:
        """Return an image and its mask, in which 0 is the first class and 255 none.

        Raises:
            BadInput: A file cannot be read, they differ in size, or the mask has other numbers or
                colours than there are classes.
        """
        image = read_image(self.images[index], self.in_chans, self.images[index])
        mask = self._mask(self.masks[index])
        self._check_sizes(index, mask.size, image.size)
        return image, mask

    def check(self, index: int) -> None:
        """Look at mask number `index` whole, and at its image as far as the header goes.

        Raises:
            BadInput: What `pair` would raise, but for images that are damaged behind their header.
        """
        mask = self._mask(self.masks[index])
        self._check_sizes(index, mask.size, image_size(self.images[index]))

    def _check_sizes(self, index: int, mask: tuple[int, int], image: tuple[int, int]) -> None:
        if mask != image:
            sizes = [f"{width} x {height}" for width, height in (mask, image)]
            raise BadInput(
                f"mask {self.masks[index]} has {sizes[0]} pixels, its image {self.images[index]}"
                f" {sizes[1]}; they must agree"
            )

    def _mask(self, path: str) -> Image.Image:
        pixels = _decoded(path, coloured=self.palette is not None)
        if self.palette is not None:
            return Image.fromarray(_numbers(pixels, self.palette, path))
        if pixels.ndim != 2:
            raise BadInput(
                f"mask {path} is coloured; give data.palette, the colours of the classes in order"
            )
        numbers = np.where(pixels == IGNORE, IGNORE, pixels.astype(np.int64) - self.first)
        wrong = (numbers != IGNORE) & ((numbers < 0) | (numbers >= self.num_classes))
        if wrong.any():
            raise BadInput(
                f"mask {path} has the number {int(pixels[wrong][0])}; {self.num_classes} classes"
                f" allow {self.first} to {self.first + self.num_classes - 1}, and {IGNORE} for what"
                " belongs to none"
            )
        return Image.fromarray(numbers.astype(np.uint8))


@dataclass
class PairPart:
    """Some of the pairs of another source.

    Attributes:
        whole: The source.
        indices: Which of its pairs, in order.
    """

    whole: Any
    indices: Sequence[int]

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return self.whole.num_classes

    @property
    def class_names(self) -> list[str] | None:
        """Their names in order, if known."""
        return self.whole.class_names

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        """Return what a message calls image number `index`."""
        return self.whole.name(self.indices[index])

    def pair(self, index: int) -> tuple[Image.Image, Image.Image]:
        """Return an image and its mask."""
        return self.whole.pair(self.indices[index])

    def check(self, index: int) -> None:
        """Raise `BadInput` if a mask, or an image's header, cannot be used."""
        self.whole.check(self.indices[index])


def held_out(whole: Pairs, share: float) -> tuple[PairPart, PairPart]:
    """Split at random into (train, val), always in the same way.

    Raises:
        BadInput: A part would be empty.
    """
    count = round(share * len(whole))
    if not 0 < count < len(whole):
        raise BadInput(f"data.val_split={share} of {len(whole)} images leaves one part empty")
    order = np.random.default_rng(SPLIT_SEED).permutation(len(whole)).tolist()
    return PairPart(whole, sorted(order[count:])), PairPart(whole, sorted(order[:count]))


def _decoded(path: str, coloured: bool) -> np.ndarray:
    """Return the pixels of a mask: H W 3 if `coloured`, else as the file has them."""
    try:
        with Image.open(path) as mask:
            return np.asarray(mask.convert("RGB") if coloured else mask)
    except Exception as error:  # Pillow's decoders raise whatever they meet
        raise BadInput(
            f"cannot read mask {path} ({reason(error)}); "
            "repair or remove it, or set data.skip_corrupt=true to leave such files out"
        ) from error


def _numbers(pixels: np.ndarray, palette: np.ndarray, path: str) -> np.ndarray:
    """Return the number of the class that has each pixel's colour, H W."""
    codes = pixels.astype(np.int64) @ (65536, 256, 1)
    known = palette.astype(np.int64) @ (65536, 256, 1)
    order = np.argsort(known)
    found = order[np.searchsorted(known[order], codes).clip(max=len(known) - 1)]
    strange = known[found] != codes
    if strange.any():
        raise BadInput(
            f"mask {path} has the colour {pixels[strange][0].tolist()}, which data.palette lacks"
        )
    return found.astype(np.uint8)
