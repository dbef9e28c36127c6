"""Which images make up which batch, as a function of (seed, epoch) and the process's rank.

A batch is a list of keys `(epoch, index)`. The epoch travels with the index, so worker processes
that outlive an epoch still know which one they load for.
"""

import hashlib
import struct
from collections.abc import Iterator

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
    """Hash integers to 63 bits: near inputs give unrelated seeds, on every machine the same."""
    packed = struct.pack(f"<{len(numbers)}q", *numbers)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little") >> 1


class TrainBatches:
    """Shuffled batches of equal size; what does not fill one on every rank waits for other epochs.

    Step k of W ranks with batches of B sees the images that step k of one process with batches of
    W x B sees. `start_batch` makes the current epoch begin there, without loading what precedes;
    the next `set_epoch` to another epoch begins at 0 again. `len` is always that of a whole epoch.
    """

    def __init__(self, num_samples: int, batch_size: int, seed: int) -> None:
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self.start_batch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration gives."""
        if epoch != self.epoch:
            self.start_batch = 0
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_samples // (self.batch_size * rank_and_world()[1])

    def __iter__(self) -> Iterator[list[Key]]:
        rank, world = rank_and_world()
        generator = torch.Generator().manual_seed(mix(self.seed, self.epoch))
        order = torch.randperm(self.num_samples, generator=generator)
        for batch in range(self.start_batch, len(self)):
            start = (batch * world + rank) * self.batch_size
            chosen = order[start : start + self.batch_size].tolist()
            yield [(self.epoch, index) for index in chosen]


class EvalBatches:
    """Every image once, on exactly one rank, in order; ranks may differ by one image."""

    def __init__(self, num_samples: int, batch_size: int) -> None:
        self.num_samples = num_samples
        self.batch_size = batch_size

    def _mine(self) -> range:
        rank, world = rank_and_world()
        return range(rank, self.num_samples, world)

    def __len__(self) -> int:
        return -(-len(self._mine()) // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        mine = self._mine()
        for start in range(0, len(mine), self.batch_size):
            yield [(0, index) for index in mine[start : start + self.batch_size]]


def check_batch_size(batch_size: int, num_samples: int) -> None:
    """Raise `BadInput` unless `batch_size` images on every rank can be drawn."""
    world = rank_and_world()[1]
    if batch_size * world > num_samples:
        ranks = f" on each of {world} processes" if world > 1 else ""
        raise BadInput(
            f"batch_size={batch_size}{ranks} is more than the {num_samples} training images; "
            f"at most {num_samples // world} would do"
        )
