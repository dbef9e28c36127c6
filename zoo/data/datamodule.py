"""`ImageData`: the loaders of a data set for classification, and the base of the other tasks."""

from typing import Any, ClassVar

from zoo.data import catalogue, folders, hub, presets, samplers, transforms
from zoo.data.dataset import ImageSet
from zoo.data.loader import ImageLoader
from zoo.data.streams import Stream, StreamLoader
from zoo.errors import BadInput


class ImageData:
    """Loaders of one data set, whose images have a class each.

    Attributes:
        task: What the images are for, in the words of the registry.
        config: The configuration with every default filled in.
        image_size: (height, width) in pixels.
        in_chans: 1 or 3.
        num_classes: How many classes the data has; known after `setup`.
        class_names: Their names in order, or None; known after `setup`.
    """

    task: ClassVar[str] = "classification"

    def __init__(self, config: Any, batch_size: int, eval_batch_size: int, seed: int) -> None:
        self.config = config
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        self.image_size: tuple[int, int] = presets.size_of(config.image_size)
        self.in_chans: int = config.in_chans
        self.mean: list[float] = config.mean
        self.std: list[float] = config.std
        self.interpolation: str = config.interpolation
        self.crop_pct: float = config.crop_pct
        self.num_classes: int = 0
        self.class_names: list[str] | None = None
        self.streaming: bool = presets.family(config.name) == "wds"
        self._sources: dict[str, Any] = {}
        # Made here, so that a bad setting shows before data is read.
        self._train, self._eval = self._preparations()

    def _preparations(self) -> tuple[Any, Any]:
        """Return what is done with images in training and in evaluation."""
        return transforms.train_preparation(self.config), transforms.eval_preparation(self.config)

    def _open(self, split: str) -> Any:
        """Open a split, checked against those that are open."""
        opened = catalogue.open_split(self.config, split)
        if self._sources:
            known = next(iter(self._sources.items()))
            catalogue.check_same_classes(known, (split, opened))
        self.class_names = folders.readable_names(opened.class_names)
        return opened

    def _images(self, source: Any, preparation: Any, seed: int | None) -> ImageSet:
        """Return what gives the batches of `source`; `seed` is None where nothing is random."""
        return ImageSet(source, preparation, self.shape, seed)

    def prepare_data(self) -> None:
        """Download what may be downloaded; Lightning calls this in one process of a machine."""
        if self.config.name.startswith("cifar"):
            hub.fetch_cifar(self.config)

    def setup(self, stage: str | None = None) -> None:
        """Open what `stage` needs: train and val for `"fit"` and None, else only val.

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
            raise BadInput(f"data.name={self.config.name} needs data.num_classes")
        self.num_classes = self.config.num_classes
        if stage in (None, "fit"):
            self.train_dataloader()  # shards that are not there show now
        self.val_dataloader()

    def source(self, split: str) -> Any:
        """Return the images of a split, opened once.

        Args:
            split: `"train"`, `"val"`, or what the data itself calls one of its splits.

        Raises:
            BadInput: There is no such split, or its classes differ from those of another.
        """
        if split not in self._sources:
            opened = self._open(split)
            self._sources[split] = opened
            self.num_classes = max(self.num_classes, opened.num_classes)
        return self._sources[split]

    def train_dataloader(self) -> ImageLoader | StreamLoader:
        """Return shuffled, augmented batches; what does not fill one is left for other epochs."""
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
        """Return a split without augmentation, in order, each image on exactly one rank.

        Args:
            split: `"train"`, `"val"`, or what the data itself calls one of its splits.
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
        """Shape of what a model must make of an image: one logit a class; known after `setup`."""
        return (self.num_classes,)

    def eval_preprocessing(self) -> dict[str, Any]:
        """Return what turns a picture into the model's input, in words that a manifest can keep."""
        return {
            "size": list(self.shape),
            "crop_pct": self.crop_pct,
            "interpolation": self.interpolation,
            "mean": list(self.mean),
            "std": list(self.std),
        }
