"""Look at a folder of images before training: classes, sizes, broken files, copies, the split."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from zoo.data import folders
from zoo.data.listing import shortened
from zoo.data.sources import Source
from zoo.diagnosis import duplicates
from zoo.errors import BadInput
from zoo.fitting import split
from zoo.images import convert, open_image, reason
from zoo.progress import track
from zoo.settings import DataConfig

THREADS = 4
IMBALANCED = 3.0  # images of the largest class over those of the smallest


@dataclass(frozen=True)
class Inspection:
    """What was found in a folder.

    Attributes:
        about: Plain values, for the record and the page.
        halves: The half of each usable image by its key; None if the folder is split already.
    """

    about: dict[str, Any]
    halves: dict[str, str] | None


def inspect(folder: str) -> Inspection:
    """Read all images of a folder `<class>/<image>`, or of `train` and `val` inside it.

    Raises:
        BadInput: The folder has no classes, one class only, or a class with fewer than two images
            that can be read.
    """
    config = DataConfig(name="folder", root=folder, train_split_name="train", val_split_name="val")
    root = folders.existing_root(config)
    is_split = all((root / name).is_dir() for name in ("train", "val"))
    parts = ("train", "val") if is_split else ("train" if (root / "train").is_dir() else "",)
    sources = {part: folders.scan(root / part, 3) for part in parts}
    seen = [
        _Seen(part, source, index) for part, source in sources.items() for index in _all(source)
    ]
    with ThreadPoolExecutor(THREADS) as threads:
        list(track(threads.map(_Seen.read, seen), "reading the images", total=len(seen)))
    usable = [one for one in seen if not one.fault]
    _check_classes(usable, sources[parts[0]])
    copies = duplicates.groups([one.look for one in usable])
    if is_split:
        halves = [one.part for one in usable]
    else:
        names = sources[parts[0]].class_names or []
        labels = [names.index(one.label) for one in usable]
        halves = split.assign([one.key for one in usable], labels, copies)
    about = _describe(seen, usable, copies, halves, is_split=is_split)
    if is_split:
        return Inspection(about, None)
    return Inspection(about, dict(zip([one.key for one in usable], halves, strict=True)))


def _all(source: Source) -> range:
    return range(len(source))


class _Seen:
    """An image of the folder, and what reading it showed."""

    look: duplicates.Look
    size: tuple[int, int]

    def __init__(self, part: str, source: Source, index: int) -> None:
        self.part, self.path = part, source.files(index)[0]
        self.key = source.key(index)
        self.label = (source.class_names or [])[source.labels[index]]
        self.fault = ""

    @property
    def shown(self) -> str:
        """The path below the folder that the user gave."""
        return f"{self.part}/{self.key}" if self.part else self.key

    def read(self) -> None:
        try:
            with open_image(self.path) as image:
                whole = convert(image, 3)
        except Exception as error:  # Pillow raises errors of many types
            self.fault = reason(error)
            return
        self.size, self.look = whole.size, duplicates.look(whole)


def _check_classes(usable: list[_Seen], source: Source) -> None:
    counts = Counter(one.label for one in usable)
    names = source.class_names or []
    if len(names) < 2:
        raise BadInput(
            f"there is a single class folder, {shortened(names)}; put the images of each class in a"
            " folder of its own"
        )
    few = [name for name in names if counts[name] < 2]
    if few:
        raise BadInput(
            f"class {shortened(few)} has fewer than two images that can be read; add images, or"
            " remove the folder"
        )


def _describe(
    seen: list[_Seen],
    usable: list[_Seen],
    copies: list[list[int]],
    halves: list[str],
    *,
    is_split: bool,
) -> dict[str, Any]:
    """Return what was found, as plain values."""
    groups = [[usable[index] for index in group] for group in copies]
    labels = sorted({one.label for one in usable})
    counts = Counter((one.label, half) for one, half in zip(usable, halves, strict=True))
    rows = [
        {"class": label, "train": counts[label, "train"], "val": counts[label, "val"]}
        for label in labels
    ]
    trained = [row["train"] for row in rows]
    across = [
        group
        for group, members in zip(groups, copies, strict=True)
        if len({halves[index] for index in members}) > 1
    ]
    areas = sorted(usable, key=lambda one: one.size[0] * one.size[1])
    chosen = {"smallest": areas[0], "median": areas[len(areas) // 2], "largest": areas[-1]}
    return {
        "images": len(usable),
        "train": sum(trained),
        "val": len(usable) - sum(trained),
        "classes": rows,
        "is_imbalanced": max(trained) >= IMBALANCED * max(1, min(trained)),
        "sizes": {name: list(one.size) for name, one in chosen.items()},
        "broken": [{"file": one.shown, "reason": one.fault} for one in seen if one.fault],
        "is_split": is_split,
        "copies": [[one.shown for one in group] for group in groups],
        "copies_across_classes": [
            [one.shown for one in group]
            for group in groups
            if len({one.label for one in group}) > 1
        ],
        "copies_across_split": [[one.shown for one in group] for group in across],
    }


def lines(about: dict[str, Any]) -> list[str]:
    """Return what a user should know about the images, in sentences."""
    sizes = sorted(row["train"] + row["val"] for row in about["classes"])
    each = f"{sizes[0]}" if sizes[0] == sizes[-1] else f"{sizes[0]} to {sizes[-1]}"
    text = [
        f"{about['images']} images in {len(about['classes'])} classes, {each} a class;"
        f" {about['train']} for training, {about['val']} for validation"
    ]
    if broken := about["broken"]:
        text.append(f"left out, cannot be read: {shortened([one['file'] for one in broken])}")
    copies = sum(map(len, about["copies"]))
    if copies:
        kept = "" if about["is_split"] else "; copies stay in the same half where possible"
        text.append(f"{copies} images have copies, exact or nearly so{kept}")
    if across := about["copies_across_split"]:
        text.append(
            f"in both halves, so that the accuracy is too high: copies such as"
            f" {shortened(across[0])}, {len(across)} such groups"
        )
    if untested := [row["class"] for row in about["classes"] if not row["val"]]:
        text.append(f"not in the validation images, so never tested: class {shortened(untested)}")
    if several := about["copies_across_classes"]:
        text.append(f"in several classes: {shortened(several[0])}, {len(several)} such groups")
    if about["is_imbalanced"]:
        text.append("the classes differ much in size: mistakes on rare classes count more")
    return text
