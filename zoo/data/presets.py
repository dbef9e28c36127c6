"""Defaults of each data set, the keys that it supports, and the validation of their values."""

import dataclasses
import logging
import math
import os
from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from zoo.errors import BadInput, first_line, unknown_value
from zoo.inputs import is_published
from zoo.settings import DataConfig

WORKERS_A_CORE = 4  # most loader processes
FEWEST_WORKERS = 16  # always allowed
LARGEST_SIDE = 8192  # pixels of an image
LARGEST_BATCH = 2**35  # bytes of the images of a batch
SMALLEST_CROP = 0.05  # crop_pct
LARGEST_RATIO = 100.0  # aspect ratio of a crop, either way
LARGEST_COUNT = 10_000_000  # images of an epoch that are made, classes
MOST_BOXES = 100  # of random erasing
INTERPOLATIONS = ["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]
PREPROCESSING = ("mean", "std", "interpolation", "crop_pct")  # of the group `data`
LARGEST_STATISTIC = 10.0  # mean and std, of values in 0..1
SMALLEST_STD = 1e-4

log = logging.getLogger("zoo.data")

IMAGENET_MEAN = [0.485, 0.456, 0.406]
IMAGENET_STD = [0.229, 0.224, 0.225]

# timm's defaults for training on ImageNet; most recipes evaluate with bicubic and 0.875.
PHOTOS: dict[str, Any] = {
    "image_size": 224,
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "scale": [0.08, 1.0],
    "ratio": [3 / 4, 4 / 3],
    "hflip": 0.5,
    "vflip": 0.0,
    "color_jitter": 0.4,
    "re_prob": 0.0,
    "num_workers": 4,
}
# A digit that is flipped or cropped by half is another digit or unreadable.
DIGITS = PHOTOS | {
    "image_size": 64,
    "crop_pct": 1.0,
    "scale": [0.7, 1.0],
    "ratio": [0.8, 1.25],
    "hflip": 0.0,
    "color_jitter": 0.0,
    "num_workers": 0,
}
# Made at the requested size, with every digit wholly visible: no crop, no resizing.
PHOTO_DIGITS = DIGITS | {
    "image_size": 32,
    "scale": [1.0, 1.0],
    "ratio": [1.0, 1.0],
    "train_images": 4000,
    "val_images": 1000,
}
CIFAR = PHOTOS | {
    "image_size": 32,
    "crop_pct": 1.0,
    "scale": [0.5, 1.0],
    "color_jitter": 0.0,
    "num_workers": 2,
}
FOLDERS = PHOTOS | {"train_split_name": "train", "val_split_name": "val"}
HUGGING_FACE = PHOTOS | {
    "train_split_name": "train",
    "val_split_name": "validation",
    "input_key": "image",
    "target_key": "label",
}
SHARDS = FOLDERS | {"input_key": "jpg;jpeg;png;webp"}
# Crops for segmentation must keep enough of the scene.
MASKED = FOLDERS | {"image_size": 256, "scale": [0.25, 1.0], "interpolation": "bilinear"}
# Detectors need more pixels; crops keep enough of most objects.
BOXED = MASKED | {"image_size": 320, "scale": [0.3, 1.0]}
# Scenes are generated at the requested size: no crop, no resizing.
SCENES = MASKED | {
    "image_size": 48,
    "scale": [1.0, 1.0],
    "ratio": [1.0, 1.0],
    "hflip": 0.0,
    "color_jitter": 0.0,
    **{"num_workers": 0, "train_images": 4000, "val_images": 200},
}
# No normalisation: outputs are compared with photographs in 0..1.
SUPERRES = {
    "image_size": 32,
    "mean": [0.0, 0.0, 0.0],
    "std": [1.0, 1.0, 1.0],
    **{"hflip": 0.5, "vflip": 0.5},
    **{"num_workers": 0, "train_images": 2000},
}
PLACES = {"image_size": 64, "num_workers": 0, "train_images": 6000}

ORDERS = ["RGB", "BGR"]

# Keys that only some data sets support: for the others they raise an error.
_FOLDS = {"folds", "fold"}
_RESIZED = {"scale", "ratio", "color_jitter", "interpolation", "channel_order"}
_LABELLED = _RESIZED | {
    "train_interpolation",
    "crop_pct",
    "auto_augment",
    "re_prob",
    "re_mode",
    "re_count",
}
_SPLITS = {
    "root",
    "val_split",
    "folds",
    "fold",
    "train_split_name",
    "val_split_name",
    "skip_corrupt",
}
_FOLDER = _LABELLED | _SPLITS | {"cache"}
_HUB = _FOLDER | {"input_key", "target_key"}
_STREAM = _HUB - {"val_split", "folds", "fold", "cache"} | {"num_classes"}
_MASKS = _RESIZED | _SPLITS | {"num_classes", "class_names", "palette"}
_TABLE = (_SPLITS - {"skip_corrupt"}) | {"labels", "class_names"}
_FETCHED = {"root", "download"}
_MADE = {"train_images", "val_images"}
_SPECIAL = {"split_file", "labels"} | _HUB | _MASKS | _FETCHED | _MADE

SETS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "digits": (DIGITS, _LABELLED | _FOLDS),
    "digits_in_photos": (PHOTO_DIGITS, _LABELLED | _MADE | _FOLDS),
    "folder": (FOLDERS, _FOLDER | {"split_file"}),
    "multilabel": (FOLDERS, _LABELLED | _TABLE),
    "imagenet": (FOLDERS, _FOLDER | {"split_file"}),
    "cifar10": (CIFAR, _LABELLED | _FETCHED | _FOLDS),
    "cifar100": (CIFAR, _LABELLED | _FETCHED | _FOLDS),
    "hfds": (HUGGING_FACE, _HUB),
    "wds": (SHARDS, _STREAM),
    "digits_segmentation": (SCENES, _RESIZED | _MADE),
    "folder_segmentation": (MASKED, _MASKS),
    "voc": (MASKED, _RESIZED | _FETCHED | {"skip_corrupt"}),
    "oxford_pet": (MASKED, _RESIZED | _FETCHED | {"skip_corrupt"}),
    "digits_detection": (SCENES, _RESIZED | _MADE),
    "folder_detection": (BOXED, _RESIZED | _SPLITS),
    "voc_detection": (BOXED, _RESIZED | _FETCHED | {"skip_corrupt"}),
    "photos_superres": (SUPERRES, {"train_images"}),
    "photos_denoising": (SUPERRES | {"image_size": 64}, {"train_images"}),
    "photos_retrieval": (PLACES, {"train_images", "channel_order"}),
}
_PREFIXES = ("hfds", "wds")  # `<prefix>/<name>`: any number of data sets
_TASKS = {
    "segmentation": ("digits_segmentation", "folder_segmentation", "voc", "oxford_pet"),
    "super-resolution": ("photos_superres",),
    "restoration": ("photos_denoising",),
    "detection": ("digits_detection", "folder_detection", "voc_detection"),
    "retrieval": ("photos_retrieval",),
    "multi-label": ("multilabel",),
}


def family(name: str) -> str:
    """Return the key of `SETS` for data set `name`: `hfds` for `hfds/<name>`.

    Raises:
        BadInput: There is no such data set.
    """
    prefix, slash, rest = name.partition("/")
    if prefix in _PREFIXES:
        if slash and rest:
            return prefix
        raise BadInput(f"data.name={name!r} is incomplete; give {prefix}/<name>")
    if name in SETS:
        return name
    choices = [f"{key}/<name>" if key in _PREFIXES else key for key in SETS]
    raise BadInput(unknown_value("data set", name, choices))


def task(name: str) -> str:
    """Return the task of data set `name`; classifiers are also trained for `"multi-label"`."""
    return next((task for task, sets in _TASKS.items() if name in sets), "classification")


def resolve(cfg: Any, model: Mapping[str, Any] | None = None) -> DataConfig:
    """Return the configuration with defaults in place of nulls.

    A resolved configuration resolves to itself, which lets a run be repeated from its stored one.

    Args:
        cfg: A `DataConfig`, a `DictConfig` or a dictionary with its keys.
        model: What the model expects (mean, std, interpolation, crop_pct, channel_order): overrides
            the defaults of the data set; `cfg` overrides both.

    Raises:
        BadInput: A key or the data set is unknown, or a value is invalid or has no effect.
    """
    given = _typed(cfg)
    defaults, supported = SETS[family(given.name)]
    _check_effects(given, supported)
    defaults = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "channel_order": "RGB"} | defaults
    defaults |= {key: value for key, value in (model or {}).items() if value is not None}
    for key in ("mean", "std"):
        defaults[key] = _for_channels(defaults[key], given.in_chans)
    if _replaces_color_jitter(given.auto_augment):
        defaults["color_jitter"] = 0.0
    if any(getattr(given, key) is not None for key in ("val_split", "split_file", "folds")):
        defaults.pop("val_split_name", None)
    defaults["num_workers"] = min(defaults["num_workers"], _cpus())
    values = dataclasses.asdict(given)
    values["num_workers"] = _capped_workers(given.num_workers)
    defaults["train_interpolation"] = values["interpolation"] or defaults.get("interpolation")
    for key in defaults.keys() - (_SPECIAL - supported):
        values[key] = defaults[key] if values[key] is None else values[key]
    resolved = DataConfig(**values)
    _check_values(resolved)
    resolved.image_size = list(size_of(resolved.image_size))
    return resolved


def _capped_workers(workers: int | None) -> int | None:
    """Return a number of loader processes that the machine can run."""
    most = max(FEWEST_WORKERS, WORKERS_A_CORE * _cpus())
    if workers is None or workers <= most:
        return workers
    log.warning(
        "data.num_workers=%d is too many for %d cores: %d processes are started",
        workers,
        _cpus(),
        most,
    )
    return most


def _cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _replaces_color_jitter(auto_augment: str | None) -> bool:
    """Return whether timm leaves out colour jitter with this policy."""
    return bool(auto_augment) and "3a" not in str(auto_augment)


def _typed(cfg: Any) -> DataConfig:
    """Return `cfg` as a `DataConfig` with values of the declared types."""
    if dataclasses.is_dataclass(cfg):
        cfg = dataclasses.asdict(cfg)  # type: ignore[arg-type]
    cfg = OmegaConf.create(cfg)
    if OmegaConf.is_missing(cfg, "name"):
        raise BadInput("data.name is not set; data=hfds needs data.name=hfds/<name>")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(DataConfig), cfg)
        return DataConfig(**OmegaConf.to_container(merged))  # type: ignore[arg-type]
    except OmegaConfBaseException as error:
        raise BadInput(f"data.{error.full_key}: {first_line(error)}") from error


def _check_effects(given: DataConfig, supported: set[str]) -> None:
    """Raise `BadInput` for the first value that has no effect."""
    unset = DataConfig()
    for key in sorted(_SPECIAL - supported):
        if getattr(given, key) != getattr(unset, key):
            raise BadInput(
                f"data.{key}={getattr(given, key)} has no effect for data.name={given.name}; "
                "leave it out"
            )
    if _replaces_color_jitter(given.auto_augment) and given.color_jitter:
        raise BadInput(
            f"data.color_jitter={given.color_jitter} has no effect with "
            f"data.auto_augment={given.auto_augment}; leave one of them out"
        )
    ways = [
        key
        for key in ("val_split", "val_split_name", "split_file", "folds")
        if getattr(given, key) is not None
    ]
    if len(ways) > 1:
        raise BadInput(
            f"data.{ways[0]} and data.{ways[1]} exclude each other; leave one of them out"
        )
    for key in ("re_mode", "re_count"):
        if getattr(given, key) is not None and not given.re_prob:
            raise BadInput(
                f"data.{key} has no effect without data.re_prob; set data.re_prob above 0"
            )


def _for_channels(values: Any, in_chans: int) -> list[float]:
    """Return one number per channel: `values`, or their average if their number differs."""
    numbers = [float(value) for value in values]
    if in_chans < 1 or not numbers:  # `_check_values` raises
        return numbers
    return numbers if len(numbers) == in_chans else [sum(numbers) / len(numbers)] * in_chans


def size_of(image_size: Any) -> tuple[int, int]:
    """Return (height, width) in pixels.

    Args:
        image_size: One number for a square, or a pair (height, width).

    Raises:
        BadInput: The size is neither.
    """
    pair = list(image_size) if isinstance(image_size, list | tuple) else [image_size, image_size]
    whole = all(isinstance(edge, int) and not isinstance(edge, bool) for edge in pair)
    if len(pair) != 2 or not whole or min(pair) <= 0:
        raise BadInput(
            f"data.image_size={image_size!r} must be a positive number of pixels or a pair "
            "[height, width]"
        )
    if max(pair) > LARGEST_SIDE:
        raise BadInput(
            f"data.image_size={image_size!r} is larger than {LARGEST_SIDE} pixels a side; lower it"
        )
    return pair[0], pair[1]


def _check_values(cfg: DataConfig) -> None:
    """Raise `BadInput` for the first invalid value of a resolved configuration."""
    if cfg.in_chans not in (1, 3):
        raise BadInput(f"data.in_chans={cfg.in_chans} must be 1 (grey) or 3 (RGB)")
    size_of(cfg.image_size)
    for key in ("hflip", "vflip", "re_prob"):
        value = getattr(cfg, key)
        if value is not None and not 0 <= value <= 1:
            raise BadInput(f"data.{key}={value} must be a probability between 0 and 1")
    for key, most in (
        ("num_classes", LARGEST_COUNT),
        ("train_images", LARGEST_COUNT),
        ("val_images", LARGEST_COUNT),
        ("re_count", MOST_BOXES),
    ):
        value = getattr(cfg, key)
        if value is not None and value < 1:
            raise BadInput(f"data.{key}={value} must be at least 1")
        if value is not None and value > most:
            raise BadInput(f"data.{key}={value} must be at most {most:,}")
    if cfg.val_split is not None and not 0 < cfg.val_split < 1:
        raise BadInput(f"data.val_split={cfg.val_split} must be between 0 and 1, such as 0.2")
    _check_folds(cfg)
    _check_range(cfg, "scale", largest=1.0)
    _check_range(cfg, "ratio", largest=LARGEST_RATIO)
    if cfg.ratio is not None and cfg.ratio[0] < 1 / LARGEST_RATIO:
        raise BadInput(f"data.ratio={cfg.ratio} must be at least {1 / LARGEST_RATIO}")
    check_preprocessing(cfg)
    if (cfg.num_workers or 0) < 0:
        raise BadInput(f"data.num_workers={cfg.num_workers} must be at least 0")
    _check_choices(cfg)


def _check_folds(cfg: DataConfig) -> None:
    if cfg.folds is None:
        if cfg.fold is not None:
            raise BadInput(f"data.fold={cfg.fold} has no effect without data.folds=<number>")
        return
    if not 2 <= cfg.folds <= LARGEST_COUNT:
        raise BadInput(f"data.folds={cfg.folds} must be at least 2, such as 5")
    if cfg.fold is None:
        raise BadInput(
            f"data.folds={cfg.folds} needs data.fold=0 to {cfg.folds - 1}, the part to validate on;"
            " train.sweep=<folder> trains all of them"
        )
    if not 0 <= cfg.fold < cfg.folds:
        raise BadInput(f"data.fold={cfg.fold} must be from 0 to {cfg.folds - 1}")


def check_preprocessing(cfg: DataConfig) -> None:
    """Raise `BadInput` for invalid preprocessing: values of `PREPROCESSING` that are not None."""
    if cfg.crop_pct is not None and not 0 < cfg.crop_pct <= 1:
        raise BadInput(f"data.crop_pct={cfg.crop_pct} must be above 0 and at most 1")
    if cfg.crop_pct is not None and cfg.crop_pct < SMALLEST_CROP:
        raise BadInput(
            f"data.crop_pct={cfg.crop_pct} keeps almost nothing of an image; give at least"
            f" {SMALLEST_CROP}"
        )
    _one_of("interpolation", cfg.interpolation, INTERPOLATIONS)
    for key in ("mean", "std"):
        values = getattr(cfg, key)
        if values is None:
            continue
        if len(values) != cfg.in_chans:
            raise BadInput(f"data.{key}={values} must have {cfg.in_chans} numbers, one per channel")
        if not all(math.isfinite(value) for value in values):
            raise BadInput(f"data.{key}={values} must be finite")
        if max(map(abs, values)) > LARGEST_STATISTIC and not is_published(key, values):
            raise BadInput(
                f"data.{key}={values} must be for pixel values in 0..1; divide it by 255 if it is"
                " for 0..255"
            )
    smallest = math.inf if cfg.std is None else min(cfg.std)
    if smallest <= 0:
        raise BadInput(f"data.std={cfg.std} must be above 0")
    if smallest < SMALLEST_STD:
        raise BadInput(f"data.std={cfg.std} must be at least {SMALLEST_STD}")


def _check_range(cfg: DataConfig, key: str, largest: float) -> None:
    value = getattr(cfg, key)
    if value is not None and (len(value) != 2 or not 0 < value[0] <= value[1] <= largest):
        bound = f" <= {largest:g}"
        raise BadInput(f"data.{key}={value} must be a pair [low, high] with 0 < low <= high{bound}")


def _check_choices(cfg: DataConfig) -> None:
    _one_of("channel_order", cfg.channel_order, ORDERS)
    _one_of("train_interpolation", cfg.train_interpolation, [*INTERPOLATIONS, "random"])
    _one_of("re_mode", cfg.re_mode, ["const", "rand", "pixel"])
    jitter = 0.0 if cfg.color_jitter is None else cfg.color_jitter
    strengths = jitter if isinstance(jitter, list) else [jitter]
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in strengths)
    if not numbers or len(strengths) not in (1, 3, 4) or not all(0 <= x <= 10 for x in strengths):
        raise BadInput(
            f"data.color_jitter={jitter!r} must be one strength or "
            "[brightness, contrast, saturation(, hue)], each between 0 and 10"
        )
    if len(strengths) == 4 and strengths[3] > 0.5:
        raise BadInput(f"data.color_jitter={jitter!r}: hue must be at most 0.5")


def _one_of(key: str, value: Any, choices: list[str]) -> None:
    if value is not None and value not in choices:
        raise BadInput(unknown_value(f"data.{key}", value, choices))
