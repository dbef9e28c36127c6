"""Crops of photographs at two sizes: what a model that doubles the size of images learns from.

The input is the crop made half as large, antialiased and bicubic, as 8-bit pixels; the target is
the crop itself, values in 0..1. Trained on one of scikit-learn's two sample photographs, the
dahlia, validated on the other, the temple, of which every pixel that a grid of whole crops covers
is judged once. (The other way round says little: most of the dahlia's photograph is out of focus,
and there bicubic interpolation is as good as exact.)
"""

import random
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from zoo.data import photos
from zoo.data.datamodule import ImageData
from zoo.data.dataset import Batch, ImageSet, Preparation, own_randomness, seed_sample
from zoo.data.images import MODES
from zoo.data.samplers import Key
from zoo.errors import BadInput

SCALE = 2  # size of the target over that of the input
TRAIN, VAL = photos.FLOWER, photos.CHINA


@dataclass
class Crops:
    """Parts of a photograph, each of which gives one pair of an input and its target.

    Attributes:
        photo: Bytes H W C.
        windows: Tops and lefts of the parts; None where they are drawn at random.
        size: (height, width) of a part in pixels.
        count: How many parts there are.
        num_classes: Channels of the target.
    """

    photo: np.ndarray
    windows: list[tuple[int, int]] | None
    size: tuple[int, int]
    count: int
    num_classes: int
    class_names: None = None

    def __len__(self) -> int:
        return self.count

    def crop(self, index: int) -> np.ndarray:
        """Return part number `index`, or a random one by the generator of `random`."""
        height, width = self.size
        if self.windows is not None:
            top, left = self.windows[index]
        else:
            top = random.randint(0, self.photo.shape[0] - height)
            left = random.randint(0, self.photo.shape[1] - width)
        return self.photo[top : top + height, left : left + width]


class CropSet(ImageSet):
    """Gives whole batches of inputs and targets for lists of keys."""

    def load(self, keys: list[Key]) -> Batch:
        """Return inputs (float32, B C H W, normalised) and targets (float32, B C 2H 2W, 0..1)."""
        images = torch.empty(len(keys), *self.shape)
        channels, height, width = self.shape
        targets = torch.empty(len(keys), channels, SCALE * height, SCALE * width)
        preparation: Any = self.preparation
        with own_randomness():
            for image, target, (epoch, index) in zip(images, targets, keys, strict=True):
                if self.seed is not None:
                    seed_sample(self.seed, epoch, index)
                preparation.into(image, target, self.source.crop(index))  # type: ignore[attr-defined]
        return images, targets


class CropPreparation:
    """From a crop to the input and the target.

    Args:
        mean: Of the input; one number a channel, of values in 0..1.
        std: Of the input.
        flips: Probabilities of a horizontal and of a vertical flip.
    """

    def __init__(self, mean: list[float], std: list[float], flips: tuple[float, float] = (0, 0)):
        self.normalised = Preparation(pil_to_tensor, mean, std)
        self.flips = flips

    def into(self, image_out: Tensor, target_out: Tensor, crop: np.ndarray) -> None:
        """Write the input to `image_out` (C H W) and the target to `target_out` (C 2H 2W)."""
        for axis, probability in zip((1, 0), self.flips, strict=True):
            if random.random() < probability:
                crop = np.flip(crop, axis)
        height, width = image_out.shape[1:]
        picture = Image.fromarray(np.ascontiguousarray(crop))
        self.normalised.into(image_out, picture.resize((width, height), Image.Resampling.BICUBIC))
        np.divide(pil_to_tensor(picture).numpy(), np.float32(255), out=target_out.numpy())


class SuperResolutionData(ImageData):
    """Loaders of small images and of the same images at twice the size.

    `image_size` is that of the inputs; `num_classes` the number of channels to draw.
    """

    task: ClassVar[str] = "super-resolution"
    scale: ClassVar[int] = SCALE

    def __init__(self, config: Any, batch_size: int, eval_batch_size: int, seed: int) -> None:
        super().__init__(config, batch_size, eval_batch_size, seed)
        self.interpolation, self.crop_pct = "bicubic", 1.0

    def prepare_data(self) -> None:
        """Nothing: the photographs come with scikit-learn."""

    @property
    def output_shape(self) -> tuple[int, ...]:
        """(channels, height, width) of the larger image; known after `setup`."""
        height, width = self.image_size
        return (self.num_classes, SCALE * height, SCALE * width)

    def _preparations(self) -> tuple[Any, Any]:
        return (
            CropPreparation(self.mean, self.std, (self.config.hflip, self.config.vflip)),
            CropPreparation(self.mean, self.std),
        )

    def _open(self, split: str) -> Crops:
        if split not in ("train", "val"):
            raise BadInput(f"{self.config.name} has no split {split!r}; there are train and val")
        name = TRAIN if split == "train" else VAL
        photo = np.asarray(Image.fromarray(photos.photograph(name)).convert(MODES[self.in_chans]))
        height, width = (SCALE * edge for edge in self.image_size)
        if height > photo.shape[0] or width > photo.shape[1]:
            raise BadInput(
                f"data.image_size={list(self.image_size)}: crops of {height} x {width} pixels are"
                f" larger than the photograph, which has {photo.shape[0]} x {photo.shape[1]}"
            )
        if split == "train":
            return Crops(photo, None, (height, width), self.config.train_images, self.in_chans)
        windows = [
            (top, left)
            for top in range(0, photo.shape[0] - height + 1, height)
            for left in range(0, photo.shape[1] - width + 1, width)
        ]
        return Crops(photo, windows, (height, width), len(windows), self.in_chans)

    def _images(self, source: Any, preparation: Any, seed: int | None) -> ImageSet:
        return CropSet(source, preparation, self.shape, seed)
