"""Batches of prepared images whose randomness depends only on (seed, epoch, index)."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from zoo.data.samplers import Key, mix
from zoo.data.sources import Source
from zoo.errors import BadInput

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Failure:
    """An error that a worker process returns instead of a batch, for the main process to raise.

    A raised exception would arrive wrapped in the worker's traceback.
    """

    message: str


@contextmanager
def own_randomness() -> Iterator[None]:
    """Restore the global random states on exit: loading must not affect training."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])


def seed_sample(*numbers: int) -> None:
    """Seed the global generators of Python, NumPy and torch, which the transforms draw from."""
    seed = mix(*numbers)
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002
    # torch.manual_seed would also reseed the GPU generators, which dropout draws from.
    torch.default_generator.manual_seed(seed)


@dataclass
class Preparation:
    """Turns a PIL image into a normalised tensor.

    Attributes:
        transform: PIL image -> uint8 tensor C H W of a fixed size.
        mean: One number per channel, for pixel values in 0..1.
        std: One number per channel, for pixel values in 0..1.
        is_reversed: Whether the channels are reversed first, from RGB to BGR.
        erase: In-place random erasing of the normalised image, or None.
    """

    transform: Callable[[Image.Image], Tensor]
    mean: Sequence[float]
    std: Sequence[float]
    is_reversed: bool = False
    erase: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        # Scaled to 0..255 as in timm's prefetching loader: both give bitwise equal results.
        self._shift = (255 * np.asarray(self.mean)).astype(np.float32).reshape(-1, 1, 1)
        self._scale = (255 * np.asarray(self.std)).astype(np.float32).reshape(-1, 1, 1)

    def prepare_into(self, out: Tensor, image: Image.Image) -> None:
        """Write the prepared `image` to `out` (float32, C H W).

        Uses NumPy, which computes in one thread: torch would start all of its threads for each
        image, which takes longer than the computation on busy cores.
        """
        pixels = out.numpy()
        read = self.transform(image).numpy()
        np.subtract(read[::-1] if self.is_reversed else read, self._shift, out=pixels)
        pixels /= self._scale
        if self.erase is not None:
            self.erase(out)


class ImageSet(torch.utils.data.Dataset):
    """Prepared images of a source, as whole batches for lists of keys.

    Args:
        source: The images and labels.
        preparation: How each image is prepared.
        shape: (C, H, W) of a prepared image.
        seed: Determines all randomness, together with epoch and index; None if nothing is random.
    """

    def __init__(
        self, source: Source, preparation: Preparation, shape: tuple[int, ...], seed: int | None
    ) -> None:
        self.source = source
        self.preparation = preparation
        self.shape = shape
        self.seed = seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Key) -> Batch:
        images, labels = self.load([key])
        return images[0], labels[0]

    def __getitems__(self, keys: list[Key]) -> Batch | Failure:
        """Load one batch, in this process or in a worker process; called by torch's DataLoader."""
        try:
            return self.load(keys)
        except BadInput as error:
            return Failure(str(error))

    def targets(self, keys: list[Key]) -> torch.Tensor:
        """Return the class of each image (int64, B)."""
        return torch.tensor([self.source.labels[index] for _, index in keys])

    def load(self, keys: list[Key]) -> Batch:
        """Return images (float32, B C H W) and `targets`.

        Raises:
            BadInput: An image cannot be read.
        """
        images = torch.empty(len(keys), *self.shape)
        labels = self.targets(keys)
        if self.seed is None:
            for out, (_, index) in zip(images, keys, strict=True):
                self.preparation.prepare_into(out, self.source.image(index))
            return images, labels
        with own_randomness():
            for out, (epoch, index) in zip(images, keys, strict=True):
                image = self.source.image(index)
                seed_sample(self.seed, epoch, index)
                self.preparation.prepare_into(out, image)
        return images, labels


def as_is(batch: Any) -> Any:
    """Return `batch`: the collate function for data sets that build whole batches."""
    return batch
