"""How long a call takes: distributions that can be repeated, comparisons that know their noise.

A measurement calls the model until the median stops moving and only then keeps times. A comparison
calls two models in turn (A B A B), so that whatever slows the machine slows both, and claims a
difference only where the interval of their ratio leaves the band in which nothing can be said.
"""

import contextlib
import gc
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from zoo import runtimes
from zoo.deploy import files
from zoo.deploy.pipeline import convert
from zoo.environment import describe_machine, versions
from zoo.errors import BadInput, first_line
from zoo.profiling.energy import energy_of
from zoo.profiling.memory import Growth
from zoo.profiling.stats import Summary, shift, summarize
from zoo.reparam import reparameterize
from zoo.runtimes.pytorch import in_eval_mode

Clock = Callable[[], float]
Source = nn.Module | str | os.PathLike[str] | runtimes.Runtime

STEADY = 0.02  # the median has stopped moving when two windows differ by less than this
WINDOW = 8  # calls of a window at least, and as many as fit into
WINDOW_S = 0.05  # this many seconds
SAME = 0.01  # where a model lies in memory alone moves its latency by up to this
MAX_PAIRS = 1000  # of a comparison: its interval looks at every pair of pairs
SETTLE_S = 0.01  # threads of one runtime spin on this long and would slow the other


@dataclass(frozen=True)
class WarmUp:
    """What happened before times were kept.

    Attributes:
        first_s: Seconds of the very first (cold) call.
        calls: Calls, the first one included.
        seconds: Time they took together.
        steady: Whether the median had stopped moving; False where time ran out before.
    """

    first_s: float
    calls: int
    seconds: float
    steady: bool


@dataclass(frozen=True)
class Latency:
    """The latency of one model under one setting. Times are in milliseconds for a whole batch.

    Attributes:
        p50_ms: The median; `p90_ms` and `p99_ms` likewise, `min_ms` the fastest call.
        low_ms: Lower end of the 95 % confidence interval of the median; None below 6 calls.
        high_ms: Upper end of that interval.
        n: Calls that were kept.
        spread: Interquartile range divided by the median.
        first_call_ms: The cold call, which is in none of the above.
        load_ms: Time to load the model into the runtime, where it does that.
        warmup_calls: Calls before times were kept.
        warmup_s: Seconds they took.
        steady: Whether the median had stopped moving by then.
        peak_memory_bytes: How far a call takes memory above what it was before the first; what the
            runtime keeps from call to call is in it, the weights are not. None where nothing tells.
        energy_j: Joules of one call, by the machine's counters; None where it has none.
        runtime: What executed, with `runtime_version`, on `device`.
        threads: Threads that shared a call.
        input_size: B C H W of the input, which has `dtype` and lies in memory as `layout`.
        fused: Whether the model was re-parameterised; None where nothing tells.
        machine: What it ran on.
        versions: What it ran with.
        date: When, in UTC.
    """

    p50_ms: float
    p90_ms: float
    p99_ms: float
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
        """Return the record as plain values, ready for JSON."""
        return {**asdict(self), "input_size": list(self.input_size)}

    def __str__(self) -> str:
        state = {True: "fused", False: "unfused", None: "fused or not: unknown"}[self.fused]
        interval = "" if self.low_ms is None else f" [{self.low_ms:.3f}, {self.high_ms:.3f}]"
        steady = "" if self.steady else ", the median was still moving"
        return (
            f"p50 {self.p50_ms:.3f} ms{interval}, p90 {self.p90_ms:.3f}, p99 {self.p99_ms:.3f}, "
            f"n={self.n}, {self.runtime}, {self.threads} threads, batch {self.input_size[0]}, "
            f"{state}{steady}"
        )


@dataclass(frozen=True)
class Comparison:
    """How long B takes beside A, called in turn.

    Attributes:
        ratio: Time of B divided by time of A: below 1, B is faster.
        low: Lower end of its 95 % confidence interval; None below 6 pairs.
        high: Upper end of that interval.
        n: Pairs of calls.
        a: Times of A in seconds.
        b: Times of B in seconds.
        same: Half-width of the band around 1 in which no difference is claimed.
    """

    ratio: float
    low: float | None
    high: float | None
    n: int
    a: Summary
    b: Summary
    same: float = SAME

    @property
    def verdict(self) -> str:
        """`"B is faster"`, `"B is slower"`, or `"no difference"` where the noise explains it."""
        if self.low is None or self.high is None:
            return "no difference"
        if self.high < 1 - self.same:
            return "B is faster"
        return "B is slower" if self.low > 1 + self.same else "no difference"

    def __str__(self) -> str:
        interval = "" if self.low is None else f" [{self.low:.3f}, {self.high:.3f}]"
        return (
            f"{self.verdict}: B/A = {self.ratio:.3f}{interval}, A {self.a.p50 * 1e3:.3f} ms, "
            f"B {self.b.p50 * 1e3:.3f} ms, {self.n} pairs"
        )


@dataclass(frozen=True)
class Effort:
    """How long to measure: until both minima are reached, at the latest after `max_time`.

    Attributes:
        min_runs: Calls to keep.
        min_time: Seconds to measure.
        max_time: Seconds after which no further call is started; warming up gets half as long.
    """

    min_runs: int = 50
    min_time: float = 1.0
    max_time: float = 15.0

    def check(self) -> None:
        """Raise `BadInput` unless the three can hold together."""
        if not isinstance(self.min_runs, int) or self.min_runs < 1:
            raise BadInput(f"min_runs={self.min_runs!r} must be a whole number of at least 1")
        if not (0 <= self.min_time <= self.max_time and 0 < self.max_time < math.inf):
            raise BadInput(
                f"min_time={self.min_time!r}, max_time={self.max_time!r}: "
                "seconds are wanted, and min_time must not exceed max_time"
            )

    def done(self, runs: int, seconds: float) -> bool:
        """Say whether `runs` calls in `seconds` are enough."""
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
    min_runs: int = Effort.min_runs,
    min_time: float = Effort.min_time,
    max_time: float = Effort.max_time,
    clock: Clock = time.perf_counter,
) -> Latency:
    """Measure the latency of a model, an artefact or a loaded runtime.

    The model is left as it was: its mode, its weights, and the process's number of threads.

    Args:
        model: A model, the path of an artefact, or what `zoo.runtimes.load` returned.
        input_size: B C H W of the input, which is random.
        runtime: One of `zoo.runtimes.NAMES`.
        fused: Re-parameterise the model (a copy of it) first.
        threads: Threads that share one call; None: as many as PyTorch uses.
        dtype: `"float32"`, `"bfloat16"` or `"float16"`; None: the model's own.
        channels_last: Whether images and weights lie as NHWC in memory.
        min_runs: Calls to keep at least.
        min_time: Seconds to measure at least.
        max_time: Seconds to measure at most; this bound wins. Warming up takes at most half of it.
        clock: What tells the time, in seconds.

    Raises:
        BadInput: A value that cannot work, or an input size that the model does not take.
        MissingExtra: A package of the runtime is not installed.
    """
    effort = Effort(min_runs, min_time, max_time)
    effort.check()
    batch = random_batch(input_size)
    if isinstance(model, nn.Module | str | os.PathLike):
        settings: dict[str, Any] = {
            "threads": threads,
            "dtype": dtype,
            "channels_last": channels_last,
        }
        loaded = load(model, runtime, input_size=batch.shape, fused=fused, **settings)
    else:
        loaded = _already(model, fused, threads, dtype, channels_last)
    with _quiet(), loaded.process_settings():
        call, growth = loaded.bind(batch), Growth(loaded.device)
        warm = _first_calls(call, clock, effort.max_time / 2, batch.shape)
        times = time_calls(call, clock, effort)
        beside = growth.peak(call), energy_of(call, loaded.device)
    return _record(loaded, batch.shape, warm, summarize(times), *beside)


def compare(
    a: Source,
    b: Source,
    input_size: Sequence[int] = (1, 3, 224, 224),
    runtime: str = "eager",
    *,
    threads: int | None = None,
    dtype: str | None = None,
    channels_last: bool = False,
    min_runs: int = Effort.min_runs,
    min_time: float = Effort.min_time,
    max_time: float = Effort.max_time,
    clock: Clock = time.perf_counter,
) -> Comparison:
    """Compare two models by calling them in turn, A B A B.

    Args:
        a: A model, the path of an artefact, or what `zoo.runtimes.load` returned.
        b: Another one; the two may be in different runtimes if they come loaded.
        input_size: B C H W of the input of both.
        runtime: The runtime of what is not loaded yet; `threads`, `dtype` and `channels_last` are
            for these, too.
        min_runs: Pairs of calls at least (at most 1000 are made).
        min_time: Seconds to measure at least.
        max_time: Seconds to measure at most.
        clock: What tells the time, in seconds.

    Raises:
        BadInput: A value that cannot work, or an input size that a model does not take.
    """
    effort = Effort(min_runs, min_time, max_time)
    effort.check()
    batch = random_batch(input_size)
    settings: dict[str, Any] = {
        "threads": threads,
        "dtype": dtype,
        "channels_last": channels_last,
    }
    first, second = (
        load(side, runtime, input_size=batch.shape, **settings)
        if isinstance(side, nn.Module | str | os.PathLike)
        else _already(side, False, threads, dtype, channels_last)
        for side in (a, b)
    )
    sides = []
    for loaded in (first, second):
        with loaded.process_settings():
            sides.append(loaded.bind(batch))
            _first_calls(sides[-1], clock, effort.max_time / 4, batch.shape)
    gap = SETTLE_S if first.name != second.name else 0.0
    with _quiet():
        around = (first.process_settings, second.process_settings)
        return compare_calls(sides[0], sides[1], clock, effort, around=around, gap=gap)


def time_calls(call: Callable[[], Any], clock: Clock, effort: Effort) -> np.ndarray:
    """Call until `effort` is made; return the seconds that each call took."""
    times: list[float] = []
    start = clock()
    while True:
        begin = clock()
        call()
        end = clock()
        times.append(end - begin)
        if effort.done(len(times), end - start):
            return np.asarray(times)


def compare_calls(
    a: Callable[[], Any],
    b: Callable[[], Any],
    clock: Clock,
    effort: Effort,
    *,
    around: Sequence[Callable[[], contextlib.AbstractContextManager[None]]] = (),
    gap: float = 0.0,
) -> Comparison:
    """Call `a` and `b` in turn and compare the seconds they take.

    Args:
        a: The first call of each pair.
        b: The second.
        clock: What tells the time, in seconds.
        effort: How many pairs, and how long.
        around: For each side, what holds the settings that it needs.
        gap: Seconds to rest between calls.
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
        if pairs == MAX_PAIRS or effort.done(pairs, clock() - start):
            break
    return _compared(np.asarray(times[0]), np.asarray(times[1]))


def warm_up(call: Callable[[], Any], clock: Clock, max_time: float) -> WarmUp:
    """Call until the medians of two windows agree, at most for about `max_time` seconds."""
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
    """Return the images that are timed: normal noise, B C H W, the same each time.

    Raises:
        BadInput: `input_size` is not four positive numbers, or five for volumes.
    """
    size = tuple(input_size)
    if len(size) not in (4, 5) or any(isinstance(n, bool) or int(n) != n or n < 1 for n in size):
        raise BadInput(f"input_size={size!r} must be four whole numbers of at least 1: B C H W")
    return np.random.default_rng(0).standard_normal(size, dtype=np.float32)


def load(
    source: nn.Module | str | os.PathLike[str],
    runtime: str = "eager",
    *,
    input_size: Sequence[int] = (1, 3, 224, 224),
    fused: bool = False,
    **settings: Any,
) -> runtimes.Runtime:
    """Load a model or a file into a runtime; a model is exported first if the runtime loads files.

    Args:
        source: A model, which is not changed, or a file.
        runtime: One of `zoo.runtimes.NAMES`.
        input_size: B C H W that a model is exported for.
        fused: Re-parameterise the model first.
        **settings: `threads`, `dtype` and `channels_last` of `zoo.runtimes.load`.

    Raises:
        BadInput: A setting that the runtime does not support, or `fused` for a file.
        MissingExtra: A package of the runtime is not installed.
        NotExportable: The model cannot be exported to the format that the runtime loads.
    """
    runtimes.check_settings(runtime, **settings)
    if not isinstance(source, nn.Module):
        if fused:
            raise BadInput(
                f"fused=True: {str(source)!r} is an exported file and cannot be fused; export the"
                " fused model"
            )
        stated = files.stated_fused(Path(source))
        return runtimes.load(source, runtime, fused=stated, **settings)
    if fused:
        source = reparameterize(in_eval_mode(source))
    suffix = runtimes.artefact_suffix(runtime)
    if suffix is None:
        return runtimes.load(source, runtime, **settings)
    is_fused = bool(getattr(source, "reparameterized", False))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"model{suffix}"
        model = in_eval_mode(source)
        convert(model, file, input_size=tuple(input_size), dynamic_batch=False)
        return runtimes.load(file, runtime, fused=is_fused, **settings)


def _already(
    loaded: runtimes.Runtime,
    fused: bool,
    threads: int | None,
    dtype: str | None,
    channels_last: bool,
) -> runtimes.Runtime:
    if fused or threads is not None or dtype is not None or channels_last:
        raise BadInput(
            f"fused, threads, dtype and channels_last are settled when a runtime is loaded; "
            f"pass them to zoo.runtimes.load, not beside a loaded {loaded.name!r}"
        )
    return loaded


def _first_calls(
    call: Callable[[], Any], clock: Clock, max_time: float, size: Sequence[int]
) -> WarmUp:
    try:
        return warm_up(call, clock, max_time)
    except Exception as error:  # whatever a model raises at a size that it does not take
        raise BadInput(
            f"the model does not run on input_size={tuple(size)}: {first_line(error)}"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Python's garbage collector out of the measured time."""
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
        p90_ms=times.p90 * 1e3,
        p99_ms=times.p99 * 1e3,
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
    tick = 1e-9  # a call that took no time on a coarse clock still has a logarithm
    centre, interval = shift(np.log(np.maximum(b, tick)) - np.log(np.maximum(a, tick)))
    low, high = (None, None) if interval is None else np.exp(interval).tolist()
    return Comparison(math.exp(centre), low, high, len(a), summarize(a), summarize(b))
