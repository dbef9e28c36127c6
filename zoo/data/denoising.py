"""`photos_denoising`: crops of photographs with noise, and the same crops without it.

The target is a crop with values in 0..1. The input has independent Gaussian noise of standard
deviation `SIGMA` added to each pixel and channel; it is neither rounded nor clipped. Of the two
sample photographs of scikit-learn, the temple is for training and the dahlia for validation. (Most
of the dahlia is out of focus: what is trained on it only learns to blur.) The noise of a validation
crop is the same on every machine.
"""

from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from zoo.data import photos
from zoo.data.dataset import ImageSet, seed_sample
from zoo.data.superres import CropPreparation, CropSet, SuperResolutionData

SIGMA = 25 / 255  # as in most work on denoising, for values in 0..1
SEED = 3  # of the noise of validation crops


class NoisyPreparation(CropPreparation):
    """Turns a crop into an input with noise and a target without."""

    def prepare_into(self, image_out: Tensor, target_out: Tensor, crop: np.ndarray) -> None:
        """Write the input to `image_out` and the target to `target_out` (C H W each)."""
        picture = Image.fromarray(np.ascontiguousarray(self.flipped(crop)))
        self.normalization.prepare_into(image_out, picture)
        np.divide(pil_to_tensor(picture).numpy(), np.float32(255), out=target_out.numpy())
        std = torch.tensor(self.normalization.std)[:, None, None]
        image_out += torch.randn(image_out.shape) * (SIGMA / std)


class NoisySet(CropSet):
    """Whole batches of inputs and targets for lists of keys."""

    scale = 1

    def seed_for(self, epoch: int, index: int) -> None:
        """Seed the global generators for an image."""
        seed_sample(*((SEED,) if self.seed is None else (self.seed, epoch)), index)


class DenoisingData(SuperResolutionData):
    """Loaders of noisy images and of the same images without noise."""

    task: ClassVar[str] = "restoration"
    scale: ClassVar[int] = 1
    photo_of: ClassVar[dict[str, str]] = {"train": photos.CHINA, "val": photos.FLOWER}

    def _preparations(self) -> tuple[Any, Any]:
        flips = (self.config.hflip, self.config.vflip)
        return NoisyPreparation(self.mean, self.std, flips), NoisyPreparation(self.mean, self.std)

    def _images(self, source: Any, preparation: Any, seed: int | None) -> ImageSet:
        return NoisySet(source, preparation, self.shape, seed)
