"""WebDataset shards through timm's reader: samples are read in sequence, not by index.

Order and augmentation are a function of (seed, epoch, rank, worker, position): a run is repeatable
only with the same number of processes. Resuming within an epoch reads the earlier samples again and
drops them.
"""

import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from zoo.data import remote
from zoo.data.dataset import Batch, Failure, Preparation, as_is, own_randomness, seed_sample
from zoo.data.folders import existing_root
from zoo.data.hugging_face import need_package
from zoo.data.loader import quiet_about_workers, unwrapped
from zoo.data.samplers import mix, rank_and_world
from zoo.errors import BadInput, first_line
from zoo.images import MODES, upright
from zoo.settings import DataConfig

# timm's reader drops samples that it cannot decode; this log is the only trace of them.
READER_LOG = "timm.data.readers.reader_wds"
MOST_SHARDS = 1_000_000
LARGEST_COUNT = 10_000_000_000  # samples of a split

log = logging.getLogger("zoo.data")


def open_reader(cfg: DataConfig, split: str, *, training: bool, batch_size: int, seed: int) -> Any:
    """Return timm's reader of the shards of a split.

    Args:
        cfg: A resolved configuration.
        split: `"train"`, `"val"`, a split of the folder's `_info.json`, or shards in braces with
            the number of samples, like `"part-{000..007}.tar|10000"`.
        training: Whether to shuffle and to fill every batch.
        batch_size: Images per process and step.
        seed: Determines the order of shards and samples.

    Raises:
        BadInput: The package `webdataset`, a shard or the number of samples is missing.
    """
    need_package("webdataset", cfg.name)
    from timm.data.readers.reader_factory import create_reader

    names = {"train": cfg.train_split_name, "val": cfg.val_split_name}
    name = str(names.get(split) or split)
    root = _root(cfg)
    _check_braces(name, split)
    try:
        reader: Any = create_reader(
            cfg.name,
            root=root,
            split=name,
            is_training=training,
            batch_size=batch_size,
            seed=seed,
            input_key=cfg.input_key,
            target_key=cfg.target_key,
            input_img_mode=MODES[cfg.in_chans],
        )
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError, MemoryError) as error:
        raise BadInput(
            f"{root} has no split {name!r}: list it in {os.path.join(root, '_info.json')}, or set "
            f'data.{split}_split_name="<shards>-{{000..007}}.tar|<number of samples>"'
        ) from error
    _check_shards(root, reader, name)
    return reader


def _root(cfg: DataConfig) -> str:
    """Return the folder of the shards, or their address on a server.

    Raises:
        BadInput: There is no such folder, or the server cannot be reached.
    """
    if not remote.is_url(cfg.root):
        return str(existing_root(cfg))
    root = str(cfg.root).rstrip("/")
    _read_urls()
    remote.check_file(f"{root}/_info.json", is_optional=True)
    return root


def _read_urls() -> None:
    """Let webdataset in this process read files of servers in our way, not with curl."""
    from webdataset.gopen import gopen_schemes

    gopen_schemes.update(http=remote.open_shard, https=remote.open_shard)


def _check_braces(name: str, split: str) -> None:
    """Raise `BadInput` for braces like `{0..99999999}`, whose list of shards fills the memory."""
    shards = 1
    for first, last in re.findall(r"\{(\d+)\.\.(\d+)", name):
        shards *= abs(int(last) - int(first)) + 1
    if shards > MOST_SHARDS:
        raise BadInput(
            f"data.{split}_split_name={name!r} names {shards:,} shards; give at most"
            f" {MOST_SHARDS:,}"
        )


def _check_shards(root: str, reader: Any, name: str) -> None:
    shards = list(reader.split_info.filenames)
    for shard in shards if not remote.is_url(root) else []:
        if not Path(root, shard).is_file():
            raise BadInput(
                f"shard {Path(root, shard)} of split {name!r} does not exist; "
                "correct data.root or the split"
            )
    for shard in dict.fromkeys((*shards[:1], *shards[-1:])) if remote.is_url(root) else ():
        remote.check_file(f"{root}/{shard}")  # asking for thousands would take minutes
    if reader.num_samples is not None and not 0 <= reader.num_samples <= LARGEST_COUNT:
        raise BadInput(
            f"the number of samples in split {name!r} is {reader.num_samples}; give the number of"
            " images in the shards"
        )
    if not reader.num_samples:
        raise BadInput(
            f"the number of samples in split {name!r} is unknown; append it after a bar, like "
            f"{name}|1000"
        )


class Stream(IterableDataset):
    """Whole batches from the shards that are assigned to this worker process.

    Attributes:
        reader: timm's reader of the current epoch; set by the loader before workers start.
        epoch: The current epoch.
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
            with _dropped_samples(skip=self.cfg.skip_corrupt):
                yield from self._batches(worker)
        except BadInput as error:
            yield Failure(str(error))

    def _batches(self, worker: int) -> Iterator[Batch]:
        if remote.is_url(self.cfg.root):
            _read_urls()
        samples = enumerate(self.reader)
        if self.seed is None:  # every rank reads all shards and keeps every world-th sample
            samples = islice(samples, self.rank, None, self.world)
        while True:
            images, labels = [], []
            for position, (image, label) in islice(samples, self.batch_size):
                images.append(self._prepare(image, worker, position))
                labels.append(self._valid_label(label))
            if not images:
                return
            yield torch.stack(images), torch.tensor(labels)

    def _prepare(self, image: Image.Image, worker: int, position: int) -> torch.Tensor:
        out = torch.empty(self.shape)
        image = upright(image)
        if self.seed is None:
            self.preparation.prepare_into(out, image)
            return out
        with own_randomness():
            seed_sample(self.seed, self.epoch, self.rank, worker, position)
            self.preparation.prepare_into(out, image)
        return out

    def _valid_label(self, label: int) -> int:
        if not 0 <= label < (self.cfg.num_classes or 0):
            raise BadInput(
                f"label {label} in {self.cfg.name} is outside 0 to "
                f"{(self.cfg.num_classes or 0) - 1}; correct it or "
                f"data.num_classes={self.cfg.num_classes}"
            )
        return label


class StreamLoader:
    """Yields (images float32 B C H W, labels int64 B); starts new workers every epoch."""

    def __init__(self, stream: Stream, split: str, workers: int) -> None:
        self.dataset = stream
        self.split = split
        self.workers = workers
        self.epoch = 0
        self.start_batch = 0
        self.position = {"epoch": 0, "batch": 0}
        self._reader = self._open(0)  # reports errors early

    def set_epoch(self, epoch: int) -> None:
        """Select the epoch of the next iteration."""
        if epoch != self.epoch:
            self.start_batch = 0
        self.epoch = epoch

    @property
    def reader(self) -> Any:
        """timm's reader of the first epoch, which knows the shards and the number of samples."""
        return self._reader

    def _open(self, epoch: int) -> Any:
        training = self.dataset.seed is not None
        reader = open_reader(
            self.dataset.cfg,
            self.split,
            training=training,
            batch_size=self.dataset.batch_size,
            seed=mix(self.dataset.seed or 0, epoch) % 2**31,
        )
        if not training:  # `Stream` divides the samples between the ranks
            reader.dist_rank, reader.dist_num_replicas = 0, 1
        reader.set_loader_cfg(num_workers=self.workers)
        shards, readers = len(reader.split_info.filenames), reader.global_num_workers
        if training and shards < readers:
            raise BadInput(
                f"{shards} training shards cannot feed {readers} loading processes; "
                "lower data.num_workers or write more shards"
            )
        return reader

    def __len__(self) -> int:
        """Number of training batches in an epoch.

        Raises:
            TypeError: For evaluation, where the number is only known after reading all shards.
        """
        if self.dataset.seed is None:
            raise TypeError(
                "the number of evaluation batches of a stream is unknown before it is read"
            )
        return len(self._reader) // self.dataset.batch_size

    def __iter__(self) -> Iterator[Batch]:
        self.position = {"epoch": self.epoch, "batch": self.start_batch}
        stream = self.dataset
        stream.reader, stream.epoch = self._open(self.epoch), self.epoch
        seed = mix(stream.seed or 0, self.epoch)
        with quiet_about_workers():
            batches = DataLoader(
                stream,
                batch_size=None,
                num_workers=self.workers,
                collate_fn=as_is,
                pin_memory=torch.cuda.is_available(),
                generator=torch.Generator().manual_seed(seed),  # seeds the reader's shuffling
            )
        for batch in islice(unwrapped(batches), self.start_batch, None):
            self.position["batch"] += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch and how many of its batches were returned."""
        return dict(self.position)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at `state` in the next iteration."""
        self.set_epoch(state["epoch"])
        self.start_batch = state["batch"]


@contextmanager
def _dropped_samples(*, skip: bool) -> Iterator[None]:
    """Turn the samples that timm's reader drops into warnings (`skip`) or an error."""
    dropped = 0

    def report(record: logging.LogRecord) -> bool:
        nonlocal dropped
        error = sys.exc_info()[1]
        if error is None:
            return True
        if isinstance(error, BadInput):  # a server that cannot be reached; webdataset adds words
            raise BadInput(str(error.args[0])) from error
        dropped += 1
        text = f"{_sample_name(error)} ({first_line(error)})"
        if not skip:
            raise BadInput(
                f"cannot read sample {text}; repair the shard, or set data.skip_corrupt=true to "
                "skip such samples"
            ) from error
        log.warning("skipped: sample %s", text)
        return False

    reader_log = logging.getLogger(READER_LOG)
    reader_log.addFilter(report)
    try:
        yield
    finally:
        reader_log.removeFilter(report)
        if dropped:
            log.warning("corrupt samples: skipped %d", dropped)


def _sample_name(error: BaseException) -> str:
    """Return the name of the sample that webdataset was decoding, from the frame of the error."""
    sample = error.__traceback__.tb_frame.f_locals.get("sample") if error.__traceback__ else None
    if isinstance(sample, dict) and "__key__" in sample:
        return f"{sample['__key__']!r} of {sample.get('__url__', 'a shard')}"
    return "of a shard"
