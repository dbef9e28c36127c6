"""Open the splits of labelled data sets, and skip corrupt images."""

import dataclasses

from zoo.data import (
    digits_in_photos,
    folders,
    holdout,
    hugging_face,
    integrity,
    presets,
    sources,
    torchvision_sets,
)
from zoo.data.holdout import SavedSplit
from zoo.data.sources import Part, Source
from zoo.settings import DataConfig

# Sets with a training split of their own, whose images `data.folds` divides.
_WITHOUT_FOLDER = ("digits", "digits_in_photos", "cifar10", "cifar100")


def open_split(cfg: DataConfig, split: str, saved: SavedSplit | None = None) -> Source:
    """Return the images of a split.

    Args:
        cfg: A resolved configuration.
        split: `"train"`, `"val"`, or the data set's own name for a split.
        saved: The split of a run, which decides instead of `val_split`.

    Raises:
        BadInput: The data is missing, contradicts `cfg`, or has no such split.
    """
    kind = presets.family(cfg.name)
    if kind in _WITHOUT_FOLDER and holdout.is_divided(cfg, split):
        whole = open_split(dataclasses.replace(cfg, folds=None, fold=None), "train")
        return Part.of(whole, holdout.part(whole, cfg, split, saved))
    if kind in ("folder", "imagenet"):
        source = folders.open_folder(cfg, split, saved)
    elif kind == "hfds":
        source = hugging_face.open_dataset(cfg, split, saved)
    elif kind == "digits":
        source = _digits(cfg, split)
    elif kind == "digits_in_photos":
        source = digits_in_photos.open_images(cfg, split)
    else:
        source = torchvision_sets.open_cifar(cfg, split)
    if cfg.skip_corrupt:
        source = integrity.without_corrupt(source, split, cfg.num_workers or 0)
    return sources.in_memory(source) if cfg.cache else source


def _digits(cfg: DataConfig, split: str) -> Source:
    sources.check_train_or_val(cfg.name, split)
    train, val = sources.split_digits(presets.size_of(cfg.image_size), cfg.in_chans)
    return train if split == "train" else val
