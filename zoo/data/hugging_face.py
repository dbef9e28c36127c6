"""Hugging Face data sets, through timm's reader."""

import importlib.util
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from zoo.data import holdout
from zoo.data.sources import Part, Source
from zoo.errors import BadInput, first_line
from zoo.images import read_image
from zoo.settings import DataConfig

LARGEST_COUNT = 10_000_000  # classes


@dataclass
class Rows(Source):
    """Rows of a Hugging Face data set.

    Attributes:
        reader: timm's reader.
        title: The data set and split, for error messages.
        in_chans: 1 (grey) or 3 (RGB).
    """

    reader: Any = None
    title: str = ""
    in_chans: int = 3

    def image(self, index: int) -> Image.Image:
        name = self.name(index)
        try:
            stream, _ = self.reader[index]
        except Exception as error:  # a missing value, a moved file, a damaged table
            raise BadInput(
                f"cannot read image {name} ({first_line(error)}); "
                "set data.skip_corrupt=true to skip such rows"
            ) from error
        return read_image(stream, self.in_chans, name)

    def name(self, index: int) -> str:
        return f"row {index} of {self.title}"


def open_dataset(cfg: DataConfig, split: str, saved: holdout.SavedSplit | None = None) -> Source:
    """Return a split of a data set from the hub or from a local folder (`hfds/<path>`).

    Args:
        cfg: A resolved configuration.
        split: Name of the split.
        saved: The split of a run, which decides instead of `val_split`.

    Raises:
        BadInput: The package `datasets`, the data set, the split or a column is missing.
    """
    names = {"train": cfg.train_split_name, "val": cfg.val_split_name}
    if holdout.is_divided(cfg, split):
        whole = _open_rows(cfg, str(cfg.train_split_name))
        return Part.of(whole, holdout.part(whole, cfg, split, saved))
    return _open_rows(cfg, names.get(split) or split)


def _open_rows(cfg: DataConfig, split: str) -> Source:
    need_package("datasets", cfg.name)
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
    except Exception as error:  # `datasets` has no common base class for its errors
        raise BadInput(
            f"cannot open {title}: {first_line(error)} "
            "(see data.train_split_name, data.val_split_name, data.input_key, data.root)"
        ) from error
    _check_columns(reader, cfg, title)
    labels, names = _labels(reader, str(cfg.target_key), title)
    num_classes = len(names) if names else max(labels) + 1
    return Rows(labels, num_classes, names, reader=reader, title=title, in_chans=cfg.in_chans)


def _check_columns(reader: Any, cfg: DataConfig, title: str) -> None:
    columns = reader.dataset.column_names
    for key in ("input_key", "target_key"):
        name = getattr(cfg, key)
        # timm's reader casts the image column, which creates a column of nulls if it is missing.
        if name not in columns or reader.dataset.data.column(name).null_count == len(reader) > 0:
            choices = ", ".join(column for column in columns if column != name)
            raise BadInput(
                f"{title}: column {name!r} is missing or empty; set data.{key} to the right one. "
                f"Choices: {choices}"
            )


def _labels(reader: Any, key: str, title: str) -> tuple[list[int], list[str] | None]:
    """Return the class index of each row, and the class names in order if the set has them."""
    if "int" not in str(getattr(reader.dataset.features[key], "dtype", "")):
        raise BadInput(
            f"{title}: column {key!r} does not contain class numbers; set data.target_key to one "
            "that does"
        )
    column = np.asarray(reader.dataset.select_columns([key]).with_format("numpy")[:][key])
    if column.size == 0:
        raise BadInput(f"{title} has no rows; choose another split")
    if column.min() < 0:
        raise BadInput(
            f"{title} has rows without a label ({key}={column.min()}); choose another split"
        )
    if column.max() >= LARGEST_COUNT:
        raise BadInput(
            f"{title} has class numbers up to {column.max()}; set data.target_key to a column of"
            " class numbers from 0"
        )
    names = reader.class_to_idx
    return column.tolist(), sorted(names, key=names.get) if names else None


def need_package(package: str, name: str) -> None:
    """Raise `BadInput` unless the optional package that data set `name` needs is installed."""
    if importlib.util.find_spec(package) is None:
        raise BadInput(
            f"data.name={name} needs the package {package}; pip install 'zoo-vision[data]'"
        )
