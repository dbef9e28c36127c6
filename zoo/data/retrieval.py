"""`photos_retrieval`: views of places in photographs, for image retrieval.

A place is a square of `WINDOW` pixels in one of scikit-learn's two sample photographs that has some
texture: nobody can tell squares of sky apart. A view of it
is a crop at a random position, scale and angle near the place, with other brightness, contrast and
colours. Training places are in the left parts of the photographs and validation places in the right
parts, so that a model is judged on places that it has never seen.

For validation, each place has one plain view, which is the reference, and `QUERIES` random ones,
which are the same on every machine.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from zoo.data import photos
from zoo.data.datamodule import ImageData
from zoo.data.dataset import Batch, ImageSet, Preparation
from zoo.data.loader import ImageLoader
from zoo.data.samplers import Key, TrainBatches, mix
from zoo.data.sources import check_train_or_val
from zoo.errors import BadInput
from zoo.images import MODES

SEED = 2
WINDOW = 32  # side of a place, pixels of the photograph
TEXTURE = 4.0  # least mean difference of neighbouring grey pixels of a place, of 255
VIEWS = 4  # of one place in a training batch, one after the other
QUERIES = 3  # of each validation place
SHIFT = 0.25  # largest shift / side of a place, along each axis
ZOOM = 1.3  # largest factor on the side of a view, and 1 / the smallest
ANGLE = 20.0  # largest, degrees
GAIN = 0.3  # largest change of brightness, contrast and each channel, as a share
REFERENCE, QUERY = 0, 1  # second column of a target


@dataclass
class Places:
    """Views of the places of one split.

    Attributes:
        areas: The parts of the photographs, bytes H W 3, each with a mirrored margin of `WINDOW`.
        corners: (area, top, left) of each place, in pixels of the area without its margin.
        split: `"train"` or `"val"`.
        count: Number of views.
        size: (height, width) of a view in pixels.
        in_chans: 1 (grey) or 3 (RGB).
    """

    areas: list[np.ndarray]
    corners: list[tuple[int, int, int]]
    split: str
    count: int
    size: tuple[int, int]
    in_chans: int
    class_names: None = None

    @property
    def num_classes(self) -> int:
        """Number of places."""
        return len(self.corners)

    def __len__(self) -> int:
        return self.count

    def target(self, index: int) -> tuple[int, int]:
        """Return the place of a view, and whether it is a reference or a query."""
        places = len(self.corners)
        if self.split == "train":
            return index // VIEWS % places, QUERY
        return index % places, REFERENCE if index < places else QUERY

    def image(self, index: int, seed: int = SEED, epoch: int = 0) -> Image.Image:
        """Return a view; the same for the same arguments."""
        place, kind = self.target(index)
        numbers = np.random.default_rng(mix(seed, epoch, self.split == "val", index))
        change = numbers.uniform(-1, 1, 9) * (kind == QUERY)
        area, top, left = self.corners[place]
        side, angle = WINDOW * ZOOM ** change[0], math.radians(ANGLE * change[1])
        middle = WINDOW * 1.5 + WINDOW * SHIFT * change[2:4] + (left, top)  # x, y
        height, width = self.size
        a, b = math.cos(angle) * side, math.sin(angle) * side
        # From pixels of the view to pixels of the area with its margin.
        steps = np.array([[a / width, -b / height], [b / width, a / height]])
        start = middle - steps @ (width / 2, height / 2)
        matrix = np.column_stack([steps, start]).flatten()
        view = Image.fromarray(self.areas[area]).transform(
            (width, height), Image.Transform.AFFINE, tuple(matrix), Image.Resampling.BICUBIC
        )
        pixels = np.asarray(view, np.float32)
        average = pixels.mean()
        pixels = average + (pixels - average) * (1 + GAIN * change[4])
        pixels *= (1 + GAIN * change[5]) * (1 + GAIN / 2 * change[6:9])
        pixels = pixels.round().clip(0, 255).astype(np.uint8)
        return Image.fromarray(pixels).convert(MODES[self.in_chans])


class ViewSet(ImageSet):
    """Whole batches of views and their places for lists of keys."""

    def load(self, keys: list[Key]) -> Batch:
        """Return images (float32, B C H W) and targets (int64, B 2: place, 1 for a query)."""
        images, source = torch.empty(len(keys), *self.shape), self.source
        targets = torch.tensor([source.target(index) for _, index in keys])  # type: ignore[attr-defined]
        for out, (epoch, index) in zip(images, keys, strict=True):
            variant = () if self.seed is None else (mix(SEED, self.seed), epoch)
            self.preparation.prepare_into(out, source.image(index, *variant))
        return images, targets


class PlaceBatches(TrainBatches):
    """Shuffled batches in which the `VIEWS` views of one place follow each other."""

    def _order(self, generator: torch.Generator) -> Tensor:
        groups = torch.randperm(self.num_samples // VIEWS, generator=generator)
        return (groups[:, None] * VIEWS + torch.arange(VIEWS)).flatten()


class RetrievalData(ImageData):
    """Loaders of views of places; `num_classes` is the number of places."""

    task: ClassVar[str] = "retrieval"

    def __init__(self, config: Any, batch_size: int, eval_batch_size: int, seed: int) -> None:
        super().__init__(config, batch_size, eval_batch_size, seed)
        self.interpolation, self.crop_pct = "bicubic", 1.0

    def expect_classes(self, count: int, names: Any, owner: str) -> None:
        """Do nothing: validation places are never those that weights were trained on."""

    @property
    def num_outputs(self) -> Any:
        """None: the length of an embedding is a property of the model."""
        return None

    @property
    def output_shape(self) -> tuple[Any, ...]:
        """Shape of an embedding; any length will do."""
        return ("any",)

    def setup(self, stage: str | None = None) -> None:
        """Open the splits.

        Raises:
            BadInput: A training batch has not several views of several places.
        """
        super().setup(stage)
        if self._is_training and (self.batch_size % VIEWS or self.batch_size < 2 * VIEWS):
            raise BadInput(
                f"train.batch_size={self.batch_size} must be a multiple of {VIEWS}, and at least"
                f" {2 * VIEWS}: a batch has {VIEWS} views of each of its places"
            )

    def train_dataloader(self) -> ImageLoader:
        """Return shuffled batches of random views, `VIEWS` of each place."""
        source = self.source("train")
        batches = PlaceBatches(len(source), self.batch_size, self.seed)
        return ImageLoader(
            self._images(source, self._train, self.seed), batches, self.config.num_workers
        )

    def _preparations(self) -> tuple[Any, Any]:
        is_reversed = self.config.channel_order == "BGR"
        preparation = Preparation(pil_to_tensor, self.mean, self.std, is_reversed)
        return preparation, preparation

    def _open(self, split: str) -> Places:
        check_train_or_val(self.config.name, split)
        parts = [
            photos.part(photos.photograph(name), split) for name in (photos.CHINA, photos.FLOWER)
        ]
        step = WINDOW // 4 if split == "train" else WINDOW
        corners = [
            (number, top, left)
            for number, part in enumerate(parts)
            for top in range(0, part.shape[0] - WINDOW + 1, step)
            for left in range(0, part.shape[1] - WINDOW + 1, step)
            if _texture(part[top : top + WINDOW, left : left + WINDOW]) >= TEXTURE
        ]
        order = np.random.default_rng(SEED).permutation(len(corners))  # neighbours overlap
        corners = [corners[i] for i in order] if split == "train" else corners
        margin = ((WINDOW, WINDOW), (WINDOW, WINDOW), (0, 0))
        areas = [np.pad(part, margin, mode="symmetric") for part in parts]
        if split == "train":
            count = self.config.train_images // VIEWS * VIEWS
        else:
            count = len(corners) * (1 + QUERIES)
        return Places(areas, corners, split, count, self.image_size, self.in_chans)

    def _images(self, source: Any, preparation: Any, seed: int | None) -> ImageSet:
        return ViewSet(source, preparation, self.shape, seed)


def _texture(window: np.ndarray) -> float:
    """Return the mean difference of neighbouring grey pixels of a window, bytes H W 3."""
    grey = window.mean(axis=2)
    return float(np.mean([np.abs(np.diff(grey, axis=axis)).mean() for axis in (0, 1)]))
