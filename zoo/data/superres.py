"""Super-resolution by a factor of 2: crops of photographs, and the same crops at half the size.

The target is a crop, with values in 0..1; the input is the crop at half the height and width,
resized with antialiased bicubic interpolation and rounded to 8 bits. Of scikit-learn's two sample
photographs the dahlia is for training and the temple for validation, where a grid of crops covers
each pixel at most once. (The dahlia would be a poor validation image: most of it is out of focus,
where bicubic interpolation is almost exact.)
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
from zoo.data.samplers import Key
from zoo.data.sources import check_train_or_val
from zoo.errors import BadInput
from zoo.images import MODES

SCALE = 2  # height of the target / height of the input


@dataclass
class Crops:
    """Crops of a photograph: the targets.

    Attributes:
        photo: Bytes H W C.
        corners: (top, left) of each crop in pixels; None: drawn at random.
        size: (height, width) of a crop in pixels.
        count: Number of crops.
        num_classes: Channels of the target.
    """

    photo: np.ndarray
    corners: list[tuple[int, int]] | None
    size: tuple[int, int]
    count: int
    num_classes: int
    class_names: None = None

    def __len__(self) -> int:
        return self.count

    def crop(self, index: int) -> np.ndarray:
        """Return a crop, bytes H W C; random crops draw from the global generator of `random`."""
        height, width = self.size
        if self.corners is not None:
            top, left = self.corners[index]
        else:
            top = random.randint(0, self.photo.shape[0] - height)
            left = random.randint(0, self.photo.shape[1] - width)
        return self.photo[top : top + height, left : left + width]


class CropSet(ImageSet):
    """Whole batches of inputs and targets for lists of keys.

    Attributes:
        scale: Height of a target / height of an input.
    """

    scale = SCALE

    def load(self, keys: list[Key]) -> Batch:
        """Return inputs (float32, B C H W, normalised) and targets (float32, B C sH sW, 0..1)."""
        images = torch.empty(len(keys), *self.shape)
        channels, height, width = self.shape
        targets = torch.empty(len(keys), channels, self.scale * height, self.scale * width)
        preparation: Any = self.preparation
        with own_randomness():
            for image, target, (epoch, index) in zip(images, targets, keys, strict=True):
                self.seed_for(epoch, index)
                preparation.prepare_into(image, target, self.source.crop(index))  # type: ignore[attr-defined]
        return images, targets

    def seed_for(self, epoch: int, index: int) -> None:
        """Seed the global generators for an image; without a seed, nothing is random."""
        if self.seed is not None:
            seed_sample(self.seed, epoch, index)


class CropPreparation:
    """Turns a crop into an input and a target.

    Args:
        mean: Mean of the input; one number per channel, for pixel values in 0..1.
        std: Standard deviation of the input, likewise.
        flips: Probabilities of a horizontal and of a vertical flip.
    """

    def __init__(self, mean: list[float], std: list[float], flips: tuple[float, float] = (0, 0)):
        self.normalization = Preparation(pil_to_tensor, mean, std)
        self.flips = flips

    def prepare_into(self, image_out: Tensor, target_out: Tensor, crop: np.ndarray) -> None:
        """Write the input to `image_out` (C H W) and the target to `target_out` (C 2H 2W)."""
        crop = self.flipped(crop)
        height, width = image_out.shape[1:]
        picture = Image.fromarray(np.ascontiguousarray(crop))
        self.normalization.prepare_into(
            image_out, picture.resize((width, height), Image.Resampling.BICUBIC)
        )
        np.divide(pil_to_tensor(picture).numpy(), np.float32(255), out=target_out.numpy())

    def flipped(self, crop: np.ndarray) -> np.ndarray:
        """Return the crop, flipped with the given probabilities."""
        for axis, probability in zip((1, 0), self.flips, strict=True):
            if random.random() < probability:
                crop = np.flip(crop, axis)
        return crop


class SuperResolutionData(ImageData):
    """Loaders of small images and of the same images at twice the size.

    `image_size` is the size of the inputs; `num_classes` is the number of output channels.
    """

    task: ClassVar[str] = "super-resolution"
    scale: ClassVar[int] = SCALE
    photo_of: ClassVar[dict[str, str]] = {"train": photos.FLOWER, "val": photos.CHINA}

    def __init__(self, config: Any, batch_size: int, eval_batch_size: int, seed: int) -> None:
        super().__init__(config, batch_size, eval_batch_size, seed)
        self.interpolation, self.crop_pct = "bicubic", 1.0

    @property
    def output_shape(self) -> tuple[int, ...]:
        """(channels, height, width) of the target; known after `setup`."""
        height, width = self.image_size
        return (self.num_classes, self.scale * height, self.scale * width)

    def _preparations(self) -> tuple[Any, Any]:
        return (
            CropPreparation(self.mean, self.std, (self.config.hflip, self.config.vflip)),
            CropPreparation(self.mean, self.std),
        )

    def _open(self, split: str) -> Crops:
        check_train_or_val(self.config.name, split)
        name = self.photo_of[split]
        photo = np.asarray(Image.fromarray(photos.photograph(name)).convert(MODES[self.in_chans]))
        height, width = (self.scale * edge for edge in self.image_size)
        if height > photo.shape[0] or width > photo.shape[1]:
            raise BadInput(
                f"data.image_size={list(self.image_size)} needs crops of {height} x {width} pixels,"
                f" larger than the photograph with {photo.shape[0]} x {photo.shape[1]}; lower it"
            )
        if split == "train":
            return Crops(photo, None, (height, width), self.config.train_images, self.in_chans)
        corners = [
            (top, left)
            for top in range(0, photo.shape[0] - height + 1, height)
            for left in range(0, photo.shape[1] - width + 1, width)
        ]
        return Crops(photo, corners, (height, width), len(corners), self.in_chans)

    def _images(self, source: Any, preparation: Any, seed: int | None) -> ImageSet:
        return CropSet(source, preparation, self.shape, seed)
