"""Loaders of images that have any number of labels each."""

import hashlib
from typing import Any, ClassVar

import torch
from torch import Tensor

from zoo.data import label_table
from zoo.data.classes import KnownClasses
from zoo.data.datamodule import ImageData
from zoo.data.dataset import ImageSet
from zoo.data.samplers import Key


class TaggedSet(ImageSet):
    """Whole batches of images and of zeros and ones for each class."""

    def targets(self, keys: list[Key]) -> Tensor:
        """Return 1 for the labels of each image and 0 for all others (int64, B K)."""
        source: Any = self.source
        return torch.tensor([source.targets[index] for _, index in keys])


class MultiLabelData(ImageData):
    """Loaders of images and of zeros and ones (int64, B K): which of the classes they show."""

    task: ClassVar[str] = "multi-label"

    def _open(self, split: str) -> Any:
        return self._matched(split, label_table.open_split(self.config, split, self.saved_split))

    def _renumbered(self, opened: Any, numbers: list[int | None], known: KnownClasses) -> Any:
        names = None if known.names is None else list(known.names)
        return opened.renumbered(numbers, names, known.count)

    def _images(self, source: Any, preparation: Any, seed: int | None) -> ImageSet:
        return TaggedSet(source, preparation, self.shape, seed)

    def describe(self) -> str:
        """Return the numbers of images, and how many labels they have on average."""
        rows = [row for source in self._sources.values() for row in source.targets]
        mean = sum(map(sum, rows)) / max(1, len(rows))
        return f"{super().describe()}, {self.num_classes} classes, {mean:.2g} labels an image"

    def fingerprint(self) -> dict[str, Any]:
        """Return what identifies the images of each opened split, with their labels."""
        found = super().fingerprint()
        for name, entry in found.items():
            rows = sorted(
                f"{self._sources[name].key(index)} {row}"
                for index, row in enumerate(self._sources[name].targets)
            )
            lines = "\n".join(rows).encode(errors="surrogateescape")
            entry["names"] = hashlib.sha256(lines).hexdigest()[:32]
        return found
