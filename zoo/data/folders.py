"""Image folders: `<root>/<split>/<class>/...` or `<root>/<class>/...`; also ImageNet."""

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
    """Return the images of a split: those in its folder, or the share that `val_split` assigns.

    Raises:
        BadInput: A folder is missing, has no classes, or a class has no images.
    """
    root = existing_root(cfg)
    if cfg.val_split is None or split not in ("train", "val"):
        return scan(_split_folder(cfg, root, split), cfg.in_chans)
    train, val = held_out(scan(folder_to_split(cfg, root), cfg.in_chans), cfg.val_split)
    return train if split == "train" else val


def existing_root(cfg: DataConfig) -> Path:
    """Return `data.root` as a path.

    Raises:
        BadInput: `data.root` is not given, or is not a folder.
    """
    if not cfg.root:
        raise BadInput(f"data.name={cfg.name} needs data.root, the folder of the images")
    root = Path(cfg.root).expanduser()
    if not root.exists():
        raise BadInput(f"data.root={cfg.root} does not exist; give the folder of the images")
    if not root.is_dir():
        raise BadInput(f"data.root={cfg.root} is not a folder; give the folder of the images")
    return root


def folder_to_split(cfg: DataConfig, root: Path) -> Path:
    """Return the folder that `data.val_split` divides: `<root>/train` if it exists, else `root`.

    Raises:
        BadInput: There is a validation folder already.
    """
    train = root / str(cfg.train_split_name)
    if not train.is_dir():
        return root
    if (root / "val").is_dir():
        raise BadInput(
            f"data.val_split={cfg.val_split} has no effect because {root / 'val'} exists; "
            "leave it out"
        )
    return train


def _split_folder(cfg: DataConfig, root: Path, split: str) -> Path:
    names = {"train": cfg.train_split_name, "val": cfg.val_split_name}
    name = names.get(split) or split
    if (root / name).is_dir():
        return root / name
    choices = _subfolders(root)
    listed = f"Choices: {_shortened(choices)}" if choices else "It has no subfolders"
    advice = (
        f"Set data.{split}_split_name, or data.val_split=0.2 to hold out a share of each class"
        if split in names
        else "Choose another split"
    )
    raise BadInput(f"{root} has no folder {name!r}. {listed}. {advice}")


def _subfolders(folder: Path) -> list[str]:
    """Return the sorted names of the folders in `folder`, without hidden ones."""
    try:
        found = [entry.name for entry in os.scandir(folder) if entry.is_dir()]
    except OSError as error:
        raise BadInput(f"cannot list {folder}: {error.strerror}") from error
    return sorted(name for name in found if not name.startswith("."))


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
    index = {name: number for number, name in enumerate(classes)}
    samples = ImageFolder.make_dataset(str(folder), index, IMG_EXTENSIONS, allow_empty=True)
    filled = {label for _, label in samples}
    empty = [name for name in classes if index[name] not in filled]
    if empty:
        more = f" and {len(empty) - 1} more" if len(empty) > 1 else ""
        raise BadInput(
            f"no images ({extensions_text(IMG_EXTENSIONS)}) in class folder "
            f"{folder / empty[0]}{more}; add some or remove the folder"
        )
    paths, labels = [path for path, _ in samples], [label for _, label in samples]
    return Files(labels, len(classes), classes, paths=paths, in_chans=in_chans)


def readable_names(names: list[str] | None) -> list[str] | None:
    """Replace WordNet ids by timm's descriptions, with the id added where two are equal."""
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


def extensions_text(extensions: tuple[str, ...]) -> str:
    """Return file extensions as words: `jpg png`."""
    return " ".join(extension.lstrip(".") for extension in extensions)


def _shortened(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
