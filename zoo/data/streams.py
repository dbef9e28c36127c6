"""WebDataset shards, by timm's reader: samples come in the order of the shards, not by number.

Order and augmentation are a function of (seed, epoch, rank, worker, position): a run repeats itself
with the same number of processes, not with another. Resuming inside an epoch reads what was already
seen again and drops it.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from zoo.data.dataset import Batch, Failure, Preparation, as_is, own_randomness, seed_sample
from zoo.data.folders import existing_root
from zoo.data.hub import need_extra
from zoo.data.images import MODES
from zoo.data.loader import unwrapped
from zoo.data.samplers import mix, rank_and_world
from zoo.errors import BadInput
from zoo.settings import DataConfig

# timm's reader drops what it cannot decode and says so here, and nowhere else.
READER_LOG = "timm.data.readers.reader_wds"
log = logging.getLogger("zoo.data")


def open_reader(cfg: DataConfig, split: str, *, training: bool, batch_size: int, seed: int) -> Any:
    """Return timm's reader of the shards of a split.

    Args:
        cfg: A resolved configuration.
        split: `"train"`, `"val"`, a split of the folder's `_info.json`, or shards in braces with
            the number of samples, like `"part-{000..007}.tar|10000"`.
        training: Shuffle, and fill every batch.
        batch_size: Images a process takes at each step.
        seed: Of the shuffling.

    Raises:
        BadInput: The extra is not installed, or shards or their number of samples are not known.
    """
    need_extra("webdataset", cfg.name)
    from timm.data.readers.reader_factory import create_reader

    names = {"train": cfg.train_split_name, "val": cfg.val_split_name}
    name = str(names.get(split) or split)
    root = existing_root(cfg)
    try:
        reader: Any = create_reader(
            cfg.name,
            root=str(root),
            split=name,
            is_training=training,
            batch_size=batch_size,
            seed=seed,
            input_key=cfg.input_key,
            target_key=cfg.target_key,
            input_img_mode=MODES[cfg.in_chans],
        )
    except (RuntimeError, KeyError, ValueError) as error:
        raise BadInput(
            f"{root} has no split {name!r}: it needs an _info.json that names the split, or "
            f'data.{split}_split_name="<shards>-{{000..007}}.tar|<number of samples>"'
        ) from error
    _check_shards(root, reader, name)
    return reader


def _check_shards(root: Path, reader: Any, name: str) -> None:
    for shard in reader.split_info.filenames:
        if not (root / shard).is_file():
            raise BadInput(f"shard {root / shard} of split {name!r} is not there")
    if not reader.num_samples:
        raise BadInput(
            f"split {name!r} does not say how many samples it has; write that behind a bar, "
            f"like {name}|1000"
        )


class Stream(IterableDataset):
    """Whole batches from the shards that fall to this worker process.

    Attributes:
        reader: timm's, new for every epoch; set by the loader before workers start.
        epoch: Which epoch it is.
    """

    def __init__(
        self,
        cfg: DataConfig,
        preparation: Preparation,
        shape: tuple[int, ...],
        batch_size: int,
        seed: int | None,
    ) -> None:
        self.cfg = cfg
        self.preparation = preparation
        self.shape = shape
        self.batch_size = batch_size
        self.seed = seed
        self.rank, self.world = rank_and_world()
        self.reader: Any = None
        self.epoch = 0

    def __iter__(self) -> Iterator[Batch | Failure]:
        info = get_worker_info()
        worker = info.id if info else 0
        try:
            with _speaking(skip=self.cfg.skip_corrupt):
                yield from self._batches(worker)
        except BadInput as error:
            yield Failure(str(error))

    def _batches(self, worker: int) -> Iterator[Batch]:
        samples = enumerate(self.reader)
        if self.seed is None:  # every rank reads all shards and keeps its share of the samples
            samples = islice(samples, self.rank, None, self.world)
        while True:
            images, labels = [], []
            for position, (image, label) in islice(samples, self.batch_size):
                images.append(self._prepared(image, worker, position))
                labels.append(self._checked(label))
            if not images:
                return
            yield torch.stack(images), torch.tensor(labels)

    def _prepared(self, image: Image.Image, worker: int, position: int) -> torch.Tensor:
        out = torch.empty(self.shape)
        if self.seed is None:
            self.preparation.into(out, image)
            return out
        with own_randomness():
            seed_sample(self.seed, self.epoch, self.rank, worker, position)
            self.preparation.into(out, image)
        return out

    def _checked(self, label: int) -> int:
        if not 0 <= label < (self.cfg.num_classes or 0):
            raise BadInput(
                f"label {label} in {self.cfg.name}: data.num_classes={self.cfg.num_classes} allows "
                f"0 to {(self.cfg.num_classes or 0) - 1}"
            )
        return label


class StreamLoader:
    """Gives (images float32 B C H W, labels int64 B) of a stream, with workers new every epoch."""

    def __init__(self, stream: Stream, split: str, workers: int) -> None:
        self.dataset = stream
        self.split = split
        self.workers = workers
        self.epoch = 0
        self.start_batch = 0
        self.position = {"epoch": 0, "batch": 0}
        self._reader = self._open(0)  # mistakes show now

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration gives."""
        if epoch != self.epoch:
            self.start_batch = 0
        self.epoch = epoch

    def _open(self, epoch: int) -> Any:
        training = self.dataset.seed is not None
        reader = open_reader(
            self.dataset.cfg,
            self.split,
            training=training,
            batch_size=self.dataset.batch_size,
            seed=mix(self.dataset.seed or 0, epoch) % 2**31,
        )
        if not training:  # `Stream` shares the samples out itself, exactly
            reader.dist_rank, reader.dist_num_replicas = 0, 1
        reader.set_loader_cfg(num_workers=self.workers)
        shards, readers = len(reader.split_info.filenames), reader.global_num_workers
        if training and shards < readers:
            raise BadInput(
                f"{shards} training shards cannot feed {readers} loading processes; "
                "lower data.num_workers or make more shards"
            )
        return reader

    def __len__(self) -> int:
        """Training batches of an epoch; TypeError for evaluation, where only reading tells."""
        if self.dataset.seed is None:
            raise TypeError("the number of evaluation batches of a stream is not known beforehand")
        return len(self._reader) // self.dataset.batch_size

    def __iter__(self) -> Iterator[Batch]:
        self.position = {"epoch": self.epoch, "batch": self.start_batch}
        stream = self.dataset
        stream.reader, stream.epoch = self._open(self.epoch), self.epoch
        seed = mix(stream.seed or 0, self.epoch)
        batches = DataLoader(
            stream,
            batch_size=None,
            num_workers=self.workers,
            collate_fn=as_is,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(seed),  # the reader shuffles by it
        )
        for batch in islice(unwrapped(batches), self.start_batch, None):
            self.position["batch"] += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch and how many of its batches were handed out."""
        return dict(self.position)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the next iteration continue where `state` was taken."""
        self.set_epoch(state["epoch"])
        self.start_batch = state["batch"]


@contextmanager
def _speaking(*, skip: bool) -> Iterator[None]:
    """While it is open, a sample that timm's reader drops is named, or ends the stream."""
    lost = 0

    def heard(record: logging.LogRecord) -> bool:
        nonlocal lost
        error = sys.exc_info()[1]
        if error is None:
            return True
        lost += 1
        text = f"{_place(error)} ({' '.join(str(error).split()) or type(error).__name__})"
        if not skip:
            raise BadInput(
                f"cannot read sample {text}; repair the shard, or set data.skip_corrupt=true to "
                "leave such samples out"
            ) from error
        log.warning("left out: sample %s", text)
        return False

    reader_log = logging.getLogger(READER_LOG)
    reader_log.addFilter(heard)
    try:
        yield
    finally:
        reader_log.removeFilter(heard)
        if lost:
            log.warning("%d samples are corrupt and left out", lost)


def _place(error: BaseException) -> str:
    """Name the sample that webdataset was at: it stands in the frame that caught the error."""
    sample = error.__traceback__.tb_frame.f_locals.get("sample") if error.__traceback__ else None
    if isinstance(sample, dict) and "__key__" in sample:
        return f"{sample['__key__']!r} of {sample.get('__url__', 'a shard')}"
    return "of a shard"
