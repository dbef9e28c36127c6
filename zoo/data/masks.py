"""Images and masks in files: your own folders, Pascal VOC and the Oxford-IIIT pets."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from zoo.data import folders, holdout, integrity, pairs, torchvision_sets
from zoo.data.listing import extensions_text, list_files, shortened
from zoo.data.samplers import rank_and_world
from zoo.errors import BadInput
from zoo.settings import DataConfig

_MASK_EXTENSIONS = (".png", ".bmp", ".tif", ".tiff", ".gif")


log = logging.getLogger("zoo.data")


def open_masks(cfg: DataConfig, split: str, saved: holdout.SavedSplit | None = None) -> Any:
    """Return a split of `folder_segmentation`, `voc` or `oxford_pet`, and its pixels per number.

    Reads every mask, to report errors before training starts.

    Args:
        cfg: A resolved configuration.
        split: Name of the split.
        saved: The split of a run, which decides instead of `val_split`.

    Returns:
        The pairs, and how many pixels of their masks have each number: 256 integers.

    Raises:
        BadInput: The data is missing, contradicts `cfg`, or has no such split.
    """
    if cfg.name == "folder_segmentation":
        source = _open_folder(cfg, split, saved)
    elif cfg.name == "voc":
        source = torchvision_sets.open_voc(cfg, split)
    else:
        source = torchvision_sets.open_pets(cfg, split)
    workers = cfg.num_workers or 0
    if not cfg.skip_corrupt:
        counts = integrity.read_all(source.check_files, len(source), workers)
        return source, sum(counts, np.zeros(256, np.int64))
    kept, counts = integrity.readable(source.check_whole, len(source), split, workers)
    if not kept:
        raise BadInput(f"no image of split {split} can be read")
    return pairs.PairPart(source, kept), sum(counts, np.zeros(256, np.int64))


def check_pixels(
    counts: np.ndarray, split: str, class_names: list[str], cfg: DataConfig, *, training: bool
) -> None:
    """Report masks that no model can learn from, or be evaluated on.

    Args:
        counts: How many pixels of all masks have each number.
        split: Name of the split.
        class_names: Names or numbers of the classes, in order.
        cfg: The configuration of the data.
        training: Whether the split is trained on.

    Raises:
        BadInput: No pixel has a class, or all pixels to train on have the same.
    """
    present = [name for name, count in zip(class_names, counts, strict=False) if count]
    missing = [name for name in class_names if name not in set(present)]
    advice = "check the masks and the number of classes"
    if counts[pairs.IGNORE] and cfg.name == "folder_segmentation" and cfg.palette is None:
        advice = (
            f"{pairs.IGNORE} means no class, so masks of 0 and {pairs.IGNORE} need"
            " data.palette=[[0,0,0],[255,255,255]]"
        )
    if not present:
        raise BadInput(f"no pixel of the masks of split {split} has a class; {advice}")
    if training and len(present) == 1:
        raise BadInput(
            f"all masks of split {split} show only class {present[0]}; class"
            f" {shortened(missing)} occurs in none, so there is nothing to learn; {advice}"
        )
    if missing and rank_and_world()[0] == 0:
        log.warning(
            "split %s: class %s occurs in no mask; %s", split, shortened(missing, 5), advice
        )


def count_classes(cfg: DataConfig) -> int:
    """Return the number of classes of `folder_segmentation`.

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
            f"data.name={cfg.name} needs data.num_classes, data.class_names or, for coloured masks,"
            " data.palette: the number of classes is not stored in the masks"
        )
    if len(set(given.values())) > 1:
        listed = ", ".join(f"{count} by data.{key}" for key, count in given.items())
        raise BadInput(f"the numbers of classes disagree: {listed}; make them equal")
    names = cfg.class_names or []
    if len(set(names)) < len(names):
        raise BadInput(f"data.class_names={names} repeats a name; give each class a different one")
    key, count = next(iter(given.items()))
    if not 2 <= count <= pairs.IGNORE:
        raise BadInput(
            f"data.{key} sets the number of classes to {count}; give 2 to {pairs.IGNORE}"
        )
    return count


def _palette(cfg: DataConfig) -> np.ndarray | None:
    """Return the colours of the classes, bytes K 3; None if masks contain class numbers."""
    if cfg.palette is None:
        return None
    colors = cfg.palette if isinstance(cfg.palette, list) else [cfg.palette]
    for color in colors:
        levels = color if isinstance(color, list) else [color]
        whole = all(isinstance(x, int) and not isinstance(x, bool) for x in levels)
        if len(levels) != 3 or not whole or not all(0 <= x <= 255 for x in levels):
            raise BadInput(
                f"data.palette: {color!r} is not a colour; give [red, green, blue], each 0 to 255"
            )
    if len({tuple(color) for color in colors}) < len(colors):
        raise BadInput(f"data.palette={colors} repeats a colour; give each class a different one")
    return np.array(colors, np.uint8)


def _open_folder(cfg: DataConfig, split: str, saved: holdout.SavedSplit | None) -> Any:
    """Return the pairs in `<root>/<split>`, or the share of `<root>` that `val_split` assigns."""
    root = folders.existing_root(cfg)
    if not holdout.is_divided(cfg, split):
        names = {"train": cfg.train_split_name, "val": cfg.val_split_name}
        return _match_files(cfg, _split_folder(root, split, str(names.get(split) or split)))
    whole = _match_files(cfg, folders.folder_to_split(cfg, root))
    return pairs.PairPart(whole, holdout.part(whole, cfg, split, saved))


def _split_folder(root: Path, split: str, name: str) -> Path:
    if (root / name).is_dir():
        return root / name
    hint = (
        f"set data.val_split=0.2 to hold out a share of {root / 'images'}"
        if (root / "images").is_dir()
        else f"expected {root / name / 'images'} and {root / name / 'masks'}"
    )
    other = f", or set data.{split}_split_name" if split in ("train", "val") else ""
    raise BadInput(f"{root} has no folder {name!r}; {hint}{other}")


def _match_files(cfg: DataConfig, folder: Path) -> pairs.FilePairs:
    """Pair the files of `<folder>/images` and `<folder>/masks` by their stems.

    Raises:
        BadInput: A folder is missing or empty, or a file does not have exactly one partner.
    """
    images = _files_by_stem(folder / "images", IMG_EXTENSIONS, "images")
    masks = _files_by_stem(folder / "masks", _MASK_EXTENSIONS, "masks")
    for files, partners, kind in ((images, masks, "mask"), (masks, images, "image")):
        single = [stem for stem in files if stem not in partners]
        if single:
            more = f" (likewise {len(single) - 1} more)" if len(single) > 1 else ""
            raise BadInput(
                f"{files[single[0]]} has no {kind} with the same stem in {folder}/{kind}s{more}"
            )
    return pairs.FilePairs(
        images=list(images.values()),
        masks=[masks[stem] for stem in images],
        num_classes=count_classes(cfg),
        class_names=cfg.class_names,
        in_chans=cfg.in_chans,
        palette=_palette(cfg),
        root=str(folder / "images"),
    )


def _files_by_stem(folder: Path, extensions: tuple[str, ...], kind: str) -> dict[str, str]:
    """Return stem -> path of the files in `folder`, in alphabetical order."""
    if not folder.is_dir():
        raise BadInput(
            f"{folder} does not exist; expected the folders images and masks in {folder.parent}"
        )
    listing, (paths,) = list_files([folder], extensions, recursive=False)
    listing.report(str(folder))
    found: dict[str, str] = {}
    for path in map(Path, paths):
        if path.stem in found:
            raise BadInput(f"{found[path.stem]} and {path} have the same stem; keep one of them")
        found[path.stem] = str(path)
    if not found:
        raise BadInput(f"no {kind} ({extensions_text(extensions)}) in {folder}")
    return found
