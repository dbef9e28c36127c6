"""Measure the latency of a model, or compare the latencies of two models.

A measurement warms up until the median latency is stable, and only then records times. A comparison
calls two models in turn (A B A B), so that a slower machine slows both, and reports a difference
only if the confidence interval of the ratio is outside a tolerance around 1.
"""

import contextlib
import gc
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from torch import nn

from zoo import runtimes
from zoo.display import Displayed, ms, shape
from zoo.environment import describe_machine, versions
from zoo.errors import BadInput, first_line
from zoo.profiling.energy import energy_per_call
from zoo.profiling.loading import load
from zoo.profiling.memory import MemoryMeter
from zoo.profiling.stats import Summary, paired_shift, summarize
from zoo.reports.claims import TOLERANCE, WIDE, is_wide, plus_minus, verdict

Clock = Callable[[], float]
Source = nn.Module | str | os.PathLike[str] | runtimes.Runtime

STEADY = 0.02  # the median is stable if those of two windows differ by less than this share
WINDOW = 8  # a window has at least this many calls
WINDOW_S = 0.05  # and lasts at least this many seconds
MAX_PAIRS = 1000  # the cost of the confidence interval grows with the square of the pairs
_BUSY = f"; the interval is wider than ±{100 * WIDE:g} %: the machine was busy, compare again"
SETTLE_S = 0.01  # the threads of a runtime keep spinning this long after a call


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


@dataclass(frozen=True, repr=False)
class Latency(Displayed):
    """The latency of one model with one set of settings. Times are for a whole batch.

    Attributes:
        p50_ms: The median latency in milliseconds.
        p90_ms: The 90th percentile; None for fewer than 64 calls.
        p99_ms: The 99th percentile; None for fewer than 662 calls.
        min_ms: The fastest call.
        low_ms: Lower end of the 95 % confidence interval of the median; None for fewer than 6
            calls.
        high_ms: Upper end of that interval.
        n: Number of measured calls.
        spread: Interquartile range divided by the median.
        first_call_ms: The first (cold) call, which is not part of the statistics above.
        load_ms: Time to load the model into the runtime.
        warmup_calls: Number of calls before the measurement.
        warmup_s: Total time of these calls in seconds.
        steady: Whether the median was stable at the end of the warm-up.
        peak_memory_bytes: How far memory rises during a call above its level before the first call.
            It includes buffers that the runtime keeps between calls, but not the weights. None if
            the system does not report it.
        energy_j: Joules per call; None on machines without energy counters.
        runtime: Name of the runtime.
        runtime_version: Version of the runtime.
        device: Device that the model ran on.
        threads: Number of threads of a call.
        input_size: B C H W of the input.
        dtype: Floating-point type of the computation.
        layout: Memory layout of the input, `"NCHW"` or `"NHWC"`.
        fused: Whether the model was re-parameterised; None if unknown.
        machine: Description of the machine.
        versions: Versions of Python and of the packages involved.
        date: Date and time in UTC.
    """

    p50_ms: float
    p90_ms: float | None
    p99_ms: float | None
    min_ms: float
    low_ms: float | None
    high_ms: float | None
    n: int
    spread: float
    first_call_ms: float
    load_ms: float
    warmup_calls: int
    warmup_s: float
    steady: bool
    peak_memory_bytes: int | None
    energy_j: float | None
    runtime: str
    runtime_version: str
    device: str
    threads: int
    input_size: tuple[int, ...]
    dtype: str
    layout: str
    fused: bool | None
    machine: dict[str, Any]
    versions: dict[str, str]
    date: str

    def to_dict(self) -> dict[str, Any]:
        """Return the record as a dictionary that JSON can encode."""
        return {**asdict(self), "input_size": list(self.input_size)}

    def __str__(self) -> str:
        state = {True: "fused", False: "unfused", None: "fused: unknown"}[self.fused]
        parts = [f"p50 {self.p50_ms:.3f} ms"]
        if self.low_ms is not None:
            parts[0] += f" [{self.low_ms:.3f}, {self.high_ms:.3f}]"
        parts += [
            f"{name} {value:.3f}"
            for name, value in (("p90", self.p90_ms), ("p99", self.p99_ms))
            if value is not None
        ]
        plural = "" if self.threads == 1 else "s"
        parts += [f"n={self.n}", self.runtime, f"{self.threads} thread{plural}"]
        parts += [f"batch {self.input_size[0]}", state, *self._doubts()]
        return ", ".join(parts)

    def _doubts(self) -> list[str]:
        doubts = [] if self.steady else ["median not stable"]
        if is_wide(self.p50_ms, self.low_ms, self.high_ms):
            interval = plus_minus(self.p50_ms, self.low_ms, self.high_ms)
            doubts.append(f"interval {interval}: the machine was busy")
        return doubts

    def rows(self) -> list[tuple[str, str]]:
        """Return the figures for display."""
        times = (("p90", self.p90_ms), ("p99", self.p99_ms), ("fastest", self.min_ms))
        interval = plus_minus(self.p50_ms, self.low_ms, self.high_ms)
        rows = [("median", f"{ms(self.p50_ms)} ms {interval}".strip())]
        rows += [(name, f"{ms(value)} ms") for name, value in times if value is not None]
        rows += [
            ("calls", str(self.n)),
            ("runtime", f"{self.runtime} {self.runtime_version}".strip()),
            ("threads", str(self.threads)),
            ("input", f"{shape(self.input_size)}, {self.dtype}, {self.layout}"),
            ("variant", {True: "fused", False: "unfused", None: "unknown"}[self.fused]),
            ("machine", str(self.machine.get("cpu", ""))),
        ]
        return rows + [("warning", doubt) for doubt in self._doubts()]


@dataclass(frozen=True, repr=False)
class Comparison(Displayed):
    """The latencies of two models that were called in turn.

    Attributes:
        ratio: Latency of B divided by that of A; below 1, B is faster.
        low: Lower end of its 95 % confidence interval; None for fewer than 6 pairs.
        high: Upper end of that interval.
        n: Number of pairs of calls.
        a: Latencies of A in ms.
        b: Latencies of B in ms.
        tolerance: Ratios within this distance of 1 count as no difference.
    """

    ratio: float
    low: float | None
    high: float | None
    n: int
    a: Summary
    b: Summary
    tolerance: float = TOLERANCE

    @property
    def verdict(self) -> str:
        """`"B is faster"`, `"B is slower"`, or `"no difference"` if noise may be the reason."""
        word = verdict(self.low, self.high, self.tolerance)
        return word if word == "no difference" else f"B is {word}"

    def __str__(self) -> str:
        interval = "" if self.low is None else f" [{self.low:.3f}, {self.high:.3f}]"
        return (
            f"{self.verdict}: B/A = {self.ratio:.3f}{interval}, A {self.a.p50:.3f} ms, "
            f"B {self.b.p50:.3f} ms, {self.n} pairs{self._doubt()}"
        )

    def _doubt(self) -> str:
        return _BUSY if is_wide(self.ratio, self.low, self.high) else ""

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as a dictionary that JSON can encode."""
        return {**asdict(self), "verdict": self.verdict}

    def rows(self) -> list[tuple[str, str]]:
        """Return the figures for display."""
        interval = plus_minus(self.ratio, self.low, self.high)
        return [
            ("verdict", self.verdict + self._doubt()),
            ("B / A", f"{self.ratio:.3f} {interval}".strip()),
            *(
                (f"{name}, median", f"{side.p50:.3f} ms")
                for name, side in (("A", self.a), ("B", self.b))
            ),
            ("pairs of calls", str(self.n)),
        ]


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


def measure(
    model: Source,
    input_size: Sequence[int] = (1, 3, 224, 224),
    runtime: str = "eager",
    *,
    fused: bool = False,
    threads: int | None = None,
    dtype: str | None = None,
    channels_last: bool = False,
    min_runs: int = MeasurementBudget.min_runs,
    min_time: float = MeasurementBudget.min_time,
    max_time: float = MeasurementBudget.max_time,
    clock: Clock = time.perf_counter,
) -> Latency:
    """Measure the latency of a model, an artefact or a loaded runtime.

    The mode and weights of the model and the number of threads of the process do not change.

    Args:
        model: A model, the path of an artefact, or a runtime from `zoo.runtimes.load`.
        input_size: B C H W of the random input.
        runtime: One of `zoo.runtimes.NAMES`.
        fused: Whether to measure a re-parameterised copy of the model.
        threads: Number of threads of a call; None uses PyTorch's setting.
        dtype: `"float32"`, `"bfloat16"` or `"float16"`; None keeps that of the model.
        channels_last: Whether to store images and weights in NHWC layout.
        min_runs: Minimum number of measured calls.
        min_time: Minimum duration of the measurement in seconds.
        max_time: Maximum duration in seconds, which overrides both minima. The warm-up may take
            half of it in addition.
        clock: Function that returns the current time in seconds.

    Raises:
        BadInput: An argument is invalid, or the model does not run on this input size.
        MissingExtra: A package of the runtime is not installed.
    """
    budget = MeasurementBudget(min_runs, min_time, max_time)
    budget.validate()
    batch = random_batch(input_size)
    if isinstance(model, nn.Module | str | os.PathLike):
        settings: dict[str, Any] = {
            "threads": threads,
            "dtype": dtype,
            "channels_last": channels_last,
        }
        loaded = load(model, runtime, input_size=batch.shape, fused=fused, **settings)
    else:
        loaded = _without_settings(model, fused, threads, dtype, channels_last)
    with _gc_paused(), loaded.process_settings():
        call, memory = loaded.bind(batch), MemoryMeter(loaded.device)
        warm = _warm_up_or_refuse(call, clock, budget.max_time / 2, batch.shape)
        times = time_calls(call, clock, budget)
        peak, energy = memory.peak(call), energy_per_call(call, loaded.device)
    return _record(loaded, batch.shape, warm, summarize(times), peak, energy)


def compare(
    a: Source,
    b: Source,
    input_size: Sequence[int] = (1, 3, 224, 224),
    runtime: str = "eager",
    *,
    threads: int | None = None,
    dtype: str | None = None,
    channels_last: bool = False,
    min_runs: int = MeasurementBudget.min_runs,
    min_time: float = MeasurementBudget.min_time,
    max_time: float = MeasurementBudget.max_time,
    clock: Clock = time.perf_counter,
) -> Comparison:
    """Compare the latencies of two models by calling them in turn (A B A B).

    `runtime`, `threads`, `dtype` and `channels_last` apply to models and artefacts, not to loaded
    runtimes. To compare two different runtimes, load them first.

    Args:
        a: A model, the path of an artefact, or a runtime from `zoo.runtimes.load`.
        b: What to compare with `a`, in any of these three forms.
        input_size: B C H W of the random input of both.
        runtime: One of `zoo.runtimes.NAMES`.
        threads: Number of threads of a call; None uses PyTorch's setting.
        dtype: `"float32"`, `"bfloat16"` or `"float16"`; None keeps that of the model.
        channels_last: Whether to store images and weights in NHWC layout.
        min_runs: Minimum number of pairs of calls; at most 1000 pairs are measured.
        min_time: Minimum duration of the measurement in seconds.
        max_time: Maximum duration in seconds, which overrides both minima.
        clock: Function that returns the current time in seconds.

    Raises:
        BadInput: An argument is invalid, or a model does not run on this input size.
        MissingExtra: A package of the runtime is not installed.
    """
    budget = MeasurementBudget(min_runs, min_time, max_time)
    budget.validate()
    batch = random_batch(input_size)
    settings: dict[str, Any] = {
        "threads": threads,
        "dtype": dtype,
        "channels_last": channels_last,
    }
    first, second = (
        load(side, runtime, input_size=batch.shape, **settings)
        if isinstance(side, nn.Module | str | os.PathLike)
        else _without_settings(side, False, threads, dtype, channels_last)
        for side in (a, b)
    )
    sides = []
    for loaded in (first, second):
        with loaded.process_settings():
            sides.append(loaded.bind(batch))
            _warm_up_or_refuse(sides[-1], clock, budget.max_time / 4, batch.shape)
    gap = SETTLE_S if first.name != second.name else 0.0
    with _gc_paused():
        held = (first.process_settings, second.process_settings)
        return compare_calls(sides[0], sides[1], clock, budget, around=held, gap=gap)


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


def random_batch(input_size: Sequence[int]) -> np.ndarray:
    """Return a batch of normally distributed values, always the same for an input size.

    Raises:
        BadInput: `input_size` is not B C H W, or B C D H W for volumes.
    """
    size = tuple(input_size)
    if len(size) not in (4, 5) or any(isinstance(n, bool) or int(n) != n or n < 1 for n in size):
        raise BadInput(f"input_size={size!r} must be positive integers B C H W (or B C D H W)")
    return np.random.default_rng(0).standard_normal(size, dtype=np.float32)


def _without_settings(
    loaded: runtimes.Runtime,
    fused: bool,
    threads: int | None,
    dtype: str | None,
    channels_last: bool,
) -> runtimes.Runtime:
    if not hasattr(loaded, "process_settings"):
        raise BadInput(
            f"model={type(loaded).__name__} cannot be measured; give a model, the path of an "
            "exported file, or a runtime from zoo.runtimes.load"
        )
    if fused or threads is not None or dtype is not None or channels_last:
        raise BadInput(
            f"fused, threads, dtype and channels_last cannot change in a loaded runtime "
            f"({loaded.name!r}); pass them to zoo.runtimes.load"
        )
    return loaded


def _warm_up_or_refuse(
    call: Callable[[], Any], clock: Clock, max_time: float, size: Sequence[int]
) -> WarmUp:
    try:
        return warm_up(call, clock, max_time)
    except Exception as error:  # a model may raise any exception on an unsuitable size
        raise BadInput(
            f"the model does not run on input_size={tuple(size)}: {first_line(error)}"
        ) from error


@contextlib.contextmanager
def _gc_paused() -> Iterator[None]:
    """Pause Python's garbage collector, which would disturb the measured times."""
    was = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _record(
    loaded: runtimes.Runtime,
    size: Sequence[int],
    warm: WarmUp,
    times: Summary,
    memory: int | None,
    energy: float | None,
) -> Latency:
    def in_ms(seconds: float | None) -> float | None:
        return None if seconds is None else seconds * 1e3

    return Latency(
        p50_ms=times.p50 * 1e3,
        p90_ms=in_ms(times.p90),
        p99_ms=in_ms(times.p99),
        min_ms=times.min * 1e3,
        low_ms=in_ms(times.low),
        high_ms=in_ms(times.high),
        n=times.n,
        spread=times.spread,
        first_call_ms=warm.first_s * 1e3,
        load_ms=loaded.load_s * 1e3,
        warmup_calls=warm.calls,
        warmup_s=warm.seconds,
        steady=warm.steady,
        peak_memory_bytes=memory,
        energy_j=energy,
        runtime=loaded.name,
        runtime_version=loaded.version,
        device=loaded.device,
        threads=loaded.threads,
        input_size=tuple(int(n) for n in size),
        dtype=loaded.dtype,
        layout=loaded.layout,
        fused=loaded.fused,
        machine=describe_machine(),
        versions=versions(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _compared(a: np.ndarray, b: np.ndarray) -> Comparison:
    tick = 1e-9  # a coarse clock may measure 0, which has no logarithm
    centre, interval = paired_shift(np.log(np.maximum(b, tick)) - np.log(np.maximum(a, tick)))
    low, high = (None, None) if interval is None else np.exp(interval).tolist()
    return Comparison(math.exp(centre), low, high, len(a), summarize(1e3 * a), summarize(1e3 * b))
