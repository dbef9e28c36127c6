"""Predictions of a teacher for every augmented training image, stored once for many students.

A store is a folder with `store.json`, which says what it was made from, and one file for each
epoch. A file has one row for each image of the training split, in the order of the split: the K
largest probabilities, and their classes unless K is the number of classes. As the augmentation of
an image depends only on (seed, epoch, index), neither the order of the images nor the size of the
batches nor the number of processes matters. (TinyViT, arXiv 2207.10666, section 3.2)
"""

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import torchvision
from torch import Tensor
from torch.nn import functional as F

from zoo.data import fingerprint
from zoo.data.datamodule import ImageData
from zoo.errors import BadInput, first_line
from zoo.training.disk import atomic_file

FORMAT = "zoo.logits/1"
MANIFEST = "store.json"
# Settings of the group `data` on which the pixels of a training image depend.
_PIXELS = ("image_size", "in_chans", "interpolation", "channel_order", "train_interpolation")
_PIXELS += ("scale", "ratio", "hflip", "vflip", "color_jitter", "auto_augment")
_PIXELS += ("re_prob", "re_mode", "re_count")


def describe(data: ImageData, seed: int) -> dict[str, Any]:
    """Return what the images of a run are determined by, as plain values.

    Args:
        data: The data module of the run, after `setup`.
        seed: The seed of the run.

    Raises:
        BadInput: The data has no classes, or is read from shards, whose images have no numbers.
    """
    name = data.config.name
    if data.task != "classification":
        raise BadInput(
            f"data.name={name} is for {data.task}: logits are stored for classification only"
        )
    if data.streaming:
        raise BadInput(
            f"data.name={name} is read from shards, whose images have no numbers to store logits"
            " by; choose another data set"
        )
    config = dataclasses.asdict(data.config)
    settings = {f"data.{key}": config[key] for key in _PIXELS}
    settings |= {"data.mean": list(data.mean), "data.std": list(data.std)}
    settings["data.interpolation"] = data.interpolation
    settings["data.image_size"] = list(data.image_size)
    described = {
        "train.seed": seed,
        "data.name": name,
        **settings,
        "num_classes": data.num_classes,
        "split": fingerprint.of_source(data.source("train"), data.num_classes),
        "versions": {"pillow": PIL.__version__, "torchvision": torchvision.__version__},
    }
    return json.loads(json.dumps(described))  # tuples become lists


def difference(stored: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return in words the first thing that differs between two results of `describe`."""
    for key, value in now.items():
        if key not in ("split", "versions") and stored.get(key) != value:
            return f"{key} is {value}, and the store was made with {stored.get(key)}"
    if changed := fingerprint.differences({"train": stored["split"]}, {"train": now["split"]}):
        return f"the images differ: {changed}"
    for package, version in now["versions"].items():
        if stored["versions"].get(package) != version:
            return (
                f"{package} is {version}, and the store was made with"
                f" {stored['versions'].get(package)}, which may decode or resize otherwise"
            )
    return ""


class LogitStore:
    """A folder of stored predictions.

    Attributes:
        folder: The folder.
        about: The content of `store.json`.

    Args:
        folder: An existing store.

    Raises:
        BadInput: It is none, or `store.json` is damaged.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder).expanduser()
        path = self.folder / MANIFEST
        try:
            self.about: dict[str, Any] = json.loads(path.read_text())
            written = self.about["format"]
            self.images, self.classes = self.about["images"], self.about["num_classes"]
            self.top = self.about["top"]
            self._type = np.dtype(self.about["type"])
        except FileNotFoundError as error:
            raise BadInput(
                f"{folder} is no store of logits (it has no {MANIFEST}); make one with"
                " zoo store-logits"
            ) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadInput(f"{path} cannot be read: {first_line(error)}; make it again") from error
        if written != FORMAT:
            raise BadInput(f"{path} has the format {written}; this version reads {FORMAT}")
        self._opened: tuple[int, np.ndarray] | None = None

    @classmethod
    def create(
        cls,
        folder: Path,
        described: dict[str, Any],
        teacher: dict[str, Any],
        *,
        top: int,
        half: bool,
    ) -> "LogitStore":
        """Make a store without epochs, or open the one that an earlier call made.

        Args:
            folder: The folder, which may exist.
            described: The result of `describe`.
            teacher: What identifies the teacher.
            top: Number K of the largest probabilities to keep.
            half: Whether to store float16 instead of float32.

        Raises:
            BadInput: The folder has a store of something else.
        """
        about = {
            "format": FORMAT,
            "images": described["split"]["images"],
            "num_classes": described["num_classes"],
            "top": top,
            "type": "float16" if half else "float32",
            "teacher": teacher,
            "from": described,
        }
        if (folder / MANIFEST).exists():
            found = cls(folder)
            for key in ("teacher", "top", "type"):
                if found.about[key] != about[key]:
                    raise BadInput(
                        f"{folder} is a store with {key}={found.about[key]}, not {about[key]};"
                        " give another out"
                    )
            if changed := difference(found.about["from"], described):
                raise BadInput(f"{folder} is another store: {changed}; give another out")
            return found
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(folder / MANIFEST) as file:
            file.write(json.dumps(about, indent=2).encode())
        return cls(folder)

    @property
    def row(self) -> np.dtype:
        """The type of a row: probabilities, and their classes if some are left out."""
        fields: list[Any] = [("probabilities", self._type, (self.top,))]
        if self.top < self.classes:
            number = np.int16 if self.classes <= 2**15 else np.int32
            fields.append(("classes", number, (self.top,)))
        return np.dtype(fields)

    def path(self, epoch: int) -> Path:
        """Return the file of an epoch, counted from 0."""
        return self.folder / f"epoch_{epoch:05d}.npy"

    @property
    def epochs(self) -> int:
        """Number of epochs that are complete."""
        count = 0
        while self.path(count).exists():
            count += 1
        return count

    def write(self, epoch: int, logits: Iterable[tuple[Sequence[int], Tensor]]) -> None:
        """Write an epoch; the file gets its name when it is complete.

        Args:
            epoch: The epoch, counted from 0.
            logits: Numbers of images, and the teacher's logits B C; together every image once.

        Raises:
            OSError: The file cannot be written.
        """
        rows = np.zeros(self.images, self.row)
        for indices, values in logits:
            found, classes = values.double().softmax(dim=1).topk(self.top, dim=1)
            if self.top == self.classes:
                found = values.double().softmax(dim=1)
            else:
                rows["classes"][list(indices)] = classes.numpy()
            rows["probabilities"][list(indices)] = found.numpy()
        with atomic_file(self.path(epoch)) as file:
            np.save(file, rows)

    def probabilities(self, epoch: int, indices: Sequence[int]) -> Tensor:
        """Return the teacher's distributions for images, B C; what is not stored is spread evenly.

        Raises:
            BadInput: The epoch is not in the store, or its file is damaged.
        """
        rows = self._rows(epoch)[list(indices)]
        found = torch.from_numpy(rows["probabilities"].astype(np.float32))
        if self.top == self.classes:
            return found / found.sum(dim=1, keepdim=True)
        rest = (1 - found.sum(dim=1, keepdim=True)).clamp(min=0) / (self.classes - self.top)
        spread = rest.expand(-1, self.classes).clone()
        whole = spread.scatter(1, torch.from_numpy(rows["classes"].astype(np.int64)), found)
        return whole / whole.sum(dim=1, keepdim=True)

    def _rows(self, epoch: int) -> np.ndarray:
        if self._opened is None or self._opened[0] != epoch:
            path = self.path(epoch)
            try:
                rows = np.load(path, mmap_mode="r")
            except (OSError, ValueError, EOFError) as error:
                raise BadInput(f"{path} cannot be read: {first_line(error)}") from error
            if rows.dtype != self.row or rows.shape != (self.images,):
                raise BadInput(f"{path} is damaged: delete it, and run zoo store-logits again")
            self._opened = epoch, rows
        return self._opened[1]

    def check(self, described: Mapping[str, Any], epochs: int) -> None:
        """Raise `BadInput` unless the store has the predictions for the images of a run.

        Args:
            described: The result of `describe` for the run.
            epochs: Number of epochs of the run.
        """
        if changed := difference(self.about["from"], described):
            raise BadInput(
                f"train.distill_store={self.folder} does not fit: {changed}; change the setting, or"
                " make another store with zoo store-logits"
            )
        if epochs > self.epochs:
            raise BadInput(
                f"train.epochs={epochs} is more than the {self.epochs} epochs of"
                f" train.distill_store={self.folder}; lower it, or run zoo store-logits again with"
                f" epochs={epochs}, which adds the missing ones"
            )


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence of a student, averaged over the images.

    Args:
        student: Logits, B C.
        teacher: Distributions, B C.
    """
    log_p = F.log_softmax(student, dim=1)
    return F.kl_div(log_p, teacher.to(log_p), reduction="batchmean")
