"""Detection: images and boxes, flipped, cropped and resized together."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode

from zoo.data import coco, integrity, scenes, torchvision_sets
from zoo.data.boxes import NO_CLASS, ROW, BoxPart
from zoo.data.classes import KnownClasses
from zoo.data.datamodule import ImageData
from zoo.data.dataset import Batch, ImageSet, own_randomness, seed_sample
from zoo.data.samplers import Key
from zoo.data.segmentation import Fit, JointPreparation, joint_augmentation
from zoo.errors import BadInput

VISIBLE = 0.3  # share of a box that a crop must keep; the box is left out otherwise
SMALLEST = 1.0  # pixels of a side, likewise


class BoxedPreparation(JointPreparation):
    """Turns an image and its boxes into tensors."""

    def prepare_into(self, image_out: Tensor, pair: tuple[Image.Image, np.ndarray]) -> Tensor:
        """Write the image to `image_out` (float32, C H W), and return its boxes, n 6."""
        image, rows = pair[0], torch.from_numpy(pair[1])
        boxes = tv_tensors.BoundingBoxes(
            rows[:, 1:5],
            format="XYXY",  # type: ignore[arg-type]
            canvas_size=(image.height, image.width),
            clamping_mode=None,  # type: ignore[arg-type]  # whole boxes, of which `_visible` keeps parts
        )
        image, boxes = self.transform(image, boxes)
        self.normalization.prepare_into(image_out, image)
        return _visible(rows, boxes.as_subclass(Tensor).float(), image_out.shape[1:])


def _visible(rows: Tensor, boxes: Tensor, size: Sequence[int]) -> Tensor:
    """Return rows n 6 with the parts of their boxes inside an image of (height, width).

    Boxes of which less than `VISIBLE` or `SMALLEST` is left are left out.
    """
    limit = torch.tensor([size[1], size[0], size[1], size[0]], dtype=torch.float32)
    inside = torch.minimum(boxes.clamp(min=0), limit)
    sides = inside[:, 2:] - inside[:, :2]
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    kept = (sides.prod(dim=1) >= VISIBLE * areas) & (sides.amin(dim=1) >= SMALLEST)
    return torch.cat([rows[:, :1], inside, rows[:, 5:]], dim=1)[kept]


class BoxedSet(ImageSet):
    """Whole batches of images and boxes for lists of keys."""

    def load(self, keys: list[Key]) -> Batch:
        """Return images (float32, B C H W) and boxes (float32, B M 6), filled up by `NO_CLASS`.

        Raises:
            BadInput: An image cannot be read.
        """
        images = torch.empty(len(keys), *self.shape)
        found = []
        preparation: Any = self.preparation
        with own_randomness():
            for image, (epoch, index) in zip(images, keys, strict=True):
                pair = self.source.boxed(index)  # type: ignore[attr-defined]
                if self.seed is not None:
                    seed_sample(self.seed, epoch, index)
                found.append(preparation.prepare_into(image, pair))
        targets = torch.zeros(len(keys), max(map(len, found)), ROW)
        targets[..., 0] = NO_CLASS
        for target, rows in zip(targets, found, strict=True):
            target[: len(rows)] = rows
        return images, targets


class DetectionData(ImageData):
    """Loaders of images and of the boxes in them.

    Evaluation uses whole images, resized to fit in the image size and padded.
    """

    task: ClassVar[str] = "detection"

    def __init__(self, config: Any, batch_size: int, eval_batch_size: int, seed: int) -> None:
        super().__init__(config, batch_size, eval_batch_size, seed)
        self.crop_pct = 1.0

    @property
    def output_shape(self) -> tuple[Any, ...]:
        """A box and a score of each class for any number of anchors; known after `setup`."""
        return ("any", 4 + self.num_classes)

    def _preparations(self) -> tuple[Any, Any]:
        mode = InterpolationMode(self.config.interpolation)
        is_reversed = self.config.channel_order == "BGR"
        grey = [round(255 * value) for value in self.mean]
        grey = grey[::-1] if is_reversed else grey
        statistics = (self.mean, self.std, is_reversed)
        return (
            BoxedPreparation(joint_augmentation(self.config, mode), *statistics),
            BoxedPreparation(Fit(self.image_size, mode, grey), *statistics),
        )

    def _open(self, split: str) -> Any:
        name = self.config.name
        if name == "digits_detection":
            opened: Any = scenes.open_boxed_scenes(self.config, split)
        elif name == "voc_detection":
            opened = torchvision_sets.open_voc_boxes(self.config, split)
        else:
            opened = coco.open_coco(self.config, split, self.saved_split)
        if self.config.skip_corrupt:
            workers = self.config.num_workers or 0
            kept, _ = integrity.readable(
                lambda index: bool(opened.boxed(index)), len(opened), split, workers
            )
            opened = BoxPart(opened, kept)
        if name == "folder_detection" and not any(map(len, map(opened.boxes, range(len(opened))))):
            raise BadInput(f"split {split} has no box, so there is nothing to detect")
        return self._matched(split, opened)

    def _renumbered(self, opened: Any, numbers: list[int | None], known: KnownClasses) -> Any:
        names = None if known.names is None else list(known.names)
        return BoxPart(opened, range(len(opened)), numbers, names, known.count)

    def _images(self, source: Any, preparation: Any, seed: int | None) -> ImageSet:
        return BoxedSet(source, preparation, self.shape, seed)
