"""Images to calibrate on, and others to evaluate single layers on.

Both are training images, prepared as in evaluation, without augmentation. The artefact is evaluated
on validation images, which neither calibration nor the choice of float layers has seen.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.data.dataset import own_randomness, seed_sample
from zoo.errors import BadInput
from zoo.training.tasks import denormalized

BATCH = 32  # images per batch if the artefact takes any number
Batch = tuple[Tensor, Tensor]


def calibration(data: Any, images: int) -> list[Batch]:
    """Return up to `images` evenly spread training images in batches, with their targets.

    Args:
        data: Any datamodule, after `setup`.
        images: Number of images.

    Raises:
        BadInput: `images` is less than 1, or the data set has no training images.
    """
    return _evenly_spread(data, images, 0.0)


def held_out(data: Any, images: int) -> list[Batch]:
    """Return training images other than those of `calibration`, if the data set has enough."""
    return _evenly_spread(data, images, 0.5)


def arrays(
    batches: Sequence[Batch], data: Any, *, pixels: bool = False, batch: int | None = None
) -> list[np.ndarray]:
    """Return the images of batches in the form that an artefact takes.

    Args:
        batches: Images and targets.
        data: The datamodule that normalised them.
        pixels: Whether the artefact takes bytes.
        batch: Batch size of the artefact, or None for any. The last batch is filled up with the
            last image, which does not widen any range.
    """
    parts = [images for images, _ in batches]
    if batch is not None:
        parts = list(torch.cat(parts).split(batch))
        last = parts[-1]
        parts[-1] = torch.cat([last, last[-1:].expand(batch - len(last), *last.shape[1:])])
    if pixels:
        parts = [
            (255 * denormalized(data, images)).round().clamp(0, 255).byte() for images in parts
        ]
    return [np.ascontiguousarray(images.numpy()) for images in parts]


def _evenly_spread(data: Any, images: int, offset: float) -> list[Batch]:
    if images < 1:
        raise BadInput(f"quantize.images={images} must be at least 1")
    loader = data.eval_dataloader("train")
    if data.streaming:  # shards are not indexed: take the first images, then the next
        total = _streamed(loader, images, skipped=images if offset else 0)
    else:
        count = min(images, len(loader.dataset))
        step = len(loader.dataset) / count
        # Some data sets draw training images at random; calibration always sees the same.
        with own_randomness():
            seed_sample(int(2 * offset))
            total = loader.dataset.load([(0, int((i + offset) * step)) for i in range(count)])
    return list(zip(total[0].split(BATCH), total[1].split(BATCH), strict=True))


def _streamed(loader: Any, images: int, skipped: int) -> Batch:
    size = loader.dataset.batch_size
    taken = list(itertools.islice(loader, -(-(skipped + images) // size)))
    if not taken:
        raise BadInput(
            "the data set has no training images to calibrate on; choose another data set"
        )
    both = [torch.cat(part) for part in zip(*taken, strict=True)]
    start = skipped if len(both[0]) > skipped else 0
    return both[0][start : start + images], both[1][start : start + images]
