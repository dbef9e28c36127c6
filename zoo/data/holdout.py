"""Hold out a share of the images for validation, in a way that does not change as a set grows.

Each image is assigned by a hash of its key alone: its path relative to the folder, or its row
number. Adding, removing or reordering images moves no other image between the halves, and neither
does moving or renaming the folder. Only the guarantee that each half has an image of every class
may decide otherwise: it moves one image of a class that would be missing. A run writes its split
to `split.csv`, which evaluation uses, so that no image of the training half is ever evaluated.
"""

import csv
import hashlib
import logging
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.data.listing import shortened
from zoo.data.samplers import rank_and_world
from zoo.errors import BadInput
from zoo.settings import DataConfig

FILE = "split.csv"  # in a run folder

SavedSplit = Mapping[str, str]  # key of an image -> "train" or "val"

log = logging.getLogger("zoo.data")


def position(key: str) -> float:
    """Return a number from 0 to 1 that depends on the key alone, the same on every machine."""
    # macOS and Linux may store one name in two Unicode forms.
    name = unicodedata.normalize("NFC", key).encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.sha256(name).digest()[:8], "big") / 2**64


def is_divided(cfg: DataConfig, split: str) -> bool:
    """Return whether a split is a part of the training images, by `val_split` or `folds`."""
    return split in ("train", "val") and (cfg.val_split is not None or cfg.folds is not None)


def part(source: Any, cfg: DataConfig, split: str, saved: SavedSplit | None = None) -> list[int]:
    """Return the indices of the images of a split for which `is_divided` is true.

    Args:
        source: The images, as for `halves`.
        cfg: A resolved configuration.
        split: `"train"` or `"val"`.
        saved: The split of a run, which decides instead.

    Raises:
        BadInput: A class has too few images, or the saved split has no image left.
    """
    if cfg.val_split is not None:
        train, val = halves(source, cfg.val_split, saved)
    else:
        train, val = fold_of(source, cfg.folds or 0, cfg.fold or 0, saved)
    return train if split == "train" else val


def fold_of(
    source: Any, folds: int, fold: int, saved: SavedSplit | None = None
) -> tuple[list[int], list[int]]:
    """Return the indices of the images outside and inside of a fold of a cross-validation.

    The images of each class are dealt out to the folds in the order of their hashes, so the folds
    differ by at most one image in each class, and in total.

    Args:
        source: The images, as for `halves`.
        folds: Number of folds.
        fold: Number of the fold, from 0.
        saved: The split of a run, which decides instead.

    Raises:
        BadInput: A class has fewer images than there are folds.
    """
    keys = [source.key(index) for index in range(len(source))]
    if saved is not None and (found := _as_saved(keys, saved)) is not None:
        return found
    labels = [int(label) for label in getattr(source, "labels", None) or [0] * len(keys)]
    counts = Counter(labels)
    rarest = min(counts, key=lambda label: counts[label])
    if counts[rarest] < folds:
        names = getattr(source, "class_names", None) if hasattr(source, "labels") else None
        of_class = f" of class {names[rarest]!r}" if names else ""
        raise BadInput(
            f"data.folds={folds} is more than the {counts[rarest]} images{of_class}; lower it, or"
            " add images"
        )
    order = sorted(range(len(keys)), key=lambda index: (labels[index], position(keys[index])))
    val = set(order[fold::folds])
    return [index for index in range(len(keys)) if index not in val], sorted(val)


def halves(
    source: Any, share: float, saved: SavedSplit | None = None
) -> tuple[list[int], list[int]]:
    """Return the indices of the training half and of the validation half.

    Args:
        source: The images, with `key`; `labels` and `class_names` if each image has one class.
        share: Images whose position is below this are held out.
        saved: The split of a run, which decides instead. Images that it does not have are left out.

    Raises:
        BadInput: A class has fewer than two images, or the saved split has no image left.
    """
    keys = [source.key(index) for index in range(len(source))]
    if saved is not None:
        found = _as_saved(keys, saved)
        if found is not None:
            return found
    labels = getattr(source, "labels", None)
    groups: dict[int | None, list[tuple[float, int]]] = defaultdict(list)
    for index, key in enumerate(keys):
        label = None if labels is None else int(labels[index])
        groups[label].append((position(key), index))
    train, val = [], []
    for label, members in groups.items():
        if len(members) < 2:
            raise BadInput(_too_few(source, share, label))
        members.sort()
        held = sum(where < share for where, _ in members)
        held = min(max(held, 1), len(members) - 1)
        val += [index for _, index in members[:held]]
        train += [index for _, index in members[held:]]
    return sorted(train), sorted(val)


def listed(source: Any, split: SavedSplit, path: Path) -> tuple[list[int], list[int]]:
    """Return the indices of the training half and of the validation half of `data.split_file`.

    Images that the file does not list are left out.

    Args:
        source: The images, with `key`.
        split: The content of the file.
        path: The file, for messages.

    Raises:
        BadInput: A half has no image.
    """
    halves_of: dict[str, list[int]] = {"train": [], "val": []}
    keys = [source.key(index) for index in range(len(source))]
    for index, key in enumerate(keys):
        if key in split:
            halves_of[split[key]].append(index)
    gone = sorted(split.keys() - set(keys))
    if gone:
        _warn(f"{_count(gone)} of {path.name} are missing: {shortened(gone)}")
    for half, indices in halves_of.items():
        if not indices:
            raise BadInput(
                f"data.split_file={path} lists no image of the folder for {half}; its column image"
                " must have paths below the folder of the classes"
            )
    return halves_of["train"], halves_of["val"]


def _too_few(source: Any, share: float, label: int | None) -> str:
    if label is None:
        return f"data.val_split={share} cannot split a single image; add more"
    name = source.class_names[label] if source.class_names else label
    return (
        f"data.val_split={share}: cannot split class {name!r}, which has a single image; add"
        " images, or remove the class"
    )


def _as_saved(keys: list[str], saved: SavedSplit) -> tuple[list[int], list[int]] | None:
    """Return the halves of a saved split, and report what has changed; None if nothing is left."""
    chosen: dict[str, list[int]] = {"train": [], "val": []}
    new = []
    for index, key in enumerate(keys):
        half = saved.get(key)
        if half in chosen:
            chosen[half].append(index)
        else:
            new.append(key)
    if not (chosen["train"] or chosen["val"]):
        _warn(f"no image of the run's {FILE} is left: these images are split anew")
        return None
    gone = sorted(saved.keys() - set(keys))
    if new:
        verb = "is" if len(new) == 1 else "are"
        _warn(f"{_count(new)} {verb} new since training, left out: {shortened(new)}")
    if gone:
        verb = "is" if len(gone) == 1 else "are"
        _warn(f"{_count(gone)} of the run {verb} missing: {shortened(gone)}")
    if not chosen["val"]:
        raise BadInput(
            f"all validation images of the run's {FILE} are missing; restore them, or give"
            " data.val_split=<another share> for another split"
        )
    return chosen["train"], chosen["val"]


def _count(keys: list[str]) -> str:
    return "1 image" if len(keys) == 1 else f"{len(keys)} images"


def _warn(text: str) -> None:
    if rank_and_world()[0] == 0:
        log.warning("%s", text)


def write(folder: Path, splits: Mapping[str, Sequence[str]]) -> None:
    """Write `split.csv`: the half and the key of each image.

    Args:
        folder: The run folder.
        splits: The keys of `"train"` and `"val"`.
    """
    with (folder / FILE).open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.writer(file)
        table.writerow(["split", "image"])
        table.writerows([split, key] for split, keys in splits.items() for key in keys)


def read(folder: Path) -> dict[str, str] | None:
    """Return the split of a run folder; None if it has none.

    Raises:
        BadInput: The file is damaged.
    """
    path = folder / FILE
    return read_file(path) if path.is_file() else None


def read_file(path: Path) -> dict[str, str]:
    """Return the half of each image of a file like `split.csv`.

    Raises:
        BadInput: The file is missing or damaged.
    """
    if not path.is_file():
        raise BadInput(f"data.split_file={path} does not exist; give a file like {FILE} of a run")
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = list(csv.DictReader(file))
        split = {row["image"]: row["split"] for row in rows}
        is_valid = bool(split) and None not in split and set(split.values()) <= {"train", "val"}
    except (OSError, csv.Error, KeyError, UnicodeError):
        split, is_valid = {}, False
    if not is_valid:
        raise BadInput(f"{path} is damaged; restore it, or delete it to split by data.val_split")
    return split
