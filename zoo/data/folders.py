"""Image folders: `<root>/<split>/<class>/...` or `<root>/<class>/...`; also ImageNet."""

import os
import re
from collections import Counter
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from zoo.data import holdout
from zoo.data.listing import entries, extensions_text, list_files, shortened
from zoo.data.sources import Files, Part, Source
from zoo.errors import BadInput, first_line
from zoo.settings import DataConfig

_WORDNET_ID = re.compile(r"n\d{8}")


def open_folder(cfg: DataConfig, split: str, saved: holdout.SavedSplit | None = None) -> Source:
    """Return the images of a split: those in its folder, or the share that `val_split` assigns.

    Args:
        cfg: A resolved configuration.
        split: Name of the split.
        saved: The split of a run, which decides instead of `val_split`.

    Raises:
        BadInput: A folder is missing, has no classes, or a class has no images.
    """
    root = existing_root(cfg)
    if holdout.is_divided(cfg, split):
        whole = scan(folder_to_split(cfg, root), cfg.in_chans)
        return Part.of(whole, holdout.part(whole, cfg, split, saved))
    if cfg.split_file is None or split not in ("train", "val"):
        return scan(split_folder(cfg, root, split), cfg.in_chans)
    whole = scan(folder_to_split(cfg, root), cfg.in_chans)
    split_file = Path(str(cfg.split_file)).expanduser()
    train, val = holdout.listed(whole, saved or holdout.read_file(split_file), split_file)
    return Part.of(whole, train if split == "train" else val)


def existing_root(cfg: DataConfig) -> Path:
    """Return `data.root` as a path.

    Raises:
        BadInput: `data.root` is not given, or is not a folder.
    """
    if not cfg.root:
        raise BadInput(f"data.name={cfg.name} needs data.root, the folder of the images")
    try:
        root = Path(cfg.root).expanduser()
        exists = root.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long, an unknown user
        shown = cfg.root if len(cfg.root) <= 100 else f"{cfg.root[:100]}..."
        why = getattr(error, "strerror", None) or first_line(error)
        raise BadInput(f"data.root={shown} is not a path ({why})") from error
    if not exists:
        raise BadInput(f"data.root={cfg.root} does not exist; give the folder of the images")
    if not root.is_dir():
        raise BadInput(f"data.root={cfg.root} is not a folder; give the folder of the images")
    return root


def folder_to_split(cfg: DataConfig, root: Path) -> Path:
    """Return the folder that `data.val_split` divides: `<root>/train` if it exists, else `root`.

    With `data.folds`, a validation folder may exist: its images are left for a final test.

    Raises:
        BadInput: There is a validation folder already.
    """
    train = root / str(cfg.train_split_name)
    if not train.is_dir():
        return root
    if (root / "val").is_dir() and cfg.folds is None:
        key = "split_file" if cfg.val_split is None else "val_split"
        raise BadInput(
            f"data.{key}={getattr(cfg, key)} has no effect because {root / 'val'} exists; "
            "leave it out"
        )
    return train


def split_folder(cfg: DataConfig, root: Path, split: str) -> Path:
    names = {"train": cfg.train_split_name, "val": cfg.val_split_name}
    name = names.get(split) or split
    if (root / name).is_dir():
        return root / name
    choices = _subfolders(root)
    listed = f"Choices: {shortened(choices, 5)}" if choices else "It has no subfolders"
    advice = (
        f"Set data.{split}_split_name, or data.val_split=0.2 to hold out a share of each class"
        if split in names
        else "Choose another split"
    )
    raise BadInput(f"{root} has no folder {name!r}. {listed}. {advice}")


def _subfolders(folder: Path) -> list[str]:
    """Return the sorted names of the folders in `folder`, without hidden ones."""
    return [entry.name for entry in entries(folder) if _is_folder(entry)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def scan(folder: Path, in_chans: int) -> Files:
    """List the images of a folder that has one subfolder per class.

    Args:
        folder: Its subfolders are the classes, in alphabetical order.
        in_chans: 1 (grey) or 3 (RGB).

    Raises:
        BadInput: The folder has no subfolders, or one of them has no images.
    """
    classes = _subfolders(folder)
    if not classes:
        raise BadInput(f"{folder} has no class folders; expected {folder}/<class>/<image>")
    listing, found = list_files([folder / name for name in classes], IMG_EXTENSIONS)
    listing.report(str(folder))
    empty = [name for name, paths in zip(classes, found, strict=True) if not paths]
    if empty:
        more = f" and {len(empty) - 1} more" if len(empty) > 1 else ""
        raise BadInput(
            f"no images ({extensions_text(IMG_EXTENSIONS)}) in class folder "
            f"{folder / empty[0]}{more}; add some or remove the folder"
        )
    labels = [label for label, paths in enumerate(found) for _ in paths]
    paths = [path for paths in found for path in paths]
    return Files(labels, len(classes), classes, paths=paths, in_chans=in_chans, root=str(folder))


def readable_names(names: list[str] | None) -> list[str] | None:
    """Replace WordNet ids by timm's descriptions, with the id added where two classes share one."""
    if not names or not all(_WORDNET_ID.fullmatch(name) for name in names):
        return names
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo()
    known = {name: info.label_name_to_description(name) for name in info.label_names()}
    shared = Counter(known.values())  # the whole list: a part of the classes has the same names
    words = [known.get(name, name) for name in names]
    return [
        f"{word} ({name})" if shared[word] > 1 else word
        for word, name in zip(words, names, strict=True)
    ]
