"""What a measurement or a comparison of latencies returns."""

from dataclasses import asdict, dataclass
from typing import Any

from zoo.display import Displayed, ms, shape
from zoo.profiling.stats import Summary
from zoo.reports.claims import TOLERANCE, WIDE, is_wide, plus_minus, verdict

_BUSY = f"; the interval is wider than ±{100 * WIDE:g} %: the machine was busy, compare again"


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
