"""Compare a new exported file with a baseline, and say whether it may replace it: `zoo gate`.

Both files are called in turn, so that whatever slows the machine slows both. Where a model lies in
memory changes its latency by a percent or two, so both are loaded many times, for 32 pairs of calls
each. The interval is that of Student's t-test of the loads' ratios. After 6, 12, 24 and 48 loads it
is compared with the limit, and the comparison ends as soon as the answer is clear. Each look is a
chance of a false alarm; therefore each interval has a level of 98.75 %, which makes 95 % for all.
"""

import contextlib
import math
import re
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from zoo.environment import describe_machine, summary, versions
from zoo.errors import BadInput
from zoo.profiling import baseline as baselines
from zoo.profiling.baseline import Baseline, Score
from zoo.profiling.latency import measure, random_batch
from zoo.profiling.stats import LEVEL, paired_shift
from zoo.profiling.timing import Clock, garbage_collector_paused, warm_up
from zoo.progress import phase
from zoo.quoting import command_line
from zoo.runtimes.artefacts import LoadedArtefact

LOOKS = (6, 12, 24, 48)  # loads of both files after which the answer is checked
PAIRS = 32  # of calls per load
WARM_UP_S = 0.5  # longest warm-up of a file
SLOWER = 0.03  # share

Call = Callable[[], Any]
Open = Callable[[], AbstractContextManager[tuple[Call, Call]]]


@dataclass(frozen=True)
class Paired:
    """The latencies of the old and the new file, called in turn.

    Attributes:
        ratio: New / old.
        low: Lower end of its interval.
        high: Upper end.
        n: Pairs of calls.
        loads: How often both files were loaded.
        old_ms: Median latency of the old file.
        new_ms: Median latency of the new file.
        limit: Largest ratio that is accepted.
    """

    ratio: float
    low: float
    high: float
    n: int
    loads: int
    old_ms: float
    new_ms: float
    limit: float

    @property
    def verdict(self) -> str:
        """`"slower"`, `"ok"`, or `"unclear"` if the interval contains the limit."""
        if self.low > self.limit:
            return "slower"
        return "ok" if self.high <= self.limit else "unclear"


@dataclass(frozen=True)
class Gate:
    """The result of `zoo gate`.

    Attributes:
        latency: The latencies of both files.
        old: Score of the old file; None if unknown.
        new: Score of the new file; None if unknown.
        drop: Largest loss of the score in points (or dB) that is accepted; None for any.
    """

    latency: Paired
    old: Score | None
    new: Score | None
    drop: float | None

    @property
    def lost(self) -> float | None:
        """By how much the score fell, in points or dB; None without two comparable scores."""
        if self.old is None or self.new is None or not comparable(self.old, self.new):
            return None
        return self.old.value - self.new.value

    @property
    def is_worse(self) -> bool:
        """Whether the score fell by more than `drop`."""
        # Scores of whole images: a difference below a billionth is rounding.
        return self.drop is not None and (self.lost or 0.0) > self.drop + 1e-9

    @property
    def passed(self) -> bool:
        return self.latency.verdict != "slower" and not self.is_worse


def comparable(a: Score, b: Score) -> bool:
    """Return whether two scores are of the same kind, on as many images of the same data."""
    return (a.name, a.data, a.images) == (b.name, b.data, b.images)


def compare_until_clear(
    open_both: Open,
    slower: float,
    clock: Clock = time.perf_counter,
    looks: Sequence[int] = LOOKS,
) -> Paired:
    """Call two files in turn until it is clear whether the second is slower.

    Args:
        open_both: Loads and warms up both; the context gives a function that calls the old file,
            and one that calls the new one.
        slower: Share by which the new file may be slower.
        clock: Function that returns the current time in seconds.
        looks: Loads in total after which the answer is checked.
    """
    level = 1 - (1 - LEVEL) / len(looks)
    ratios: list[float] = []  # logarithms, one for each load
    old: list[float] = []
    new: list[float] = []
    for total in looks:
        while len(ratios) < total:
            first = len(old)
            with open_both() as calls:
                _call_in_turn(calls, (old, new), clock)
            ratios.append(_ratio(old[first:], new[first:]))
        found = _paired(ratios, old, new, slower, level)
        if found.verdict != "unclear":
            break
    return found


def _call_in_turn(
    calls: tuple[Call, Call], times: tuple[list[float], list[float]], clock: Clock
) -> None:
    """Add the durations of `PAIRS` pairs of calls to `times`."""
    sides = list(zip(calls, times, strict=True))
    for pair in range(PAIRS):
        # A B B A: a drift of the machine within a pair favours neither.
        for call, kept in sides if pair % 2 == 0 else reversed(sides):
            begin = clock()
            call()
            kept.append(clock() - begin)


def _ratio(old: Sequence[float], new: Sequence[float]) -> float:
    """Return the logarithm of the typical ratio of paired durations."""
    tick = 1e-9  # a coarse clock may measure 0, which has no logarithm
    logs = [np.log(np.maximum(side, tick)) for side in (old, new)]
    return paired_shift(logs[1] - logs[0])[0]


def _paired(
    ratios: Sequence[float], old: Sequence[float], new: Sequence[float], slower: float, level: float
) -> Paired:
    from scipy.stats import t  # takes about a second to import

    centre, n = float(np.mean(ratios)), len(ratios)
    half = float(t.ppf((1 + level) / 2, n - 1) * np.std(ratios, ddof=1) / math.sqrt(n))
    return Paired(
        ratio=math.exp(centre),
        low=math.exp(centre - half),
        high=math.exp(centre + half),
        n=len(old),
        loads=n,
        old_ms=1e3 * float(np.median(old)),
        new_ms=1e3 * float(np.median(new)),
        limit=1 + slower,
    )


def gate(
    baseline: Path, artefact: Path, *, slower: float = SLOWER, drop: float | None = None
) -> Gate:
    """Compare an exported file with the baseline.

    Args:
        baseline: A file that `save` wrote.
        artefact: The new file, or its folder.
        slower: Share by which it may be slower, such as 0.03.
        drop: Points (or dB) by which its score may be lower; None does not compare scores.

    Raises:
        BadInput: A file cannot be read, the old file has changed, or with `drop`, a score is
            missing or the scores are of different images.
    """
    saved = baselines.load(baseline)
    old, old_manifest, checksum = baselines.read_artefact(baseline.parent / saved.artefact)
    if checksum != saved.sha256:
        raise BadInput(
            f"{old} is not the file that {baseline} was saved for; restore it, or save the baseline"
            " again"
        )
    new, new_manifest, new_checksum = baselines.read_artefact(artefact)
    new_score = baselines.score_of(new, new_checksum)
    if drop is not None:
        _check_scores(saved.score, new_score, baseline, old, new)

    @contextlib.contextmanager
    def open_both() -> Any:
        sides = [
            _opened(file, manifest, saved.threads)
            for file, manifest in ((old, old_manifest), (new, new_manifest))
        ]
        yield sides[0], sides[1]

    with phase("calling both files in turn"), garbage_collector_paused():
        found = compare_until_clear(open_both, slower)
    return Gate(found, saved.score, new_score, drop)


def save(baseline: Path, artefact: Path, *, threads: int = 1) -> Baseline:
    """Measure an exported file and write it as the baseline of later ones.

    Raises:
        BadInput: The file cannot be read, or the baseline cannot be written.
    """
    file, manifest, checksum = baselines.read_artefact(artefact)
    loaded = LoadedArtefact(file, manifest, threads=threads)
    with phase("measuring the latency"):
        times = measure(loaded.runtime, _input_size(manifest), min_runs=100)
    found = Baseline(
        artefact=baselines.relative(file, baseline),
        sha256=checksum,
        threads=threads,
        p50_ms=times.p50_ms,
        low_ms=times.low_ms,
        high_ms=times.high_ms,
        score=baselines.score_of(file, checksum),
        machine=describe_machine(),
        versions=versions(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    baselines.save(baseline, found)
    return found


def share(option: str, text: str) -> float:
    """Read a percentage such as `3%` or `3` as a share.

    Raises:
        BadInput: It is not a percentage from 0 to 100.
    """
    matched = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*%?\s*", text)
    if not matched or len(text) > 20 or float(matched[1]) > 100:
        raise BadInput(f"{option}={text!r} is not a percentage such as 3%")
    return float(matched[1]) / 100


def markdown(found: Gate, baseline: Path, artefact: Path) -> str:
    """Return the result as Markdown, for a pull request."""
    latency = found.latency
    words = {"ok": "ok", "slower": "**slower**", "unclear": "unclear: not shown to be slower"}
    change = f"{_percent(latency.ratio)} [{_percent(latency.low)}, {_percent(latency.high)}]"
    rows = [
        f"| latency, ms | {latency.old_ms:.3f} | {latency.new_ms:.3f} | {change}"
        f" | {_percent(latency.limit)} | {words[latency.verdict]} |",
        _score_row(found),
    ]
    lines = [
        f"### zoo gate: {'passed' if found.passed else 'failed'}",
        "",
        f"`{artefact}` compared with `{baseline}`",
        "",
        "| | old | new | change | limit | |",
        "| --- | --- | --- | --- | --- | --- |",
        *[row for row in rows if row],
        "",
        f"Median latency; {latency.n} pairs of calls in turn, {latency.loads} loads, interval of "
        f"95 %; {summary()}.",
    ]
    if latency.verdict == "unclear":
        lines += [
            "",
            "The machine was too busy for a clear answer about the latency: run it again.",
        ]
    return "\n".join(lines)


def _score_row(found: Gate) -> str:
    old, new = found.old, found.new
    if old is None and new is None:
        return ""
    known = old or new
    assert known is not None
    values = ["not evaluated" if one is None else f"{one.value:.2f}" for one in (old, new)]
    limit = "" if found.drop is None else f"−{found.drop:g}"
    change, verdict = "", "not compared"
    if found.lost is not None:
        change = f"{0.0 - found.lost:+.2f}".replace("-", "−")
        verdict = "**worse**" if found.is_worse else ("ok" if found.drop is not None else "")
    elif old is not None and new is not None:
        verdict = "not compared: other images"
    title = f"{known.name}, {known.unit}"
    return f"| {title} | {values[0]} | {values[1]} | {change} | {limit} | {verdict} |"


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %".replace("-", "−")


def _check_scores(
    old: Score | None, new: Score | None, baseline: Path, old_file: Path, new_file: Path
) -> None:
    if new is None:
        evaluate = command_line("eval", {"artefact": str(new_file)})
        raise BadInput(f"--drop: {new_file} was not evaluated; run `{evaluate}` first")
    if old is None:
        evaluate = command_line("eval", {"artefact": str(old_file)})
        raise BadInput(
            f"--drop: {baseline} has no score; run `{evaluate}` and save the baseline again"
        )
    if not comparable(old, new):
        raise BadInput(
            f"--drop: the scores are not comparable: {old.name} of {old.images} images of "
            f"{old.data}, and {new.name} of {new.images} images of {new.data}; evaluate both on "
            "the same data"
        )


def _opened(file: Path, manifest: dict[str, Any], threads: int) -> Call:
    runtime = LoadedArtefact(file, manifest, threads=threads).runtime
    call = runtime.bind(_batch(manifest))
    warm_up(call, time.perf_counter, WARM_UP_S)
    return call


def _batch(manifest: dict[str, Any]) -> np.ndarray:
    batch = random_batch(_input_size(manifest))
    if manifest["input"]["dtype"] == "uint8":
        return np.random.default_rng(0).integers(0, 256, batch.shape, dtype=np.uint8)
    return batch


def _input_size(manifest: dict[str, Any]) -> tuple[int, ...]:
    count = manifest["input"]["shape"][0]
    return (count if isinstance(count, int) else 1, *manifest["input"]["size"])
