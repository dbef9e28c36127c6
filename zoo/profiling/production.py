"""Latency as it will be in production: calls on a schedule, images as JPEG files, hours of work.

`zoo benchmark` calls a model again and again on a tensor that is ready. In a product, a camera or a
queue decides when a call starts, images are decoded first, and the processor becomes warm. These
three measurements follow the usual one: `profile.pace`, `profile.input=jpeg`, `profile.sustain`.
"""

import io
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from zoo import runtimes
from zoo.display import ms
from zoo.errors import BadInput
from zoo.images import convert, open_image, resize_and_crop
from zoo.inputs import IMAGENET_MEAN, IMAGENET_STD
from zoo.profiling.latency import random_batch
from zoo.profiling.loading import load
from zoo.profiling.stats import summarize
from zoo.profiling.timing import (
    Clock,
    MeasurementBudget,
    garbage_collector_paused,
    warm_up,
)
from zoo.progress import phase
from zoo.reports.records import Record

INPUTS = ("tensor", "jpeg")
MOST_SECONDS = 24 * 3600.0
WINDOWS = 60  # points of the curve over time, unless they would be shorter than WINDOW_S
WINDOW_S = 1.0
PHOTO = (640, 480)  # width and height of the JPEG in pixels
STEPS = ("decode", "resize", "normalise", "model")

Sleep = Callable[[float], None]


@dataclass(frozen=True)
class Production:
    """What to measure besides the latency of calls one after the other.

    Attributes:
        pace: Calls per second; None to leave the schedule out.
        input: `"jpeg"` to time decoding and preparing as well; `"tensor"` not to.
        sustain: Seconds of continuous calls; None to leave them out.
    """

    pace: float | None = None
    input: str = "tensor"
    sustain: float | None = None

    def check(self) -> None:
        """Raise `BadInput` for a value that cannot work."""
        if self.input not in INPUTS:
            raise BadInput(f"profile.input={self.input!r} must be {' or '.join(INPUTS)}")
        if self.pace is not None and not 0 < self.pace <= 1e6:
            raise BadInput(f"profile.pace={self.pace!r} must be calls per second, above 0")
        if self.sustain is not None and not 0 < self.sustain <= MOST_SECONDS:
            raise BadInput(f"profile.sustain={self.sustain!r} must be seconds, at most a day")

    def requested(self) -> dict[str, Any]:
        """Return the values that are not the defaults: part of the identity of a record."""
        plain = Production()
        return {key: value for key, value in vars(self).items() if value != getattr(plain, key)}

    def measure(
        self,
        source: Any,
        input_size: Sequence[int],
        runtime: str,
        budget: MeasurementBudget,
        **settings: Any,
    ) -> Record:
        """Return `paced`, `pipeline` and `sustained` of a record, those that are wanted.

        Args:
            source: A model or the path of an artefact.
            input_size: B C H W.
            runtime: Name of the runtime.
            budget: How many calls to make, and for how long, unless `sustain` says it.
            **settings: `threads`, `dtype` and `channels_last`.

        Raises:
            BadInput: The model does not take images of one or three channels, for `jpeg`.
        """
        if not self.requested():
            return {}
        loaded = load(source, runtime, input_size=tuple(input_size), **settings)
        found: Record = {}
        with loaded.process_settings(), garbage_collector_paused():
            call = loaded.bind(random_batch(input_size))
            warm_up(call, time.perf_counter, budget.max_time / 2)
            if self.pace is not None:
                calls = budget_calls(budget, self.pace)
                with phase(f"{calls} calls, {self.pace:g} per second"):
                    found["paced"] = paced(call, self.pace, calls)
            if self.input == "jpeg":
                with phase("decoding, preparing and calling"):
                    found["pipeline"] = pipeline(loaded, input_size, budget)
            if self.sustain is not None:
                with phase(f"{self.sustain:g} seconds of calls"):
                    found["sustained"] = sustained(call, self.sustain)
        return found


def budget_calls(budget: MeasurementBudget, pace: float) -> int:
    """Return how many calls a schedule of `pace` per second makes within a budget."""
    wanted = max(budget.min_runs, math.ceil(budget.min_time * pace))
    return max(1, min(wanted, math.floor(budget.max_time * pace)))


def paced(
    call: Callable[[], Any],
    pace: float,
    calls: int,
    *,
    clock: Clock = time.perf_counter,
    sleep: Sleep = time.sleep,
) -> Record:
    """Start a call every 1 / `pace` seconds, or as soon as the one before has ended.

    Returns:
        `latency_*_ms`: from the start of a call to its end. `late_*_ms`: from when a call was due
        to its start, because the thread woke up late or the call before took too long.
        `response_*_ms`: from when it was due to its end. `missed`: share of the calls that ended
        after the next was due.
    """
    period = 1 / pace
    begin = clock() + period
    late, took, response = np.empty(calls), np.empty(calls), np.empty(calls)
    for number in range(calls):
        due = begin + number * period
        if (wait := due - clock()) > 0:
            sleep(wait)
        started = clock()
        call()
        ended = clock()
        late[number], took[number] = max(0.0, started - due), ended - started
        response[number] = ended - due
    found: Record = {"pace": pace, "n": calls}
    for name, times in (("latency", took), ("late", late), ("response", response)):
        summary = summarize(1e3 * times)
        found |= {f"{name}_{key}_ms": getattr(summary, key) for key in ("p50", "p90", "p99")}
        found[f"{name}_max_ms"] = float(1e3 * times.max())
    return found | {"missed": float(np.mean(response > period))}


def photo_jpeg() -> bytes:
    """Return a JPEG of 640 x 480 pixels with smooth areas, edges and noise; always the same."""
    width, height = PHOTO
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (height // 40, width // 40, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize(PHOTO, Image.Resampling.BICUBIC)
    noise = generator.normal(0, 6, (height, width, 3))
    pixels = np.clip(np.asarray(smooth) + noise, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()


def pipeline(
    loaded: runtimes.Runtime,
    input_size: Sequence[int],
    budget: MeasurementBudget,
    *,
    clock: Clock = time.perf_counter,
) -> Record:
    """Time all steps from JPEG files in memory to the outputs.

    Returns:
        `total_p50_ms`, and of each of `STEPS` its median `<step>_p50_ms` and its share of the sum
        of the medians, `<step>_share`.
    """
    batch, channels, height, width = input_size if len(input_size) == 4 else (0, 0, 0, 0)
    if channels not in (1, 3):
        raise BadInput("profile.input=jpeg needs a model that takes images of 1 or 3 channels")
    jpeg = photo_jpeg()
    mean = (255 * np.asarray(IMAGENET_MEAN[:channels], np.float32)).reshape(-1, 1, 1)
    std = (255 * np.asarray(IMAGENET_STD[:channels], np.float32)).reshape(-1, 1, 1)
    array = np.empty((batch, channels, height, width), np.float32)
    rows: list[list[float]] = []
    start = clock()
    while not (len(rows) > 1 and budget.is_spent(len(rows) - 1, clock() - start)):
        marks = [clock()]
        images = []
        for _ in range(batch):
            with open_image(io.BytesIO(jpeg)) as image:
                images.append(convert(image, channels))
        marks.append(clock())
        method = Image.Resampling.BICUBIC
        images = [resize_and_crop(one, (height, width), 0.875, method) for one in images]
        marks.append(clock())
        for row, one in zip(array, images, strict=True):
            pixels = np.asarray(one).reshape(height, width, channels).transpose(2, 0, 1)
            np.subtract(pixels, mean, out=row)
            np.divide(row, std, out=row)
        marks.append(clock())
        loaded(array)
        marks.append(clock())
        rows.append(np.diff(marks).tolist())
    times = 1e3 * np.asarray(rows[1:])  # the first is cold
    medians = np.median(times, axis=0)
    found: Record = {"n": len(times), "total_p50_ms": float(np.median(times.sum(axis=1)))}
    for name, median in zip(STEPS, medians.tolist(), strict=True):
        found |= {f"{name}_p50_ms": median, f"{name}_share": median / float(medians.sum())}
    return found


class Sensors:
    """Clock frequency and temperature of the processor, where Linux provides them.

    Args:
        root: The folder `/sys`.
    """

    def __init__(self, root: Path = Path("/sys")) -> None:
        cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
        base = root / "devices/system/cpu"
        self._clocks = [base / f"cpu{core}/cpufreq/scaling_cur_freq" for core in sorted(cores)]
        self._zones = sorted((root / "class/thermal").glob("thermal_zone*/temp"))

    def mhz(self) -> float | None:
        """Return the mean frequency of the usable cores in MHz; None if unknown."""
        found = _numbers(self._clocks)
        return sum(found) / len(found) / 1e3 if found else None

    def celsius(self) -> float | None:
        """Return the highest temperature in degrees Celsius; None if unknown."""
        return max((value / 1e3 for value in _numbers(self._zones)), default=None)


def _numbers(files: Sequence[Path]) -> list[float]:
    found = []
    for file in files:
        try:
            found.append(float(file.read_text()))
        except (OSError, ValueError):  # a sensor that does not answer
            continue
    return [value for value in found if 0 < value < math.inf]


def sustained(
    call: Callable[[], Any],
    seconds: float,
    *,
    clock: Clock = time.perf_counter,
    sensors: Sensors | None = None,
) -> Record:
    """Call without a break, and describe each of up to 60 windows of time.

    Returns:
        `curve`: for each window its end `t_s`, `calls`, `p50_ms`, and `mhz` and `celsius` where
        known. `first_ms` and `last_ms`: medians of the first and the last tenth of the windows;
        `slowdown`: their ratio.
    """
    sensors = sensors or Sensors()
    length = max(WINDOW_S, seconds / WINDOWS)
    curve: list[Record] = []
    start = opened = clock()
    times: list[float] = []
    while True:
        begin = clock()
        call()
        end = clock()
        times.append(end - begin)
        is_last = end - start >= seconds
        if is_last or end - opened >= length:
            median = 1e3 * float(np.median(times))
            row = {"t_s": end - start, "calls": len(times), "p50_ms": median}
            known = {"mhz": sensors.mhz(), "celsius": sensors.celsius()}
            curve.append(row | {key: value for key, value in known.items() if value is not None})
            times, opened = [], clock()
        if is_last:
            break
    tenth = max(1, len(curve) // 10)
    first, last = (
        float(np.median([row["p50_ms"] for row in part]))
        for part in (curve[:tenth], curve[-tenth:])
    )
    return {"curve": curve, "first_ms": first, "last_ms": last, "slowdown": last / first}


def lines(record: Record) -> list[str]:
    """Return what was measured besides the latency, one line each."""
    name = f"{record['model']} in {record['runtime']}"
    found = []
    if row := record.get("paced"):
        late = "" if row["late_p90_ms"] is None else f" (p90 {ms(row['late_p90_ms'])})"
        found.append(
            f"{name}, {row['pace']:g} calls per second: latency {ms(row['latency_p50_ms'])} ms, "
            f"late by {ms(row['late_p50_ms'])} ms{late}, {row['missed']:.1%} missed"
        )
    if row := record.get("pipeline"):
        steps = [f"{key} {ms(row[f'{key}_p50_ms'])} ms {row[f'{key}_share']:.0%}" for key in STEPS]
        found.append(f"{name}, JPEG to outputs: {ms(row['total_p50_ms'])} ms: {', '.join(steps)}")
    if row := record.get("sustained"):
        first, last = row["curve"][0], row["curve"][-1]
        sensors = [
            f"{first[key]:.0f} to {last[key]:.0f} {unit}"
            for key, unit in (("mhz", "MHz"), ("celsius", "°C"))
            if key in first and key in last
        ]
        found.append(
            f"{name}, {last['t_s']:.0f} s without a break: {ms(row['first_ms'])} ms at first, "
            f"{ms(row['last_ms'])} ms at the end; {', '.join(sensors) or 'no sensors'}"
        )
    return found
