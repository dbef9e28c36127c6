"""A DataLoader that raises one-line errors and can resume within an epoch."""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader

from zoo.data.dataset import Batch, Failure, ImageSet, as_is
from zoo.data.samplers import EvalBatches, TrainBatches
from zoo.errors import BadInput


def unwrapped(batches: Iterable[Batch | Failure]) -> Iterator[Batch]:
    """Yield the batches; raise `BadInput` if a worker process returned a `Failure`."""
    for batch in batches:
        if isinstance(batch, Failure):
            raise BadInput(batch.message)
        yield batch


@contextmanager
def quiet_about_workers() -> Iterator[None]:
    """Hide torch's warning that there are more loader processes than cores.

    They wait for the disk most of the time; `data.num_workers` has a limit of its own.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")
        yield


class ImageLoader(DataLoader):
    """Yields (images float32 B C H W, labels int64 B).

    `state_dict` returns the epoch and the number of batches returned so far; after
    `load_state_dict` the next iteration continues with the following batch.
    """

    def __init__(self, data: ImageSet, batches: TrainBatches | EvalBatches, workers: int) -> None:
        self.position = {"epoch": 0, "batch": 0}
        with quiet_about_workers():
            super().__init__(
                data,
                batch_sampler=batches,  # type: ignore[arg-type]  # any sized iterable works
                num_workers=workers,
                collate_fn=as_is,
                pin_memory=torch.cuda.is_available(),
                persistent_workers=workers > 0,
                # By default every epoch draws a number from the global generator.
                generator=torch.Generator(),
            )

    def set_epoch(self, epoch: int) -> None:
        """Select the epoch of the next iteration."""
        if isinstance(self.batch_sampler, TrainBatches):
            self.batch_sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        order = self.batch_sampler
        self.position = {
            "epoch": getattr(order, "epoch", 0),
            "batch": getattr(order, "start_batch", 0),
        }
        for batch in unwrapped(super().__iter__()):
            self.position["batch"] += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch and how many of its batches were returned."""
        return dict(self.position)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at `state` in the next iteration."""
        if isinstance(self.batch_sampler, TrainBatches):
            self.batch_sampler.set_epoch(state["epoch"])
            self.batch_sampler.start_batch = state["batch"]
