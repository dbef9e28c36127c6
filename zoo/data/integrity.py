"""Read images and masks before training, to report or leave out those that cannot be read."""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from zoo.data.loader import quiet_about_workers
from zoo.data.samplers import rank_and_world
from zoo.data.sources import Part, Source
from zoo.errors import BadInput
from zoo.images import convert, one_line, open_image, reason, unreadable

FEW = 500  # files; below this, starting worker processes takes longer than reading
HEADERS = 20_000  # headers to read before training; of more files, evenly spaced ones
PIXELS = 200_000_000  # a set of at most so many pixels is decoded as a whole: seconds
THREADS = 8
LISTED = 5  # names in a message

log = logging.getLogger("zoo.data")


class _Reads(Dataset):
    """For each index, what `read` returns, and the message of the error that it raises."""

    def __init__(self, read: Callable[[int], Any], count: int) -> None:
        self.read = read
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Any, str]:
        try:
            return self.read(index), ""
        except BadInput as error:
            return None, str(error)


def without_corrupt(source: Source, split: str, workers: int) -> Source:
    """Return the readable images of `source`.

    Raises:
        BadInput: A class has no readable image.
    """
    kept, _ = readable(lambda index: bool(source.image(index)), len(source), split, workers)
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


def readable(
    read: Callable[[int], Any], count: int, split: str, workers: int
) -> tuple[list[int], list[Any]]:
    """Return the indices of the readable items, and what `read` returned for them.

    A warning is logged for each corrupt one.

    Args:
        read: Called with each index below `count`; raises `BadInput` for a corrupt item.
        count: Number of items.
        split: Name of the split, for the warnings.
        workers: Number of processes.
    """
    found = list(_outcomes(read, count, workers))
    kept = [index for index, (_, message) in enumerate(found) if not message]
    if len(kept) < count and rank_and_world()[0] == 0:
        for _, message in found:
            if message:
                log.warning("skipped: %s", message.split("; ")[0])
        log.warning("corrupt images in split %s: skipped %d of %d", split, count - len(kept), count)
    return kept, [found[index][0] for index in kept]


def read_all(read: Callable[[int], Any], count: int, workers: int) -> list[Any]:
    """Return what `read` returns for every index below `count`.

    Args:
        read: Raises `BadInput` for an unusable item.
        count: Number of items.
        workers: Number of processes; only used if there are many items.

    Raises:
        BadInput: The error that `read` raises for the lowest index.
    """
    results = []
    for result, message in _outcomes(read, count, workers if count > FEW else 0):
        if message:
            raise BadInput(message)
        results.append(result)
    return results


def _outcomes(read: Callable[[int], Any], count: int, workers: int) -> Iterator[tuple[Any, str]]:
    with quiet_about_workers():
        loader = DataLoader(
            _Reads(read, count),
            batch_size=64,
            num_workers=workers,
            collate_fn=list,
            generator=torch.Generator(),  # leaves the global generator untouched
        )
    for outcomes in loader:
        yield from outcomes


def check_images(paths: Sequence[str], in_chans: int) -> None:
    """Read the headers of image files, and decode the images if that takes seconds only.

    Args:
        paths: The files. Of more than `HEADERS`, evenly spaced ones are read.
        in_chans: 1 (grey) or 3 (RGB).

    Raises:
        BadInput: Files cannot be read; the message lists the first ones.
    """
    step = max(1.0, len(paths) / HEADERS)
    chosen = [paths[int(i * step)] for i in range(min(len(paths), HEADERS))]
    with ThreadPoolExecutor(THREADS) as threads:
        pixels = list(threads.map(_pixels, chosen))
        broken = {p: found for p, found in zip(chosen, pixels, strict=True) if found is str(found)}
        total = sum(found for found in pixels if isinstance(found, int))
        if len(chosen) == len(paths) and total <= PIXELS:
            whole = [path for path in chosen if path not in broken]
            faults = threads.map(lambda path: _fault(path, in_chans), whole)
            broken |= {path: found for path, found in zip(whole, faults, strict=True) if found}
    if broken:
        listed = [path for path in chosen if path in broken]
        more = "".join(f", {one_line(path)} ({broken[path]})" for path in listed[1:LISTED])
        if len(listed) > LISTED:
            more += f" and {len(listed) - LISTED} more"
        raise unreadable(listed[0], str(broken[listed[0]]), more)


def _pixels(path: str) -> int | str:
    """Return the number of pixels of an image from its header, or why it cannot be read."""
    try:
        with open_image(path) as image:
            return image.width * image.height
    except Exception as error:  # as in `zoo.images.read_image`
        return reason(error)


def _fault(path: str, in_chans: int) -> str:
    """Return why an image cannot be decoded; empty if it can."""
    try:
        with open_image(path) as image:
            convert(image, in_chans)
    except Exception as error:  # as in `zoo.images.read_image`
        return reason(error)
    return ""
