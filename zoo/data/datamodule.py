"""`ImageData`: the loaders of a data set for classification, and the base of the other tasks."""

from typing import Any, ClassVar

from zoo.data import folders, presets, samplers, splits, torchvision_sets, transforms
from zoo.data.dataset import ImageSet
from zoo.data.loader import ImageLoader
from zoo.data.streams import Stream, StreamLoader
from zoo.errors import BadInput
from zoo.settings import DataConfig


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
        self.class_names: list[str] | None = None
        self.streaming: bool = presets.family(config.name) == "wds"
        self._sources: dict[str, Any] = {}
        self._downloaded = False
        # Created here to report invalid settings before any data is read.
        self._train, self._eval = self._preparations()

    def _preparations(self) -> tuple[Any, Any]:
        """Return how images are prepared for training and for evaluation."""
        return transforms.train_preparation(self.config), transforms.eval_preparation(self.config)

    def _open(self, split: str) -> Any:
        """Open a split and compare its classes with those of the splits opened before."""
        opened = splits.open_split(self.config, split)
        for name, source in self._sources.items():
            splits.check_same_classes(name, source.class_names, split, opened.class_names)
        self.class_names = folders.readable_names(opened.class_names)
        return opened

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
            BadInput: Data is missing or inconsistent, or `batch_size` exceeds the training images.
        """
        if self.streaming:
            self._setup_stream(stage)
            return
        if stage in (None, "fit"):
            samplers.check_batch_size(self.batch_size, len(self.source("train")))
        self.source("val")

    def _setup_stream(self, stage: str | None) -> None:
        if self.config.num_classes is None:
            raise BadInput(
                f"data.name={self.config.name} needs data.num_classes: the number of classes is "
                "not stored in the shards"
            )
        self.num_classes = self.config.num_classes
        if stage in (None, "fit"):
            self.train_dataloader()  # reports missing shards
        self.val_dataloader()

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
        batches = samplers.TrainBatches(len(source), self.batch_size, self.seed)
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
    def output_shape(self) -> tuple[int, ...]:
        """Shape of a model's output per image: one logit per class; known after `setup`."""
        return (self.num_classes,)

    def eval_preprocessing(self) -> dict[str, Any]:
        """Return the evaluation preprocessing, as stored in checkpoints and manifests."""
        return {
            "size": list(self.shape),
            "crop_pct": self.crop_pct,
            "interpolation": self.interpolation,
            "mean": list(self.mean),
            "std": list(self.std),
        }
