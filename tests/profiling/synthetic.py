"""A clock that only calls move, and a runtime on it."""

import contextlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np


class Clock:
    """Tells the time that calls have taken so far, in seconds."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def taking(self, durations: Iterable[float]) -> Callable[[], None]:
        """Return a call that takes one of `durations` after the other."""
        waiting = iter(durations)

        def call() -> None:
            self.now += next(waiting)

        return call


class Synthetic:
    """A runtime whose calls take the time they are told."""

    name = "synthetic"
    version = "1"
    threads = 3
    dtype = "float32"
    layout = "NCHW"
    device = "cpu"
    fused = None
    load_s = 0.25

    def __init__(self, clock: Clock, durations: Iterable[float]) -> None:
        self.call = clock.taking(durations)
        self.batches: list[tuple[int, ...]] = []

    def bind(self, batch: np.ndarray) -> Callable[[], None]:
        self.batches.append(batch.shape)
        return self.call

    def __call__(self, batch: np.ndarray) -> list[np.ndarray]:
        return [batch]

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        yield


def noisy(seconds: float, noise: float, seed: int) -> Iterator[float]:
    """Yield `seconds`, each time off by a normal error of the relative size `noise`."""
    generator = np.random.default_rng(seed)
    while True:
        yield seconds * abs(1 + noise * generator.standard_normal())
