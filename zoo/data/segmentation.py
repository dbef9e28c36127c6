"""Images and the class of every pixel, both turned, cropped and resized together."""

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
from zoo.data.datamodule import ImageData
from zoo.data.dataset import Batch, ImageSet, Preparation, own_randomness, seed_sample
from zoo.data.pairs import IGNORE
from zoo.data.samplers import Key
from zoo.errors import BadInput
from zoo.settings import DataConfig

Pair = tuple[Image.Image, Image.Image]
# Of both nearest modes the one whose pixels lie where those of the resized image lie.
MASKS = InterpolationMode.NEAREST_EXACT


class JointCrop(v2.RandomResizedCrop):
    """A random part of an image and the same part of its mask, at one size.

    torchvision resizes masks with `NEAREST`, which shifts them by up to half a pixel.
    """

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Crop and resize one of the two."""
        if not isinstance(inpt, tv_tensors.Mask):
            return super().transform(inpt, params)
        part = F.crop(inpt.as_subclass(Tensor), **params)
        part = F.resize(part, list(self.size), interpolation=MASKS)  # type: ignore[arg-type]
        return tv_tensors.Mask(part)


class Fit(v2.Transform):
    """The whole image, made as large as fits in `size`; below or beside it is what to ignore.

    Args:
        size: (height, width) in pixels.
        interpolation: Of the image; masks take the nearest number.
        fill: Colour of what is added to images, one byte a channel.
    """

    def __init__(
        self, size: Sequence[int], interpolation: InterpolationMode, fill: Sequence[int]
    ) -> None:
        super().__init__()
        self.size, self.interpolation = size, interpolation
        self.fill: list[float] = list(fill)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Return the size of the image inside, and the padding left, top, right, bottom."""
        height, width = F.get_size(flat_inputs[0])
        scale = min(self.size[0] / height, self.size[1] / width)
        inner = [
            min(limit, max(1, round(scale * edge)))
            for edge, limit in zip((height, width), self.size, strict=True)
        ]
        return {"inner": inner, "padding": [0, 0, self.size[1] - inner[1], self.size[0] - inner[0]]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize and pad one of the two."""
        if isinstance(inpt, tv_tensors.Mask):
            part = F.resize(inpt.as_subclass(Tensor), params["inner"], interpolation=MASKS)
            return tv_tensors.Mask(F.pad(part, params["padding"], fill=IGNORE))
        part = F.resize(inpt, params["inner"], interpolation=self.interpolation)
        return F.pad(part, params["padding"], fill=self.fill)


class MaskedPreparation:
    """From an image and its mask to tensors.

    Args:
        transform: Applied to the image and the mask together.
        mean: One number a channel, of values in 0..1.
        std: One number a channel, of values in 0..1.
    """

    def __init__(self, transform: v2.Transform, mean: Sequence[float], std: Sequence[float]):
        self.transform = transform
        self.normalised = Preparation(F.pil_to_tensor, mean, std)

    def into(self, image_out: Tensor, mask_out: Tensor, pair: Pair) -> None:
        """Write the image to `image_out` (float32, C H W), the mask to `mask_out` (int64, H W)."""
        numbers = torch.from_numpy(np.array(pair[1]))[None]
        image, mask = self.transform(pair[0], tv_tensors.Mask(numbers))
        self.normalised.into(image_out, image)
        mask_out.copy_(mask.as_subclass(Tensor)[0])


class MaskedSet(ImageSet):
    """Gives whole batches of images and masks for lists of keys."""

    def load(self, keys: list[Key]) -> Batch:
        """Return images (float32, B C H W) and class numbers (int64, B H W; 255: none).

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
                preparation.into(image, mask, pair)
        return images, numbers


class SegmentationData(ImageData):
    """Loaders of images whose pixels have a class each; 255 marks those that have none.

    Evaluation sees whole images, resized to fit in the image size; what they do not fill is marked.
    """

    task: ClassVar[str] = "segmentation"

    def __init__(self, config: Any, batch_size: int, eval_batch_size: int, seed: int) -> None:
        if config.name == "folder_segmentation":
            masks.check_classes(config)
        super().__init__(config, batch_size, eval_batch_size, seed)
        self.crop_pct = 1.0

    def prepare_data(self) -> None:
        """Download what may be downloaded; Lightning calls this in one process of a machine."""
        if self.config.name in ("voc", "oxford_pet"):
            masks.fetch(self.config)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """(classes, height, width): one logit a class for every pixel; known after `setup`."""
        return (self.num_classes, *self.image_size)

    def _preparations(self) -> tuple[Any, Any]:
        cfg: DataConfig = self.config
        mode = InterpolationMode(cfg.interpolation)
        grey = [round(255 * value) for value in cfg.mean or []]
        return (
            MaskedPreparation(_augmentation(cfg, mode), self.mean, self.std),
            MaskedPreparation(Fit(self.image_size, mode, grey), self.mean, self.std),
        )

    def _open(self, split: str) -> Any:
        open_split = (
            scenes.open_scenes if self.config.name == "digits_segmentation" else masks.open_masks
        )
        opened = open_split(self.config, split)
        self.class_names = opened.class_names
        return opened

    def _images(self, source: Any, preparation: Any, seed: int | None) -> ImageSet:
        return MaskedSet(source, preparation, self.shape, seed)


def _augmentation(cfg: DataConfig, mode: InterpolationMode) -> v2.Transform:
    """Return what training does with an image and its mask.

    `data.ratio` is meant of a square; for another shape it is taken relative to that.
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
        try:
            steps.append(v2.ColorJitter(*strengths))
        except ValueError as error:  # a hue is at most half the circle
            raise BadInput(f"data.color_jitter={cfg.color_jitter}: {error}") from error
    return v2.Compose(steps)
