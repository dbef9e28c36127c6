"""The keys of the group `data`.

Null means "what suits the data set": `zoo.data.presets` says what that is for each of them.
"""

from dataclasses import dataclass
from typing import Any


@dataclass
class DataConfig:
    """Which images a run sees, and how they are prepared."""

    # images with classes: digits, folder, imagenet, cifar10, cifar100, hfds/<name>, wds/<name>;
    # with a class for each pixel: digits_segmentation, folder_segmentation, voc, oxford_pet;
    # with the same image at twice the size: photos_superres
    name: str = "digits"
    root: str | None = None  # folder of the data; for hfds/<name> the cache folder
    download: bool = False  # fetch CIFAR, VOC or the Oxford pets where they are absent
    train_split_name: str | None = None  # folder or split to train on
    val_split_name: str | None = None  # folder or split to validate on
    val_split: float | None = (
        None  # share of the train images held out where there is no such split
    )
    input_key: str | None = None  # hfds, wds: column or file extension of the image
    target_key: str | None = None  # hfds, wds: column or field of the label
    num_classes: int | None = None  # wds, folder_segmentation: they do not say how many there are
    class_names: list[str] | None = None  # folder_segmentation: what the class numbers mean
    palette: Any = None  # folder_segmentation: [[r, g, b], ...] of the classes in coloured masks
    train_images: int | None = None  # digits_segmentation, photos_superres: made for each epoch
    val_images: int | None = None  # digits_segmentation: made for validation

    image_size: Any = None  # one number for a square, or [height, width], in pixels
    in_chans: int = 3  # 3 (colour) or 1 (grey)
    mean: list[float] | None = None  # one number a channel, of values in 0..1
    std: list[float] | None = None
    interpolation: str | None = None  # nearest, bilinear, bicubic, box, hamming, lanczos
    crop_pct: float | None = None  # evaluation: share of the resized image that the crop keeps

    # training only, with timm's names and meaning
    train_interpolation: str | None = None  # as interpolation, or random; null: as interpolation
    scale: list[float] | None = None  # random resized crop: range of the area
    ratio: list[float] | None = None  # and of width over height
    hflip: float | None = None  # probability
    vflip: float | None = None  # probability
    color_jitter: Any = None  # one strength, or [brightness, contrast, saturation(, hue)]
    auto_augment: str | None = None  # e.g. rand-m9-mstd0.5-inc1, augmix-m3-w3, original
    re_prob: float | None = None  # random erasing: probability
    re_mode: str | None = None  # const, rand or pixel
    re_count: int | None = None  # largest number of erased boxes

    num_workers: int | None = None  # processes that load; 0: the main one
    cache: bool = False  # keep every decoded image in memory
    skip_corrupt: bool = False  # drop what cannot be read instead of stopping
