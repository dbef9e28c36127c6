"""Measure the latency of a model, or compare the latencies of two models.

A measurement warms up until the median latency is stable, and only then records times. A comparison
calls two models in turn (A B A B), so that a slower machine slows both, and reports a difference
only if the confidence interval of the ratio is outside a tolerance around 1.
"""

import os
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from torch import nn

from zoo import runtimes
from zoo.environment import describe_machine, versions
from zoo.errors import BadInput, first_line
from zoo.profiling.energy import energy_per_call
from zoo.profiling.loading import load
from zoo.profiling.memory import MemoryMeter
from zoo.profiling.results import Comparison, Latency
from zoo.profiling.stats import Summary, summarize
from zoo.profiling.timing import (
    Clock,
    MeasurementBudget,
    WarmUp,
    compare_calls,
    garbage_collector_paused,
    time_calls,
    warm_up,
)

Source = nn.Module | str | os.PathLike[str] | runtimes.Runtime

SETTLE_S = 0.01  # the threads of a runtime keep spinning this long after a call


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
    with garbage_collector_paused(), loaded.process_settings():
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
    with garbage_collector_paused():
        held = (first.process_settings, second.process_settings)
        return compare_calls(sides[0], sides[1], clock, budget, around=held, gap=gap)


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
