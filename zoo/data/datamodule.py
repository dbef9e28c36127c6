"""`ImageData`: the loaders of a data set for classification, and the base of the other tasks."""

import logging
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

from zoo.data import (
    fingerprint,
    folders,
    integrity,
    presets,
    samplers,
    splits,
    torchvision_sets,
    transforms,
)
from zoo.data.classes import KnownClasses
from zoo.data.dataset import ImageSet
from zoo.data.holdout import SavedSplit
from zoo.data.loader import ImageLoader
from zoo.data.sources import Part
from zoo.data.streams import Stream, StreamLoader
from zoo.errors import BadInput
from zoo.settings import DataConfig

_FOLDERS = ("folder", "imagenet", "folder_segmentation", "folder_detection")

log = logging.getLogger("zoo.data")


class ImageData:
    """Loaders of a data set whose images have one class each.

    Attributes:
        task: The task of the data set: a task name of the model registry.
        config: The configuration with every default filled in.
        image_size: (height, width) in pixels.
        in_chans: 1 or 3.
        num_classes: Number of classes; known after `setup`.
        class_names: Their names in order, or None; known after `setup`.
        streaming: Whether the images come from WebDataset shards, in their order.
        saved_split: The split of a run (key of an image -> half), which decides instead of
            `data.val_split`; None to split by hash.
        is_balanced: Whether training images of all classes come equally often.
    """

    task: ClassVar[str] = "classification"

    def __init__(
        self, config: DataConfig, batch_size: int, eval_batch_size: int, seed: int
    ) -> None:
        self.config: Any = config
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        self.image_size: tuple[int, int] = presets.size_of(config.image_size)
        self.in_chans: int = config.in_chans
        self.mean: list[float] = self.config.mean
        self.std: list[float] = self.config.std
        self.interpolation: str = self.config.interpolation
        self.crop_pct: float = self.config.crop_pct
        self.num_classes: int = 0
        self.is_binary: bool = False
        self.class_names: list[str] | None = None
        self.streaming: bool = presets.family(config.name) == "wds"
        self.saved_split: SavedSplit | None = None
        self.is_balanced: bool = False
        self._known: KnownClasses | None = None
        self._is_training = False
        self._streams: list[Any] = []
        self._sources: dict[str, Any] = {}
        self._downloaded = False
        # Created here to report invalid settings before any data is read.
        self._train, self._eval = self._preparations()

    def _preparations(self) -> tuple[Any, Any]:
        """Return how images are prepared for training and for evaluation."""
        return transforms.train_preparation(self.config), transforms.eval_preparation(self.config)

    def expect_classes(self, count: int, names: Sequence[str] | None, owner: str) -> None:
        """Label the images with the classes of some weights; call it before `setup`.

        Classes are matched by name. Images of classes that the weights do not have are left out.
        Without names, the classes are matched by position and their numbers must agree.

        Args:
            count: Number of classes of the weights.
            names: Names of the classes in order, if known.
            owner: What has these classes, for messages.
        """
        if names is not None and len(names) != count:
            names = None
        self._known = KnownClasses(count, names, owner, self.config.name, leaves_out=True)

    def _open(self, split: str) -> Any:
        """Open a split and label its images like those of the splits opened before."""
        return self._matched(split, splits.open_split(self.config, split, self.saved_split))

    def _matched(self, split: str, opened: Any) -> Any:
        """Return the images with the class numbers of the weights, or of the first split."""
        names = folders.readable_names(opened.class_names)
        if self._known is None:
            self._known = KnownClasses(opened.num_classes, names, split, self.config.name)
            self.class_names = names
            return opened
        known = self._known
        numbers = known.numbers(split, opened.num_classes, names)
        if known.names is not None:
            self.class_names = list(known.names)
        elif self.class_names is None:
            self.class_names = names
        if numbers == list(range(max(known.count, opened.num_classes))):
            return opened
        return self._renumbered(opened, numbers, known)

    def _renumbered(self, opened: Any, numbers: list[int | None], known: KnownClasses) -> Any:
        names = None if known.names is None else list(known.names)
        return Part.renumbered(opened, numbers, names, known.count)

    def _images(self, source: Any, preparation: Any, seed: int | None) -> ImageSet:
        """Return the batches of `source`; `seed` is None if nothing is random."""
        return ImageSet(source, preparation, self.shape, seed)

    def download(self) -> None:
        """Download missing files if `data.download` is set; `setup` does so, too.

        Several processes may call this at once: one downloads while the others wait.

        Raises:
            BadInput: The download failed.
        """
        if self.config.download and not self._downloaded:
            torchvision_sets.download(self.config)
            self._downloaded = True

    def setup(self, stage: str | None = None) -> None:
        """Open the splits: train and val if `stage` is `"fit"` or None, otherwise only val.

        Raises:
            BadInput: Data is missing or inconsistent, an image cannot be read, there is a single
                class, or `batch_size` exceeds the training images.
        """
        if self.streaming:
            self._setup_stream(stage)
            return
        self._is_training = stage in (None, "fit")
        if self._is_training:
            train = self.source("train")
            self._check_several_classes()
            samplers.check_batch_size(self.batch_size, len(train))
        self.source("val")
        self._check_several_classes()
        self._check_images()
        if self._is_training:
            self._report_shared_folder()

    def _check_several_classes(self) -> None:
        if self.task == "classification" and self.num_classes < 2:
            name = f" {self.class_names[0]!r}" if self.class_names else ""
            beside = "" if self.streaming or not self.config.root else ", in a folder beside it"
            raise BadInput(
                f"data.name={self.config.name} has a single class{name}, so there is nothing to"
                f" tell apart; add images of another class{beside}"
            )

    def _check_images(self) -> None:
        """Raise `BadInput` for images that cannot be read; skipped and cached ones were read."""
        if self.config.skip_corrupt or self.config.cache:
            return
        paths = [
            source.files(index)[0]
            for source in self._sources.values()
            for index in range(len(source))
            if hasattr(source, "files") and source.files(index)
        ]
        integrity.check_images(paths, self.in_chans)

    def _report_shared_folder(self) -> None:
        """Log a warning if the folders of train and val are one."""
        roots = [getattr(self._sources[name], "root", "") for name in ("train", "val")]
        is_listed = (
            presets.family(self.config.name) in _FOLDERS and samplers.rank_and_world()[0] == 0
        )
        if is_listed and all(roots) and os.path.realpath(roots[0]) == os.path.realpath(roots[1]):
            log.warning(
                "train and val are the same folder: validation measures images that were trained"
                " on; hold out others with data.val_split=0.2"
            )

    def class_counts(self) -> list[int]:
        """Return the number of training images of each class; call it after `setup`.

        Raises:
            BadInput: The images have no classes, or come from shards, which do not list them.
        """
        source = self._sources.get("train")
        if source is None or self.task != "classification":
            raise BadInput(
                f"data.name={self.config.name} does not list the class of each image, so"
                " train.class_weights=balanced and train.sampler=balanced cannot be used; leave"
                " them out"
            )
        counts = Counter(int(label) for label in source.labels)
        return [counts[number] for number in range(self.num_classes)]

    def describe(self) -> str:
        """Return the numbers of images and how many each class has, for the first lines of a run.

        Call it after `setup`.
        """
        if self.streaming:
            splits = [
                str(fingerprint.of_shards(loader.reader)["images"]) for loader in self._streams
            ]
            return f"{self.config.name}: {' + '.join(splits)} images"
        order = [name for name in ("train", "val") if name in self._sources]
        counts = " + ".join(str(len(self._sources[name])) for name in order)
        text = f"{self.config.name}: {counts} images"
        labels = [int(n) for name in order for n in getattr(self._sources[name], "labels", ())]
        if not labels:
            return text
        sizes = sorted(Counter(labels).values())
        each = f"{sizes[0]}" if sizes[0] == sizes[-1] else f"{sizes[0]} to {sizes[-1]}"
        return f"{text}, {each} a class"

    def fingerprint(self) -> dict[str, Any]:
        """Return what identifies the images of each opened split, as plain values."""
        if self.streaming:
            names = ("train", "val")[-len(self._streams) :]
            return {
                name: fingerprint.of_shards(loader.reader)
                for name, loader in zip(names, self._streams, strict=True)
            }
        return {
            name: fingerprint.of_source(source, self.num_classes)
            for name, source in self._sources.items()
            if hasattr(source, "key")
        }

    def split_keys(self) -> dict[str, list[str]] | None:
        """Return the keys of both halves if one folder was split, for `split.csv`."""
        cfg = self.config
        is_split = any(v is not None for v in (cfg.val_split, cfg.split_file, cfg.folds))
        if not is_split or self.streaming:
            return None
        return {
            name: [source.key(index) for index in range(len(source))]
            for name, source in self._sources.items()
        }

    def _setup_stream(self, stage: str | None) -> None:
        if self.config.num_classes is None:
            raise BadInput(
                f"data.name={self.config.name} needs data.num_classes: the number of classes is "
                "not stored in the shards"
            )
        self.num_classes = self.config.num_classes
        if self._known is not None:
            self._known.numbers("val", self.num_classes, None)
            self.class_names = None if self._known.names is None else list(self._known.names)
        self._check_several_classes()
        names = ("train", "val") if stage in (None, "fit") else ("val",)
        # Opening the loaders reports missing shards.
        self._streams = [
            self.train_dataloader() if name == "train" else self.val_dataloader() for name in names
        ]

    def source(self, split: str) -> Any:
        """Return the images of a split; each split is opened once.

        Args:
            split: `"train"`, `"val"`, or the data set's own name for a split.

        Raises:
            BadInput: There is no such split, or its classes differ from those of another.
        """
        if split not in self._sources:
            self.download()
            opened = self._open(split)
            self._sources[split] = opened
            self.num_classes = max(self.num_classes, opened.num_classes)
            if self._known is not None and self._known.leaves_out and not len(opened):
                raise BadInput(f"split {split} has no images of the classes of {self._known.owner}")
        return self._sources[split]

    def train_dataloader(self) -> ImageLoader | StreamLoader:
        """Return shuffled, augmented batches of equal size.

        The images that do not fill a batch are left out of the epoch.
        """
        if self.streaming:
            size = self.batch_size
            stream = Stream(self.config, self._train, self.shape, size, self.seed)
            return StreamLoader(stream, "train", self.config.num_workers)
        source = self.source("train")
        data = self._images(source, self._train, self.seed)
        if self.is_balanced:
            batches = samplers.BalancedBatches(source.labels, self.batch_size, self.seed)
        else:
            batches = samplers.TrainBatches(len(source), self.batch_size, self.seed)
        return ImageLoader(data, batches, self.config.num_workers)

    def ordered_dataloader(self) -> ImageLoader:
        """Return the augmented training images of an epoch in order, each once, in one process."""
        source = self.source("train")
        data = self._images(source, self._train, self.seed)
        batches = samplers.OrderedBatches(len(source), self.batch_size, self.seed)
        return ImageLoader(data, batches, self.config.num_workers)

    def val_dataloader(self) -> ImageLoader | StreamLoader:
        """Return the validation images, each on exactly one rank."""
        return self.eval_dataloader("val")

    def eval_dataloader(self, split: str = "val") -> ImageLoader | StreamLoader:
        """Return a split in order, without augmentation, each image on exactly one rank.

        Args:
            split: `"train"`, `"val"`, or the data set's own name for a split.
        """
        if self.streaming:
            size = self.eval_batch_size
            stream = Stream(self.config, self._eval, self.shape, size, None)
            return StreamLoader(stream, split, self.config.num_workers)
        source = self.source(split)
        data = self._images(source, self._eval, None)
        batches = samplers.EvalBatches(len(source), self.eval_batch_size)
        return ImageLoader(data, batches, self.config.num_workers)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of a prepared image."""
        return (self.in_chans, *self.image_size)

    @property
    def num_outputs(self) -> int:
        """Outputs of the model, per image or pixel: one for each class, or one for two classes."""
        return 1 if self.is_binary else self.num_classes

    def accept_outputs(self, count: int | None) -> None:
        """Note that the model has `count` outputs: for two classes of pixels, one is enough."""
        self.is_binary = self.task == "segmentation" and count == 1 and self.num_classes == 2

    @property
    def output_shape(self) -> tuple[Any, ...]:
        """Shape of a model's output per image: one logit per class; known after `setup`.

        A length of `"any"` is not checked.
        """
        return (self.num_classes,)

    def accepts(self, output: Sequence[int]) -> bool:
        """Return whether a model's output per image has the right shape."""
        needed = self.output_shape
        return len(output) == len(needed) and all(
            b in ("any", a) for a, b in zip(output, needed, strict=True)
        )

    def eval_preprocessing(self) -> dict[str, Any]:
        """Return the evaluation preprocessing, as stored in checkpoints and manifests."""
        return {
            "size": list(self.shape),
            "crop_pct": self.crop_pct,
            "interpolation": self.interpolation,
            "mean": list(self.mean),
            "std": list(self.std),
            "channel_order": self.config.channel_order,
        }
