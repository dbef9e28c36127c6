"""Images with any number of labels each: from a CSV, or from folders that share file names."""

import csv
import difflib
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from zoo.data import folders, holdout
from zoo.data.listing import shortened
from zoo.data.sources import relative_key
from zoo.errors import BadInput
from zoo.images import read_image
from zoo.settings import DataConfig

NO_LABEL = "-"  # in the column labels: an image of no class
SPLITS = ("train", "val")
_SEPARATORS = re.compile(r"[;|,]")


@dataclass
class TaggedFiles:
    """Image files with a set of labels each.

    Attributes:
        paths: The image files.
        targets: For each image a 0 or 1 for each class.
        class_names: Names of the classes in order.
        in_chans: 1 (grey) or 3 (RGB).
        root: The folder that `key` is relative to.
    """

    paths: Sequence[str]
    targets: Sequence[Sequence[int]]
    class_names: list[str]
    in_chans: int = 3
    root: str = ""
    keys: Sequence[str] = field(default_factory=list)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, index: int) -> Image.Image:
        """Return a decoded image; raise `BadInput` if it cannot be read."""
        return read_image(self.paths[index], self.in_chans, self.paths[index])

    def name(self, index: int) -> str:
        """Return the name of an image in error messages."""
        return self.paths[index]

    def key(self, index: int) -> str:
        """Return what identifies an image in its data set, on every machine."""
        return self.keys[index]

    def files(self, index: int) -> list[str]:
        """Return the path of an image."""
        return [self.paths[index]]

    def part(self, indices: Iterable[int]) -> "TaggedFiles":
        """Return some of the images."""
        chosen = list(indices)
        return TaggedFiles(
            [self.paths[index] for index in chosen],
            [self.targets[index] for index in chosen],
            self.class_names,
            self.in_chans,
            self.root,
            [self.keys[index] for index in chosen],
        )

    def renumbered(
        self, numbers: Sequence[int | None], names: list[str] | None, count: int
    ) -> "TaggedFiles":
        """Return the images with other class numbers.

        Args:
            numbers: The new number of each class; None drops the label.
            names: Names of the new classes in order, if known.
            count: Number of new classes.
        """
        targets = []
        for row in self.targets:
            new = [0] * count
            for number, value in zip(numbers, row, strict=True):
                if number is not None:
                    new[number] = value
            targets.append(new)
        names = names or [str(number) for number in range(count)]
        return TaggedFiles(self.paths, targets, names, self.in_chans, self.root, self.keys)


def open_split(cfg: DataConfig, split: str, saved: holdout.SavedSplit | None = None) -> TaggedFiles:
    """Return the images of a split.

    Args:
        cfg: A resolved configuration.
        split: `"train"` or `"val"`.
        saved: The split of a run, which decides instead.

    Raises:
        BadInput: The table or a folder is missing or contradicts itself, or has no such split.
    """
    if split not in SPLITS:
        raise BadInput(f"data.name={cfg.name} has no split {split!r}. Choices: train, val")
    if cfg.labels is None:
        whole, own = _from_folders(cfg, split), None
    else:
        whole, own = _from_table(cfg)
    if holdout.is_divided(cfg, split):
        if own is not None:
            key = "folds" if cfg.val_split is None else "val_split"
            raise BadInput(
                f"data.{key}={getattr(cfg, key)} has no effect: {cfg.labels} has a column split;"
                " leave it out"
            )
        return whole.part(holdout.part(whole, cfg, split, saved))
    if cfg.labels is None:
        return whole
    if own is None:
        raise BadInput(
            f"{cfg.labels} does not say which images to validate on; add a column split with train"
            " or val, or give data.val_split=0.2"
        )
    chosen = [index for index, part in enumerate(own) if part == split]
    if not chosen:
        raise BadInput(f"{cfg.labels} has no row with split {split}; add some")
    return whole.part(chosen)


def _from_table(cfg: DataConfig) -> tuple[TaggedFiles, list[str] | None]:
    """Return the images of the CSV, and the split of each if it has that column."""
    path = Path(str(cfg.labels)).expanduser()
    root = folders.existing_root(cfg) if cfg.root else path.parent
    rows = _read(path)
    keys, tags, splits, lines = [], [], [], {}
    for number, row in rows:
        where = f"{path}, line {number}"
        image = (row["image"] or "").strip()
        if not image:
            raise BadInput(f"{where}: the column image is empty; give a file, or remove the line")
        key = relative_key(str(root / image), str(root))
        if key in lines:
            raise BadInput(
                f"{where}: {image} is also in line {lines[key]}; give each image one line, with"
                " its labels separated by ;"
            )
        lines[key] = number
        keys.append(key)
        tags.append(_labels(row["labels"], image, where))
        if "split" in row:
            splits.append(_split(row["split"], where))
    missing = [key for key in keys if not (root / key).is_file()]
    if missing:
        raise BadInput(
            f"{path}: {len(missing)} of {len(keys)} images do not exist below {root}:"
            f" {shortened(missing)}; correct the paths, or give data.root=<folder of the images>"
        )
    names = _class_names(cfg, tags, path, list(lines.values()))
    paths = [str(root / key) for key in keys]
    targets = [[int(name in own) for name in names] for own in tags]
    found = TaggedFiles(paths, targets, names, cfg.in_chans, str(root), keys)
    return found, splits or None


def _read(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Return the rows of a CSV with their line numbers."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file, skipinitialspace=True)
            columns = [(name or "").strip() for name in table.fieldnames or []]
            table.fieldnames = columns
            rows = [(table.line_num, row) for row in table]
    except OSError as error:
        reason = error.strerror or "cannot be read"
        raise BadInput(f"data.labels={path}: {reason}; give a CSV of files and labels") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"data.labels={path} is not a CSV in UTF-8 ({error})") from error
    absent = [name for name in ("image", "labels") if name not in columns]
    if absent:
        raise BadInput(
            f"data.labels={path} has no column {absent[0]}; its first line must name the columns"
            f" image and labels (found: {shortened(columns) if columns else 'nothing'})"
        )
    if not rows:
        raise BadInput(f"data.labels={path} has no rows below its first line; add images")
    for number, row in rows:
        if None in row or row["labels"] is None:
            raise BadInput(
                f"{path}, line {number}: it has {'more' if None in row else 'fewer'} cells than"
                " the first line; separate labels by ;"
            )
    return rows


def _labels(cell: str, image: str, where: str) -> set[str]:
    tags = {part.strip() for part in _SEPARATORS.split(cell)} - {""}
    if tags == {NO_LABEL}:
        return set()
    if not tags:
        raise BadInput(
            f"{where}: {image} has no labels; write {NO_LABEL} for an image of no class, or remove"
            " the line"
        )
    if NO_LABEL in tags:
        raise BadInput(f"{where}: {image} has the label {NO_LABEL}, which means none, and others")
    return tags


def _split(cell: str | None, where: str) -> str:
    name = (cell or "").strip()
    if name not in SPLITS:
        raise BadInput(f"{where}: split {name!r} is neither train nor val")
    return name


def _class_names(cfg: DataConfig, tags: list[set[str]], path: Path, lines: list[int]) -> list[str]:
    """Return the classes in order: those of `data.class_names`, or all labels."""
    used = sorted(set().union(*tags))
    if cfg.class_names is not None:
        known = list(cfg.class_names)
        for own, line in zip(tags, lines, strict=True):
            for name in sorted(own - set(known)):
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise BadInput(
                    f"{path}, line {line}: unknown label {name!r}; {hint}Choices"
                    f" (data.class_names): {shortened(known, 10)}"
                )
        return known
    if not used:
        raise BadInput(f"{path} has no label at all; give each image the classes it shows")
    by_form: dict[str, str] = {}
    for name in used:
        other = by_form.setdefault(name.casefold(), name)
        if other != name:
            raise BadInput(
                f"{path}: labels {other!r} and {name!r} differ only in case; write one of them"
            )
    return used


def _from_folders(cfg: DataConfig, split: str) -> TaggedFiles:
    """Return the images of folders of classes: a file in several of them has all these labels."""
    root = folders.existing_root(cfg)
    if holdout.is_divided(cfg, split):
        folder = folders.folder_to_split(cfg, root)
    else:
        folder = folders.split_folder(cfg, root, split)
    source = folders.scan(folder, cfg.in_chans)
    names = source.class_names or []
    paths: dict[str, str] = {}
    rows: dict[str, list[int]] = {}
    for label, path in zip(source.labels, source.paths, strict=True):
        key = relative_key(path, str(folder / names[label]))
        first = paths.setdefault(key, path)
        if first != path and _digest(first) != _digest(path):
            raise BadInput(
                f"{first} and {path} have one name but are different images; in data.name="
                f"{cfg.name} a name stands for one image, so rename one of them"
            )
        rows.setdefault(key, [0] * len(names))[label] = 1
    keys = sorted(paths)
    targets = [rows[key] for key in keys]
    return TaggedFiles([paths[k] for k in keys], targets, names, cfg.in_chans, str(folder), keys)


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
