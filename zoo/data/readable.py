"""Looking at every image before training: to refuse or leave out bad ones, or to keep all."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from zoo.data.samplers import rank_and_world
from zoo.data.sources import Part, Source
from zoo.errors import BadInput

FEW = 500  # files; starting processes for less takes longer than looking

log = logging.getLogger("zoo.data")


class _Look(Dataset):
    """Gives what is wrong with image number i; an empty text for nothing."""

    def __init__(self, read: Callable[[int], Any], count: int) -> None:
        self.read = read
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> str:
        try:
            self.read(index)
        except BadInput as error:
            return str(error)
        return ""


def without_corrupt(source: Source, split: str, workers: int) -> Source:
    """Return the images of `source` that can be read.

    Raises:
        BadInput: A class has no image left.
    """
    kept = readable(source.image, len(source), split, workers)
    if len(kept) == len(source):
        return source
    part = Part.of(source, kept)
    gone = sorted(set(source.labels) - set(part.labels))
    if gone:
        name = source.class_names[gone[0]] if source.class_names else gone[0]
        raise BadInput(f"no image of class {name!r} in split {split} can be read")
    return part


def readable(read: Callable[[int], Any], count: int, split: str, workers: int) -> list[int]:
    """Return which of `count` images can be read; warn of each other one, then of their number.

    Every image is decoded once, by `workers` processes, so that the order of a run is known before
    it starts.

    Args:
        read: Called with numbers below `count`; raises `BadInput` for a corrupt image.
        count: How many there are.
        split: What warnings call them together.
        workers: Processes.
    """
    found = list(_complaints(read, count, workers))
    kept = [index for index, complaint in enumerate(found) if not complaint]
    if len(kept) < count and rank_and_world()[0] == 0:
        for complaint in filter(None, found):
            log.warning("left out: %s", complaint.split("; ")[0])
        log.warning(
            "%d of %d images of %s are corrupt and left out", count - len(kept), count, split
        )
    return kept


def check(read: Callable[[int], Any], count: int, workers: int) -> None:
    """Call `read` with every number below `count`.

    Args:
        read: Raises `BadInput` for what cannot be used.
        count: How many there are.
        workers: Processes.

    Raises:
        BadInput: The first that `read` raises, by number.
    """
    for complaint in _complaints(read, count, workers if count > FEW else 0):
        if complaint:
            raise BadInput(complaint)


def _complaints(read: Callable[[int], Any], count: int, workers: int) -> Iterator[str]:
    loader = DataLoader(
        _Look(read, count),
        batch_size=64,
        num_workers=workers,
        collate_fn=list,
        generator=torch.Generator(),
    )
    for texts in loader:
        yield from texts


def in_memory(source: Source) -> Source:
    """Return `source` with every image decoded, at its own size: width x height x channels bytes.

    Raises:
        BadInput: An image cannot be read.
    """
    images: list[Image.Image] = [source.image(index) for index in range(len(source))]
    return Source(source.labels, source.num_classes, source.class_names, images)
