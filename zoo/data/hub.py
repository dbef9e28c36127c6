"""Sets that others made: torchvision's CIFAR and Hugging Face's, the latter by timm's reader."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from zoo.data.images import convert, read_image
from zoo.data.samplers import rank_and_world
from zoo.data.sources import Source, held_out
from zoo.errors import BadInput
from zoo.settings import DataConfig


def fetch_cifar(cfg: DataConfig) -> None:
    """Download CIFAR where it is absent and `data.download` allows it.

    Raises:
        BadInput: It cannot be fetched.
    """
    if cfg.download:
        _cifar(cfg, train=True, download=True)


def open_cifar(cfg: DataConfig, split: str) -> Source:
    """Return a split of CIFAR-10 or CIFAR-100; the test images are the split `val`.

    Raises:
        BadInput: It is not there, or has no such split.
    """
    if split not in ("train", "val"):
        raise BadInput(f"{cfg.name} has no split {split!r}; there are train and val")
    # In a distributed run Lightning lets one process fetch it first.
    found = _cifar(cfg, split == "train", cfg.download and rank_and_world()[1] == 1)
    images = [convert(Image.fromarray(array), cfg.in_chans) for array in found.data]  # N H W C
    return Source(list(found.targets), len(found.classes), list(found.classes), images)


def _cifar(cfg: DataConfig, train: bool, download: bool) -> Any:
    from torchvision import datasets

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[cfg.name]
    root = Path(cfg.root).expanduser() if cfg.root else Path(torch.hub.get_dir()) / "datasets"
    try:
        return kind(str(root), train=train, download=download)
    except (RuntimeError, OSError) as error:
        if download:
            raise BadInput(f"cannot fetch {cfg.name} to {root}: {_one_line(error)}") from error
        raise BadInput(
            f"{cfg.name} is not in {root}, or not complete; data.download=true fetches it, "
            "data.root names another folder"
        ) from error


@dataclass
class Rows(Source):
    """Rows of a Hugging Face data set.

    Attributes:
        reader: timm's.
        title: What messages call the data set and split.
        in_chans: 1 or 3.
    """

    reader: Any = None
    title: str = ""
    in_chans: int = 3

    def image(self, index: int) -> Image.Image:
        name = self.name(index)
        try:
            stream, _ = self.reader[index]
        except Exception as error:  # a missing value, a file that moved, a damaged table
            raise BadInput(
                f"cannot read image {name} ({_one_line(error)}); "
                "set data.skip_corrupt=true to leave such rows out"
            ) from error
        return read_image(stream, self.in_chans, name)

    def name(self, index: int) -> str:
        return f"row {index} of {self.title}"


def open_hub(cfg: DataConfig, split: str) -> Source:
    """Return a split of a Hugging Face data set: from the hub, or a local folder (`hfds/<path>`).

    Raises:
        BadInput: The extra is not installed, or the set, split or column is not there.
    """
    names = {"train": cfg.train_split_name, "val": cfg.val_split_name}
    if cfg.val_split is not None and split in names:
        train, val = held_out(_rows(cfg, str(cfg.train_split_name)), cfg.val_split)
        return train if split == "train" else val
    return _rows(cfg, names.get(split) or split)


def _rows(cfg: DataConfig, split: str) -> Source:
    need_extra("datasets", cfg.name)
    from timm.data.readers.reader_factory import create_reader

    title = f"{cfg.name}[{split}]"
    try:
        reader: Any = create_reader(
            cfg.name,
            root=cfg.root,
            split=split,
            input_key=cfg.input_key,
            target_key=cfg.target_key,
        )
    except Exception as error:  # each builder of `datasets` has errors of its own
        raise BadInput(
            f"cannot open {title}: {_one_line(error)} "
            "(see data.train_split_name, data.val_split_name, data.input_key, data.root)"
        ) from error
    _check_columns(reader, cfg, title)
    labels, names = _labels(reader, str(cfg.target_key), title)
    classes = len(names) if names else max(labels) + 1
    return Rows(labels, classes, names, reader=reader, title=title, in_chans=cfg.in_chans)


def _check_columns(reader: Any, cfg: DataConfig, title: str) -> None:
    columns = reader.dataset.column_names
    for key in ("input_key", "target_key"):
        name = getattr(cfg, key)
        # timm's reader casts the image column, which makes one of nulls where there is none.
        if name not in columns or reader.dataset.data.column(name).null_count == len(reader) > 0:
            there = ", ".join(column for column in columns if column != name)
            raise BadInput(
                f"{title} has no column {name!r}, or nothing in it; there are {there}. "
                f"Name the right one with data.{key}"
            )


def _labels(reader: Any, key: str, title: str) -> tuple[list[int], list[str] | None]:
    """Return one index a row, and the names of the classes where the set gives them."""
    if "int" not in str(getattr(reader.dataset.features[key], "dtype", "")):
        raise BadInput(
            f"column {key!r} of {title} holds no class numbers; name another with data.target_key"
        )
    column = np.asarray(reader.dataset.select_columns([key]).with_format("numpy")[:][key])
    if column.size == 0:
        raise BadInput(f"{title} has no rows")
    if column.min() < 0:
        raise BadInput(
            f"{title} has rows without a label ({key}={column.min()}); take another split"
        )
    names = reader.class_to_idx
    return column.tolist(), sorted(names, key=names.get) if names else None


def need_extra(package: str, name: str) -> None:
    """Raise `BadInput` unless an optional package is there."""
    if importlib.util.find_spec(package) is None:
        raise BadInput(
            f"data.name={name} needs the package {package}; pip install 'zoo-vision[data]'"
        )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
