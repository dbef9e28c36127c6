"""The images of each batch, as a function of (seed, epoch) and the process's rank.

A batch is a list of keys `(epoch, index)`: the key tells persistent worker processes the epoch.
"""

import hashlib
import struct
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist

from zoo.errors import BadInput

Key = tuple[int, int]


def rank_and_world() -> tuple[int, int]:
    """Return this process's rank and the number of processes (0, 1 outside a distributed run)."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def mix(*numbers: int) -> int:
    """Hash integers to a 63-bit seed that is the same on every machine."""
    packed = struct.pack(f"<{len(numbers)}q", *numbers)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little") >> 1


class TrainBatches:
    """Shuffled batches of equal size; images that do not fill a batch on every rank are left out.

    Step k of W ranks with batches of B uses the same images as step k of one process with batches
    of W x B. The epoch starts at `start_batch`, without loading earlier batches; `set_epoch` with
    another epoch resets it to 0. `len` always counts the batches of a whole epoch.
    """

    def __init__(self, num_samples: int, batch_size: int, seed: int) -> None:
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self.start_batch = 0
        self._drawn: tuple[int, torch.Tensor] | None = None  # order of the images of an epoch

    def set_epoch(self, epoch: int) -> None:
        """Select the epoch of the next iteration."""
        if epoch != self.epoch:
            self.start_batch = 0
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_samples // (self.batch_size * rank_and_world()[1])

    def __iter__(self) -> Iterator[list[Key]]:
        epoch = self.epoch
        for batch in range(self.start_batch, len(self)):
            yield self.keys(epoch, batch)

    def keys(self, epoch: int, batch: int) -> list[Key]:
        """Return the keys of one batch of an epoch on this rank."""
        rank, world = rank_and_world()
        if self._drawn is None or self._drawn[0] != epoch:
            generator = torch.Generator().manual_seed(mix(self.seed, epoch))
            self._drawn = epoch, self._order(generator)
        start = (batch * world + rank) * self.batch_size
        chosen = self._drawn[1][start : start + self.batch_size].tolist()
        return [(epoch, index) for index in chosen]

    def _order(self, generator: torch.Generator) -> torch.Tensor:
        """Return the indices of the images of an epoch in order."""
        return torch.randperm(self.num_samples, generator=generator)


class BalancedBatches(TrainBatches):
    """Batches in which every class is as likely as the others; images may repeat in an epoch.

    Args:
        labels: The class of each image.
        batch_size: Images per process.
        seed: Determines the order, together with the epoch.
    """

    def __init__(self, labels: Sequence[int], batch_size: int, seed: int) -> None:
        super().__init__(len(labels), batch_size, seed)
        numbers = torch.as_tensor([int(label) for label in labels])
        # float64 on the CPU: the same images on every machine.
        self._shares = 1 / numbers.bincount()[numbers].double()

    def _order(self, generator: torch.Generator) -> torch.Tensor:
        return torch.multinomial(
            self._shares, self.num_samples, replacement=True, generator=generator
        )


class OrderedBatches(TrainBatches):
    """Every training image of an epoch once, in order; the last batch may be smaller."""

    def __len__(self) -> int:
        return -(-self.num_samples // self.batch_size)

    def _order(self, generator: torch.Generator) -> torch.Tensor:
        return torch.arange(self.num_samples)


class EvalBatches:
    """Every image once, in order, on exactly one rank; ranks may differ by one image."""

    def __init__(self, num_samples: int, batch_size: int) -> None:
        self.num_samples = num_samples
        self.batch_size = batch_size

    def _indices(self) -> range:
        rank, world = rank_and_world()
        return range(rank, self.num_samples, world)

    def __len__(self) -> int:
        return -(-len(self._indices()) // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        indices = self._indices()
        for start in range(0, len(indices), self.batch_size):
            yield [(0, index) for index in indices[start : start + self.batch_size]]


def check_batch_size(batch_size: int, num_samples: int) -> None:
    """Raise `BadInput` if the images do not fill one batch on every rank."""
    world = rank_and_world()[1]
    if batch_size * world > num_samples:
        ranks = f" on each of {world} processes" if world > 1 else ""
        raise BadInput(
            f"batch_size={batch_size}{ranks} exceeds the {num_samples} training images; "
            f"give at most {num_samples // world}"
        )
