"""Batches of prepared images whose randomness depends on (seed, epoch, index) alone."""

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
    """What a worker process hands over in place of a batch; the main process raises it.

    An exception itself would arrive wrapped in the worker's traceback.
    """

    message: str


@contextmanager
def own_randomness() -> Iterator[None]:
    """Give the global random states back as they were: loading must not disturb the training."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])


def seed_sample(*numbers: int) -> None:
    """Seed the three generators that timm's and torchvision's transforms draw from."""
    seed = mix(*numbers)
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002
    # Not torch.manual_seed: that would reseed the GPUs, where dropout draws.
    torch.default_generator.manual_seed(seed)


@dataclass
class Preparation:
    """From a PIL image to a normalised tensor.

    Attributes:
        transform: PIL image to uint8 tensor C H W, all of one size.
        mean: One number a channel, of values in 0..1.
        std: One number a channel, of values in 0..1.
        erase: In-place random erasing of the normalised image, or None.
    """

    transform: Callable[[Image.Image], Tensor]
    mean: Sequence[float]
    std: Sequence[float]
    erase: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        # In units of the bytes, as timm's prefetching loader does, so that both agree bit for bit.
        self._shift = (255 * np.asarray(self.mean)).astype(np.float32).reshape(-1, 1, 1)
        self._scale = (255 * np.asarray(self.std)).astype(np.float32).reshape(-1, 1, 1)

    def into(self, out: Tensor, image: Image.Image) -> None:
        """Write the prepared `image` to `out` (float32, C H W).

        NumPy computes with one thread: torch would start all of them for each image, which costs
        more than the computation where the cores are busy.
        """
        pixels = out.numpy()
        np.subtract(self.transform(image).numpy(), self._shift, out=pixels)
        pixels /= self._scale
        if self.erase is not None:
            self.erase(out)


class ImageSet(torch.utils.data.Dataset):
    """A source and how its images are prepared; gives whole batches for lists of keys.

    Args:
        source: The images and labels.
        preparation: What is done to each.
        shape: (C, H, W) of a prepared image.
        seed: With the epoch and the index it decides all that is random; None where nothing is.
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
        """Load one batch; the loader calls this once a batch, here or in a worker process."""
        try:
            return self.load(keys)
        except BadInput as error:
            return Failure(str(error))

    def load(self, keys: list[Key]) -> Batch:
        """Return images (float32, B C H W) and labels (int64, B).

        Raises:
            BadInput: An image cannot be read.
        """
        images = torch.empty(len(keys), *self.shape)
        labels = torch.tensor([self.source.labels[index] for _, index in keys])
        if self.seed is None:
            for out, (_, index) in zip(images, keys, strict=True):
                self.preparation.into(out, self.source.image(index))
            return images, labels
        with own_randomness():
            for out, (epoch, index) in zip(images, keys, strict=True):
                image = self.source.image(index)
                seed_sample(self.seed, epoch, index)
                self.preparation.into(out, image)
        return images, labels


def as_is(batch: Any) -> Any:
    """The collate function: `ImageSet` makes whole batches itself."""
    return batch
