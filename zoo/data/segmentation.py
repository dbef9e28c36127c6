"""Segmentation: images and masks, flipped, cropped and resized together."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from zoo.data import masks, scenes
from zoo.data.classes import KnownClasses
from zoo.data.datamodule import ImageData
from zoo.data.dataset import Batch, ImageSet, Preparation, own_randomness, seed_sample
from zoo.data.pairs import IGNORE, RenumberedPairs
from zoo.data.samplers import Key
from zoo.settings import DataConfig

Pair = tuple[Image.Image, Image.Image]
# NEAREST would shift masks against their images by up to half a pixel.
MASK_INTERPOLATION = InterpolationMode.NEAREST_EXACT


class JointCrop(v2.RandomResizedCrop):
    """A random crop of an image and of its mask or boxes, resized to one size.

    Unlike torchvision's, it resizes masks with `MASK_INTERPOLATION`, and a crop of a thin image has
    at least one pixel.
    """

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Return top, left, height and width of the crop in pixels."""
        params = super().make_params(flat_inputs)
        height, width = F.get_size(flat_inputs[0])
        params["height"] = max(1, params["height"])
        params["width"] = max(1, params["width"])
        params["top"] = min(params["top"], height - params["height"])
        params["left"] = min(params["left"], width - params["width"])
        return params

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Crop and resize an image, a mask or boxes."""
        if not isinstance(inpt, tv_tensors.Mask):
            return super().transform(inpt, params)
        part = F.crop(inpt.as_subclass(Tensor), **params)
        part = F.resize(part, list(self.size), interpolation=MASK_INTERPOLATION)  # type: ignore[arg-type]
        return tv_tensors.Mask(part)


class Fit(v2.Transform):
    """Resizes the whole image to fit in `size` and pads it at the right or the bottom.

    Masks are padded with `IGNORE`.

    Args:
        size: (height, width) in pixels.
        interpolation: How images are resized.
        fill: Colour of the padding of images, one number per channel in 0..255.
    """

    def __init__(
        self, size: Sequence[int], interpolation: InterpolationMode, fill: Sequence[int]
    ) -> None:
        super().__init__()
        self.size, self.interpolation = size, interpolation
        self.fill: list[float] = list(fill)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Return the resized (height, width), and the padding at left, top, right, bottom."""
        height, width = F.get_size(flat_inputs[0])
        scale = min(self.size[0] / height, self.size[1] / width)
        inner = [
            min(limit, max(1, round(scale * edge)))
            for edge, limit in zip((height, width), self.size, strict=True)
        ]
        return {"inner": inner, "padding": [0, 0, self.size[1] - inner[1], self.size[0] - inner[0]]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize and pad an image, a mask or boxes."""
        if isinstance(inpt, tv_tensors.Mask):
            part = F.resize(
                inpt.as_subclass(Tensor), params["inner"], interpolation=MASK_INTERPOLATION
            )
            return tv_tensors.Mask(F.pad(part, params["padding"], fill=IGNORE))
        part = F.resize(inpt, params["inner"], interpolation=self.interpolation)
        return F.pad(part, params["padding"], fill=self.fill)


class JointPreparation:
    """Turns an image and what is drawn on it, a mask or boxes, into tensors.

    Args:
        transform: Applied to both together.
        mean: One number per channel, for pixel values in 0..1.
        std: One number per channel, for pixel values in 0..1.
        is_reversed: Whether images are turned from RGB to BGR.
    """

    def __init__(
        self,
        transform: v2.Transform,
        mean: Sequence[float],
        std: Sequence[float],
        is_reversed: bool = False,
    ):
        self.transform = transform
        self.normalization = Preparation(F.pil_to_tensor, mean, std, is_reversed)


class MaskedPreparation(JointPreparation):
    """Turns an image and its mask into tensors."""

    def prepare_into(self, image_out: Tensor, mask_out: Tensor, pair: Pair) -> None:
        """Write the image to `image_out` (float32, C H W), the mask to `mask_out` (int64, H W)."""
        numbers = torch.from_numpy(np.array(pair[1]))[None]
        image, mask = self.transform(pair[0], tv_tensors.Mask(numbers))
        self.normalization.prepare_into(image_out, image)
        mask_out.copy_(mask.as_subclass(Tensor)[0])


class MaskedSet(ImageSet):
    """Whole batches of images and masks for lists of keys."""

    def load(self, keys: list[Key]) -> Batch:
        """Return images (float32, B C H W) and class numbers (int64, B H W; `IGNORE`: no class).

        Raises:
            BadInput: An image or a mask cannot be read.
        """
        images = torch.empty(len(keys), *self.shape)
        numbers = torch.empty(len(keys), *self.shape[1:], dtype=torch.int64)
        preparation: Any = self.preparation
        with own_randomness():
            for image, mask, (epoch, index) in zip(images, numbers, keys, strict=True):
                pair = self.source.pair(index)  # type: ignore[attr-defined]
                if self.seed is not None:
                    seed_sample(self.seed, epoch, index)
                preparation.prepare_into(image, mask, pair)
        return images, numbers


class SegmentationData(ImageData):
    """Loaders of images and masks; pixels without a class have the number `IGNORE`.

    Evaluation uses whole images, resized to fit in the image size and padded.
    """

    task: ClassVar[str] = "segmentation"

    def __init__(self, config: Any, batch_size: int, eval_batch_size: int, seed: int) -> None:
        if config.name == "folder_segmentation":
            masks.count_classes(config)  # raises if the settings disagree
        super().__init__(config, batch_size, eval_batch_size, seed)
        self.crop_pct = 1.0

    @property
    def output_shape(self) -> tuple[int, ...]:
        """(outputs, height, width): the logits of each pixel; known after `setup`."""
        return (self.num_outputs, *self.image_size)

    def _preparations(self) -> tuple[Any, Any]:
        cfg: DataConfig = self.config
        mode = InterpolationMode(cfg.interpolation)
        is_reversed = cfg.channel_order == "BGR"
        grey = [round(255 * value) for value in cfg.mean or []]
        grey = grey[::-1] if is_reversed else grey
        statistics = (self.mean, self.std, is_reversed)
        return (
            MaskedPreparation(joint_augmentation(cfg, mode), *statistics),
            MaskedPreparation(Fit(self.image_size, mode, grey), *statistics),
        )

    def _open(self, split: str) -> Any:
        if self.config.name == "digits_segmentation":
            return self._matched(split, scenes.open_scenes(self.config, split))
        opened, counts = masks.open_masks(self.config, split, self.saved_split)
        names = opened.class_names or [str(number) for number in range(opened.num_classes)]
        training = self._is_training and split == "train"
        masks.check_pixels(counts, split, names, self.config, training=training)
        return self._matched(split, opened)

    def _renumbered(self, opened: Any, numbers: list[int | None], known: KnownClasses) -> Any:
        names = None if known.names is None else list(known.names)
        return RenumberedPairs(
            opened, range(len(opened)), numbers=numbers, count=known.count, names=names
        )

    def _images(self, source: Any, preparation: Any, seed: int | None) -> ImageSet:
        return MaskedSet(source, preparation, self.shape, seed)


def joint_augmentation(cfg: DataConfig, mode: InterpolationMode) -> v2.Transform:
    """Return the training transform of an image and its mask or boxes.

    `data.ratio` is relative to the aspect ratio of `data.image_size`.
    """
    height, width = cfg.image_size
    assert cfg.scale is not None
    assert cfg.ratio is not None
    low, high = cfg.ratio
    steps: list[Any] = [
        JointCrop(
            (height, width),
            scale=(cfg.scale[0], cfg.scale[1]),
            ratio=(low * width / height, high * width / height),
            interpolation=mode,
        )
    ]
    if cfg.hflip:
        steps.append(v2.RandomHorizontalFlip(cfg.hflip))
    if cfg.vflip:
        steps.append(v2.RandomVerticalFlip(cfg.vflip))
    if cfg.color_jitter:
        strengths = cfg.color_jitter
        strengths = strengths if isinstance(strengths, list) else [strengths] * 3
        steps.append(v2.ColorJitter(*strengths))
    return v2.Compose(steps)
