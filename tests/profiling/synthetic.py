"""A simulated clock, a runtime that runs on it, and an invented record."""

import contextlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np


class Clock:
    """A clock that only advances when its calls run."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def taking(self, durations: Iterable[float]) -> Callable[[], None]:
        """Return a function whose calls take the seconds of `durations`, one after the other."""
        remaining = iter(durations)

        def call() -> None:
            self.now += next(remaining)

        return call


class Synthetic:
    """A runtime whose calls take the given durations."""

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
    def process_settings(self) -> Iterator[None]:
        yield


def noisy(seconds: float, noise: float, seed: int) -> Iterator[float]:
    """Yield `seconds` with normally distributed errors of relative size `noise`."""
    generator = np.random.default_rng(seed)
    while True:
        yield seconds * abs(1 + noise * generator.standard_normal())


def record(**changes):
    """Return a record as `benchmark.py` writes it, with `changes` applied.

    Times that are not given are scaled with `p50_ms`.
    """
    times = {"p50_ms": 12.346, "low_ms": 12.1, "high_ms": 12.6}
    times |= {"p90_ms": 13.0, "p99_ms": 15.0, "min_ms": 11.9}
    p50 = changes.get("p50_ms")
    if isinstance(p50, float | int) and p50 > 0:
        times = {key: value * p50 / 12.346 for key, value in times.items()}
    return {
        "model": "net",
        "args": {},
        "params": 12_289_928,
        "macs": 1_304_000_000,
        "flops": 2_700_000_000,
        "activations": 5530,
        "count_error": None,
        **times,
        "n": 1000,
        "steady": True,
        "input_size": [1, 3, 224, 224],
        "runtime": "eager",
        "runtime_version": "2.15.0",
        "threads": 2,
        "dtype": "float32",
        "layout": "NCHW",
        "fused": False,
        "first_call_ms": 40.0,
        "load_ms": 0.5,
        "device": "cpu",
        "asked": {"threads": 2, "min_runs": 50},
        "machine": {"cpu": "A, B", "cores": 2},
        "versions": {"zoo": "0.1.0", "torch": "2.15.0"},
        "date": "2026-01-02T03:04:05+00:00",
        "command": "python benchmark.py model=net",
        **changes,
    }
