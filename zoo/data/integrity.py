"""Read every image before training, to report or leave out corrupt ones."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from zoo.data.samplers import rank_and_world
from zoo.data.sources import Part, Source
from zoo.errors import BadInput

FEW = 500  # files; below this, starting worker processes takes longer than reading

log = logging.getLogger("zoo.data")


class _ReadErrors(Dataset):
    """For each index, the message of the error that reading it raises; empty if it is readable."""

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
    """Return the readable images of `source`.

    Raises:
        BadInput: A class has no readable image.
    """
    kept = readable_indices(source.image, len(source), split, workers)
    if len(kept) == len(source):
        return source
    part = Part.of(source, kept)
    emptied = sorted(set(source.labels) - set(part.labels))
    if emptied:
        name = source.class_names[emptied[0]] if source.class_names else emptied[0]
        raise BadInput(
            f"no image of class {name!r} in split {split} can be read; "
            "repair one, or remove the class"
        )
    return part


def readable_indices(read: Callable[[int], Any], count: int, split: str, workers: int) -> list[int]:
    """Return the indices of the readable images; log a warning for each corrupt one.

    Args:
        read: Called with each index below `count`; raises `BadInput` for a corrupt image.
        count: Number of images.
        split: Name of the split, for the warnings.
        workers: Number of processes.
    """
    messages = list(_read_errors(read, count, workers))
    kept = [index for index, message in enumerate(messages) if not message]
    if len(kept) < count and rank_and_world()[0] == 0:
        for message in filter(None, messages):
            log.warning("skipped: %s", message.split("; ")[0])
        log.warning("corrupt images in split %s: skipped %d of %d", split, count - len(kept), count)
    return kept


def check_all_readable(read: Callable[[int], Any], count: int, workers: int) -> None:
    """Call `read` with every index below `count`.

    Args:
        read: Raises `BadInput` for an unusable item.
        count: Number of items.
        workers: Number of processes; only used if there are many items.

    Raises:
        BadInput: The error that `read` raises for the lowest index.
    """
    for message in _read_errors(read, count, workers if count > FEW else 0):
        if message:
            raise BadInput(message)


def _read_errors(read: Callable[[int], Any], count: int, workers: int) -> Iterator[str]:
    loader = DataLoader(
        _ReadErrors(read, count),
        batch_size=64,
        num_workers=workers,
        collate_fn=list,
        generator=torch.Generator(),  # leaves the global generator untouched
    )
    for messages in loader:
        yield from messages
