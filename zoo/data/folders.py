"""Image folders: `root/<split>/<class>/...` or `root/<class>/...`; ImageNet is one of them."""

import os
import re
from pathlib import Path

from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from zoo.data.sources import Files, Source, held_out
from zoo.errors import BadInput
from zoo.settings import DataConfig

_WORDNET_ID = re.compile(r"n\d{8}")


def open_folder(cfg: DataConfig, split: str) -> Source:
    """Return the images below the folder of `split`, or the part of them that `val_split` says.

    Raises:
        BadInput: A folder is missing, or has no classes, or a class has no images.
    """
    root = existing_root(cfg)
    if cfg.val_split is None or split not in ("train", "val"):
        return scan(_split_folder(cfg, root, split), cfg.in_chans)
    inner = root / str(cfg.train_split_name)
    nested = inner.is_dir()
    if nested and (root / "val").is_dir():
        raise BadInput(f"data.val_split has no effect: {root / 'val'} is there; leave it out")
    train, val = held_out(scan(inner if nested else root, cfg.in_chans), cfg.val_split)
    return train if split == "train" else val


def existing_root(cfg: DataConfig) -> Path:
    """Return `data.root` as a path.

    Raises:
        BadInput: It is not given, or no folder.
    """
    if not cfg.root:
        raise BadInput(f"data.name={cfg.name} needs data.root, the folder where the images are")
    root = Path(cfg.root).expanduser()
    if not root.exists():
        raise BadInput(f"data.root={cfg.root} does not exist; give the folder where the images are")
    if not root.is_dir():
        raise BadInput(f"data.root={cfg.root} is not a folder; give the one where the images are")
    return root


def _split_folder(cfg: DataConfig, root: Path, split: str) -> Path:
    names = {"train": cfg.train_split_name, "val": cfg.val_split_name}
    name = names.get(split) or split
    if (root / name).is_dir():
        return root / name
    there = _subfolders(root)
    listed = f"there are {_some(there)}" if there else "it has no subfolders"
    key = f"data.{split}_split_name" if split in names else "the split"
    raise BadInput(
        f"{root} has no folder {name!r}; {listed}. Name the right one with {key}"
        + (
            ", or give data.val_split=0.2 to hold out a part of each class"
            if split in names
            else ""
        )
    )


def _subfolders(folder: Path) -> list[str]:
    """Names of the folders in `folder`, sorted; those that begin with a dot are not data."""
    try:
        found = [entry.name for entry in os.scandir(folder) if entry.is_dir()]
    except OSError as error:
        raise BadInput(f"cannot list {folder}: {error.strerror}") from error
    return sorted(name for name in found if not name.startswith("."))


def scan(folder: Path, in_chans: int) -> Files:
    """List the images of a folder that has one subfolder a class.

    Args:
        folder: Its subfolders are the classes, in alphabetical order.
        in_chans: 1 or 3.

    Raises:
        BadInput: There are no subfolders, or one has no image.
    """
    classes = _subfolders(folder)
    if not classes:
        raise BadInput(f"{folder} has no class folders; expected {folder}/<class>/<image>")
    index = {name: number for number, name in enumerate(classes)}
    samples = ImageFolder.make_dataset(str(folder), index, IMG_EXTENSIONS, allow_empty=True)
    filled = {label for _, label in samples}
    empty = [name for name in classes if index[name] not in filled]
    if empty:
        kinds = " ".join(extension.lstrip(".") for extension in IMG_EXTENSIONS)
        raise BadInput(f"no images ({kinds}) in class folder {folder / empty[0]}{_more(empty)}")
    paths, labels = [path for path, _ in samples], [label for _, label in samples]
    return Files(labels, len(classes), classes, paths=paths, in_chans=in_chans)


def readable_names(names: list[str] | None) -> list[str] | None:
    """Replace WordNet ids by words where timm knows them; two of the same words keep the id."""
    if not names or not all(_WORDNET_ID.fullmatch(name) for name in names):
        return names
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo()
    known = set(info.label_names())
    words = [info.label_name_to_description(n) if n in known else n for n in names]
    return [
        word if words.count(word) == 1 else f"{word} ({name})"
        for word, name in zip(words, names, strict=True)
    ]


def _some(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
