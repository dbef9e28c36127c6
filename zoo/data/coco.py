"""Your own boxes: folders with `images/` and `annotations.json` in COCO's format."""

import json
import math
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from zoo.data import folders, holdout
from zoo.data.boxes import ROW, BoxFiles, BoxPart
from zoo.errors import BadInput
from zoo.images import image_size, one_line
from zoo.settings import DataConfig

FILE, IMAGES = "annotations.json", "images"
LARGEST = 1e9  # number in a box, pixels
OVERHANG = 1.0  # pixels that a box may exceed the image by; tools round differently


def open_coco(cfg: DataConfig, split: str, saved: holdout.SavedSplit | None = None) -> Any:
    """Return the images in `<root>/<split>`, or the share of `<root>` that `val_split` assigns.

    Args:
        cfg: A resolved configuration.
        split: Name of the split.
        saved: The split of a run, which decides instead of `val_split`.

    Raises:
        BadInput: A folder, a file or an image is missing, or an annotation is invalid.
    """
    root = folders.existing_root(cfg)
    if not holdout.is_divided(cfg, split):
        names = {"train": cfg.train_split_name, "val": cfg.val_split_name}
        folder = _split_folder(root, split, str(names.get(split) or split))
        return read(folder, cfg.in_chans, cfg.skip_corrupt)
    whole = read(folders.folder_to_split(cfg, root), cfg.in_chans, cfg.skip_corrupt)
    return BoxPart(whole, holdout.part(whole, cfg, split, saved))


def _split_folder(root: Path, split: str, name: str) -> Path:
    if (root / name).is_dir():
        return root / name
    hint = (
        f"set data.val_split=0.2 to hold out a share of {root / IMAGES}"
        if (root / FILE).is_file()
        else f"expected {root / name / FILE} and {root / name / IMAGES}"
    )
    other = f", or set data.{split}_split_name" if split in ("train", "val") else ""
    raise BadInput(f"{root} has no folder {name!r}; {hint}{other}")


def read(folder: Path, in_chans: int, skip_corrupt: bool = False) -> BoxFiles:
    """Return the images of `<folder>/images` that `<folder>/annotations.json` lists.

    Classes are numbered in the order of their ids.

    Args:
        folder: The folder.
        in_chans: 1 (grey) or 3 (RGB).
        skip_corrupt: Whether images that cannot be read will be left out later.

    Raises:
        BadInput: A file is missing, or an entry of the annotations is invalid.
    """
    path = folder / FILE
    content = _content(path)
    categories = _by_id(path, content, "categories")
    names = {number: _name(path, entry) for number, entry in categories.items()}
    if not names:
        raise BadInput(f"{path}: categories is empty; list the classes")
    repeated = [name for name in names.values() if list(names.values()).count(name) > 1]
    if repeated:
        raise BadInput(f"{path}: two categories are named {_shown(repeated[0])}; rename one")
    numbers = {number: index for index, number in enumerate(sorted(names))}
    images = _by_id(path, content, "images")
    if not images:
        raise BadInput(f"{path}: images is empty; list the images")
    files = _files(path, images)
    sizes = {
        number: _size(path, images[number], file, skip_corrupt) for number, file in files.items()
    }
    rows: dict[int, list[list[float]]] = {number: [] for number in images}
    for entry in _by_id(path, content, "annotations").values():
        image = _reference(path, entry, "image_id", images)
        category = _reference(path, entry, "category_id", categories)
        crowd = entry.get("iscrowd", 0)
        if isinstance(crowd, float) or crowd not in (0, 1):
            raise BadInput(f"{_at(path, entry)} has iscrowd={_shown(crowd)}; give 0 or 1")
        corners = _corners(path, entry, sizes[image], files[image])
        rows[image].append([numbers[category], *corners, float(crowd)])
    if not any(rows.values()):
        raise BadInput(f"{path}: annotations has no box, so there is nothing to detect")
    return BoxFiles(
        images=[str(files[number]) for number in images],
        rows=[np.array(rows[number], np.float32).reshape(-1, ROW) for number in images],
        class_names=[names[number] for number in sorted(names)],
        annotations=[str(path)] * len(images),
        in_chans=in_chans,
        root=str(folder / IMAGES),
    )


def _content(path: Path) -> dict[str, Any]:
    """Return the content of an annotation file, with its three lists."""
    if not path.is_file():
        raise BadInput(f"{path} does not exist; expected {FILE} and {IMAGES}/ in {path.parent}")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{path} is not JSON ({str(error) or type(error).__name__})") from error
    if not isinstance(content, dict):
        raise BadInput(f"{path} must be a JSON object with images, annotations and categories")
    for key in ("images", "annotations", "categories"):
        value = content.get(key)
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            what = "lacks" if key not in content else "has a wrong type for"
            raise BadInput(f"{path} {what} {key}; give a list of objects")
    return content


def _by_id(path: Path, content: dict[str, Any], key: str) -> dict[Any, dict[str, Any]]:
    """Return the entries of a list by their ids, in order.

    Annotations may have no id, which nothing refers to.
    """
    found: dict[Any, dict[str, Any]] = {}
    for index, entry in enumerate(content[key]):
        number = entry.get("id")
        if number is None and key == "annotations":
            entry = {**entry, "id": None}
            found[f"number {index}"] = entry
            continue
        if not _is_whole(number):
            raise BadInput(f"{path}: {key}[{index}] has id={_shown(number)}; give an integer")
        if number in found:
            raise BadInput(f"{path}: {key} has the id {number} twice; give each entry its own")
        found[number] = entry
    return found


def _name(path: Path, entry: dict[str, Any]) -> str:
    name = entry.get("name")
    if not isinstance(name, str) or not name.strip():
        raise BadInput(f"{path}: category {entry['id']} has name={_shown(name)}; give a text")
    return name


def _files(path: Path, images: dict[Any, dict[str, Any]]) -> dict[Any, Path]:
    """Return the path of each image."""
    folder, found = path.parent / IMAGES, {}
    owners: dict[str, Any] = {}
    for number, entry in images.items():
        name = entry.get("file_name")
        parts = PurePosixPath(name.replace("\\", "/")).parts if isinstance(name, str) else ()
        if not parts or ".." in parts or parts[0] == "/" or ":" in parts[0] or "\0" in str(name):
            raise BadInput(
                f"{path}: image {number} has file_name={_shown(name)}; give a path inside {folder}"
            )
        file = folder.joinpath(*parts)
        if str(file) in owners:
            raise BadInput(
                f"{path}: images {owners[str(file)]} and {number} have the same file_name"
                f" {_shown(name)}; list each file once"
            )
        owners[str(file)] = number
        if not file.is_file():
            raise BadInput(f"{path}: image {number} is missing: {one_line(str(file))} is no file")
        found[number] = file
    return found


def _size(path: Path, entry: dict[str, Any], file: Path, skip_corrupt: bool) -> tuple[float, float]:
    """Return the width and the height of an image, upright; infinite if it is to be left out."""
    try:
        actual = image_size(str(file))
    except BadInput:
        if not skip_corrupt:
            raise
        return math.inf, math.inf
    for key, side in zip(("width", "height"), actual, strict=True):
        stated = entry.get(key)
        if stated is None:
            continue
        if not _is_whole(stated):
            raise BadInput(
                f"{path}: image {entry['id']} has {key}={_shown(stated)}; give an integer"
            )
        if stated != side:
            raise BadInput(
                f"{path}: image {entry['id']} has {key}={stated}, but {one_line(str(file))} has"
                f" {side} (turned as its EXIF orientation says); correct the annotations"
            )
    return actual


def _reference(path: Path, entry: dict[str, Any], key: str, known: dict[Any, Any]) -> Any:
    """Return an id in an annotation that another list must have."""
    number = entry.get(key)
    if not _is_whole(number) or number not in known:
        kind = "images" if key == "image_id" else "categories"
        raise BadInput(f"{_at(path, entry)} has {key}={_shown(number)}, which {kind} does not have")
    return number


def _corners(
    path: Path, entry: dict[str, Any], size: tuple[float, float], file: Path
) -> tuple[float, float, float, float]:
    """Return x1 y1 x2 y2 of a box in pixels, inside its image."""
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        raise BadInput(
            f"{_at(path, entry)} has bbox={_shown(box)}; give four finite numbers: x, y, width,"
            " height"
        )
    left, top, width, height = map(float, box)
    if width <= 0 or height <= 0:
        raise BadInput(f"{_at(path, entry)} has bbox={_shown(box)} of zero area; remove it")
    right, bottom = left + width, top + height
    most = (size[0] + OVERHANG, size[1] + OVERHANG)
    if min(left, top) < -OVERHANG or right > most[0] or bottom > most[1]:
        raise BadInput(
            f"{_at(path, entry)} has bbox={_shown(box)} outside of its image"
            f" {one_line(str(file))} of {size[0]:g} x {size[1]:g} pixels"
        )
    corners = max(left, 0.0), max(top, 0.0), min(right, size[0]), min(bottom, size[1])
    if corners[0] >= corners[2] or corners[1] >= corners[3]:
        raise BadInput(
            f"{_at(path, entry)} has bbox={_shown(box)} outside of its image"
            f" {one_line(str(file))} of {size[0]:g} x {size[1]:g} pixels"
        )
    return corners


def _at(path: Path, entry: dict[str, Any]) -> str:
    number = entry.get("id")
    return f"{path}: an annotation" if number is None else f"{path}: annotation {number}"


def _shown(value: object) -> str:
    text = one_line(repr(value))
    return text if len(text) <= 60 else text[:57] + "..."


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return -LARGEST <= value <= LARGEST  # also false for NaN
