"""Time one function, or two in turn: warm up, then record the durations of single calls.

A warm-up ends when the median latency is stable. A comparison calls two functions in turn (A B A
B), so that a slower machine slows both.
"""

import contextlib
import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from zoo.errors import BadInput
from zoo.profiling.results import Comparison
from zoo.profiling.stats import paired_shift, summarize

Clock = Callable[[], float]

STEADY = 0.02  # the median is stable if those of two windows differ by less than this share
WINDOW = 8  # a window has at least this many calls
WINDOW_S = 0.05  # and lasts at least this many seconds
MAX_PAIRS = 1000  # the cost of the confidence interval grows with the square of the pairs


@dataclass(frozen=True)
class WarmUp:
    """The calls before the measurement.

    Attributes:
        first_s: Seconds of the very first (cold) call.
        calls: Number of calls, including the first.
        seconds: Total time of these calls.
        steady: Whether the median became stable before time ran out.
    """

    first_s: float
    calls: int
    seconds: float
    steady: bool


@dataclass(frozen=True)
class MeasurementBudget:
    """How long to measure: until both minima are reached, but no longer than `max_time`.

    Attributes:
        min_runs: Minimum number of measured calls.
        min_time: Minimum duration in seconds.
        max_time: Seconds after which no further call starts. The warm-up may take half of this in
            addition.
    """

    min_runs: int = 50
    min_time: float = 1.0
    max_time: float = 15.0

    def validate(self) -> None:
        """Raise `BadInput` if a value is invalid or the three contradict each other."""
        if not isinstance(self.min_runs, int) or self.min_runs < 1:
            raise BadInput(f"min_runs={self.min_runs!r} is not a positive integer")
        if not (0 <= self.min_time <= self.max_time and 0 < self.max_time < math.inf):
            raise BadInput(
                f"min_time={self.min_time!r} and max_time={self.max_time!r} must be seconds with "
                "0 <= min_time <= max_time and 0 < max_time"
            )

    def is_spent(self, runs: int, seconds: float) -> bool:
        """Return whether a measurement may stop after `runs` calls in `seconds`."""
        enough = runs >= self.min_runs and seconds >= self.min_time
        return enough or seconds >= self.max_time


def warm_up(call: Callable[[], Any], clock: Clock, max_time: float) -> WarmUp:
    """Call until the medians of two windows agree, for at most about `max_time` seconds."""
    start = clock()
    call()
    first = clock() - start
    calls, before = 1, math.inf
    while True:
        window: list[float] = []
        opened = clock()
        while len(window) < WINDOW or clock() - opened < WINDOW_S:
            begin = clock()
            call()
            end = clock()
            window.append(end - begin)
            if end - start >= max_time:
                return WarmUp(first, calls + len(window), end - start, steady=False)
        calls += len(window)
        median = float(np.median(window))
        if abs(median - before) <= STEADY * median:
            return WarmUp(first, calls, clock() - start, steady=True)
        before = median


def time_calls(call: Callable[[], Any], clock: Clock, budget: MeasurementBudget) -> np.ndarray:
    """Call until the budget is spent; return the seconds of each call."""
    times: list[float] = []
    start = clock()
    while True:
        begin = clock()
        call()
        end = clock()
        times.append(end - begin)
        if budget.is_spent(len(times), end - start):
            return np.asarray(times)


def compare_calls(
    a: Callable[[], Any],
    b: Callable[[], Any],
    clock: Clock,
    budget: MeasurementBudget,
    *,
    around: Sequence[Callable[[], contextlib.AbstractContextManager[None]]] = (),
    gap: float = 0.0,
) -> Comparison:
    """Call `a` and `b` in turn and compare their durations.

    Args:
        a: The first call of each pair.
        b: The second call of each pair.
        clock: Function that returns the current time in seconds.
        budget: How many pairs to measure, and for how long.
        around: One context manager function per side, entered around each of its calls.
        gap: Seconds to wait before each call.
    """
    sides = list(zip((a, b), around or (contextlib.nullcontext,) * 2, strict=True))
    times: tuple[list[float], list[float]] = ([], [])
    start = clock()
    while True:
        for kept, (call, held) in zip(times, sides, strict=True):
            with held():
                if gap:
                    time.sleep(gap)
                begin = clock()
                call()
                end = clock()
            kept.append(end - begin)
        pairs = len(times[0])
        if pairs == MAX_PAIRS or budget.is_spent(pairs, clock() - start):
            break
    return _compared(np.asarray(times[0]), np.asarray(times[1]))


def _compared(a: np.ndarray, b: np.ndarray) -> Comparison:
    tick = 1e-9  # a coarse clock may measure 0, which has no logarithm
    centre, interval = paired_shift(np.log(np.maximum(b, tick)) - np.log(np.maximum(a, tick)))
    low, high = (None, None) if interval is None else np.exp(interval).tolist()
    return Comparison(math.exp(centre), low, high, len(a), summarize(1e3 * a), summarize(1e3 * b))


@contextlib.contextmanager
def garbage_collector_paused() -> Iterator[None]:
    """Pause Python's garbage collector, which would disturb the measured times.

    Nothing is collected before: with PyTorch's programs in memory that takes half a second.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
