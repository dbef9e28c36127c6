"""Sets of images and masks in folders: one's own, Pascal VOC, the Oxford-IIIT pets."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.datasets.folder import IMG_EXTENSIONS

from zoo.data import folders, pairs, readable
from zoo.data.samplers import rank_and_world
from zoo.errors import BadInput
from zoo.settings import DataConfig

# fmt: off
VOC_NAMES = [
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
]
# fmt: on
PET_NAMES = ["pet", "background", "border"]  # in the order of the trimaps' numbers, 1 to 3
_MASK_EXTENSIONS = (".png", ".bmp", ".tif", ".tiff", ".gif")


def open_masks(cfg: DataConfig, split: str) -> pairs.Pairs:
    """Return a split of `folder_segmentation`, `voc` or `oxford_pet`.

    Every mask is read, so that what is wrong with one shows before training starts.

    Raises:
        BadInput: The data is not there, is not what `cfg` says, or has no such split.
    """
    openers = {"folder_segmentation": _folder, "voc": _voc, "oxford_pet": _pets}
    source: Any = openers[cfg.name](cfg, split)
    workers = cfg.num_workers or 0
    if not cfg.skip_corrupt:
        readable.check(source.check, len(source), workers)
    else:
        kept = readable.readable(source.pair, len(source), split, workers)
        if not kept:
            raise BadInput(f"no image of split {split} can be read")
        source = pairs.PairPart(source, kept)
    return source


# -- folders --------------------------------------------------------------------------------------


def check_classes(cfg: DataConfig) -> int:
    """Return how many classes `folder_segmentation` has.

    Raises:
        BadInput: `data.num_classes`, `class_names` and `palette` disagree, or none is given.
    """
    palette = _palette(cfg)
    counts = {
        "num_classes": cfg.num_classes,
        "class_names": None if cfg.class_names is None else len(cfg.class_names),
        "palette": None if palette is None else len(palette),
    }
    given = {key: count for key, count in counts.items() if count is not None}
    if not given:
        raise BadInput(
            f"data.name={cfg.name} needs data.num_classes: masks do not say how many classes there"
            " are (or data.class_names, or data.palette for masks in colours)"
        )
    if len(set(given.values())) > 1:
        told = " and ".join(f"data.{key} gives {count}" for key, count in given.items())
        raise BadInput(f"{told} classes; they must agree")
    count = next(iter(given.values()))
    if not 2 <= count <= pairs.IGNORE:
        raise BadInput(f"data.{next(iter(given))}: {count} classes; there can be 2 to 255")
    return count


def _palette(cfg: DataConfig) -> np.ndarray | None:
    if cfg.palette is None:
        return None
    colors = cfg.palette if isinstance(cfg.palette, list) else [cfg.palette]
    for color in colors:
        levels = color if isinstance(color, list) else [color]
        whole = all(isinstance(x, int) and not isinstance(x, bool) for x in levels)
        if len(levels) != 3 or not whole or not all(0 <= x <= 255 for x in levels):
            raise BadInput(
                f"data.palette: {color!r} is not a colour [red, green, blue] of 0 to 255"
            )
    if len({tuple(color) for color in colors}) < len(colors):
        raise BadInput(f"data.palette={colors} names a colour twice")
    return np.array(colors, np.uint8)


def _folder(cfg: DataConfig, split: str) -> Any:
    """Return `<root>/<split>/images` with `masks` beside it, or a part of `<root>/images`."""
    root = folders.existing_root(cfg)
    if cfg.val_split is None or split not in ("train", "val"):
        names = {"train": cfg.train_split_name, "val": cfg.val_split_name}
        return _matched(cfg, _split_folder(cfg, root, split, str(names.get(split) or split)))
    inner = root / str(cfg.train_split_name)
    nested = inner.is_dir()
    if nested and (root / "val").is_dir():
        raise BadInput(f"data.val_split has no effect: {root / 'val'} is there; leave it out")
    train, val = pairs.held_out(_matched(cfg, inner if nested else root), cfg.val_split)
    return train if split == "train" else val


def _split_folder(cfg: DataConfig, root: Path, split: str, name: str) -> Path:
    if (root / name).is_dir():
        return root / name
    flat = (root / "images").is_dir()
    hint = (
        f"{root / 'images'} is there: give data.val_split=0.2 to hold out a part of it"
        if flat
        else f"expected {root / name / 'images'} and {root / name / 'masks'}"
    )
    key = f"data.{split}_split_name" if split in ("train", "val") else "the split"
    raise BadInput(f"{root} has no folder {name!r}; {hint}, or name the right one with {key}")


def _matched(cfg: DataConfig, folder: Path) -> pairs.FilePairs:
    """Pair the files of `folder/images` and `folder/masks` by their stems.

    Raises:
        BadInput: A folder is missing or empty, or a file has no partner or two.
    """
    images = _by_stem(folder / "images", IMG_EXTENSIONS, "images")
    masks = _by_stem(folder / "masks", _MASK_EXTENSIONS, "masks")
    for have, lack, what in ((images, masks, "mask"), (masks, images, "image")):
        alone = [stem for stem in have if stem not in lack]
        if alone:
            more = f" (and {len(alone) - 1} more have none)" if len(alone) > 1 else ""
            raise BadInput(f"{have[alone[0]]} has no {what} of the same stem beside it{more}")
    return pairs.FilePairs(
        images=list(images.values()),
        masks=[masks[stem] for stem in images],
        num_classes=check_classes(cfg),
        class_names=cfg.class_names,
        in_chans=cfg.in_chans,
        palette=_palette(cfg),
    )


def _by_stem(folder: Path, extensions: tuple[str, ...], what: str) -> dict[str, str]:
    """Return the paths of the files in `folder` by stem, in alphabetical order."""
    if not folder.is_dir():
        raise BadInput(f"{folder} is not there; expected a folder of {what} beside the other one")
    found: dict[str, str] = {}
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path = Path(entry.path)
        if entry.name.startswith(".") or path.suffix.lower() not in extensions:
            continue
        if path.stem in found:
            raise BadInput(f"{found[path.stem]} and {path} have the same stem; keep one of them")
        found[path.stem] = str(path)
    if not found:
        kinds = " ".join(extension.lstrip(".") for extension in extensions)
        raise BadInput(f"no {what} ({kinds}) in {folder}")
    return found


# -- torchvision ----------------------------------------------------------------------------------


def fetch(cfg: DataConfig) -> None:
    """Download a public set where it is absent and `data.download` allows it.

    Raises:
        BadInput: It cannot be fetched.
    """
    if cfg.download:
        _public(cfg, "train", download=True)


def _voc(cfg: DataConfig, split: str) -> pairs.FilePairs:
    found = _public(cfg, split)
    names, count = list(VOC_NAMES), len(VOC_NAMES)
    return pairs.FilePairs(found.images, found.masks, count, names, cfg.in_chans)


def _pets(cfg: DataConfig, split: str) -> pairs.FilePairs:
    """Return the photographs with their trimaps; the test split validates."""
    _public(cfg, split)  # looks whether it is there; the layout is the published one
    folder = _home(cfg) / "oxford-iiit-pet"
    annotations = folder / "annotations"
    lines = (annotations / f"{_splits(cfg)[split]}.txt").read_text(encoding="utf-8").splitlines()
    stems = [line.split()[0] for line in lines if line.strip()]
    return pairs.FilePairs(
        [str(folder / "images" / f"{stem}.jpg") for stem in stems],
        [str(annotations / "trimaps" / f"{stem}.png") for stem in stems],
        len(PET_NAMES),
        list(PET_NAMES),
        cfg.in_chans,
        first=1,
    )


def _splits(cfg: DataConfig) -> dict[str, str]:
    """Ours -> theirs."""
    test = {"voc": "val", "oxford_pet": "test"}[cfg.name]
    return {"train": {"voc": "train", "oxford_pet": "trainval"}[cfg.name], "val": test}


def _home(cfg: DataConfig) -> Path:
    return Path(cfg.root).expanduser() if cfg.root else Path(torch.hub.get_dir()) / "datasets"


def _public(cfg: DataConfig, split: str, download: bool | None = None) -> Any:
    """Return torchvision's object for a split.

    Raises:
        BadInput: There is no such split, or the set is not there, cannot be fetched or is damaged.
    """
    from torchvision import datasets

    if split not in _splits(cfg):
        raise BadInput(f"{cfg.name} has no split {split!r}; there are train and val")
    if download is None:  # in a distributed run one process fetches it first
        download = cfg.download and rank_and_world()[1] == 1
    root, theirs = str(_home(cfg)), _splits(cfg)[split]
    try:
        if cfg.name == "voc":
            return datasets.VOCSegmentation(root, "2012", theirs, download=download)
        return datasets.OxfordIIITPet(root, theirs, "segmentation", download=download)
    except (RuntimeError, OSError, ValueError) as error:
        if download:
            text = " ".join(str(error).split()) or type(error).__name__
            raise BadInput(f"cannot fetch {cfg.name} to {root}: {text}") from error
        raise BadInput(
            f"{cfg.name} is not in {root}, or not complete; data.download=true fetches it, "
            "data.root names another folder"
        ) from error
