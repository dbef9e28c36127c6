"""Find images of the validation split that are copies of training images."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from zoo.diagnosis import duplicates
from zoo.errors import BadInput
from zoo.progress import track

MOST = 20_000  # images that are read without being told to
THREADS = 4


def across_splits(data: Any) -> list[dict[str, list[str]]]:
    """Return groups of copies with images of both splits: their keys by split.

    Images that cannot be read are left out.

    Args:
        data: The data module, after `setup`; its training images can be opened.
    """
    members = [
        (split, data.source(split), index)
        for split in ("train", "val")
        for index in range(len(data.source(split)))
    ]

    def look(member: tuple[str, Any, int]) -> duplicates.Look | None:
        _, source, index = member
        try:
            return duplicates.look(source.image(index))
        except BadInput:
            return None

    with ThreadPoolExecutor(THREADS) as threads:
        looks = list(track(threads.map(look, members), "looking for copies", total=len(members)))
    readable = [
        (member, seen) for member, seen in zip(members, looks, strict=True) if seen is not None
    ]
    found = []
    for group in duplicates.groups([seen for _, seen in readable]):
        keys: dict[str, list[str]] = {"train": [], "val": []}
        for number in group:
            split, source, index = readable[number][0]
            keys[split].append(source.key(index))
        if keys["train"] and keys["val"]:
            found.append(keys)
    return found


def train_images(data: Any) -> int | None:
    """Return the number of training images; None if there are none that can be listed."""
    if data.streaming:
        return None
    try:
        return len(data.source("train"))
    except BadInput:  # a data set for evaluation only
        return None
