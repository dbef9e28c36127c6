"""When a figure may be claimed: the thresholds of all statements about latencies, each set once."""

from collections.abc import Mapping
from typing import Any

# An interval covers the variation within a run. Between runs and between models, the temperature
# of the machine and the location of a model in memory change a latency by a few percent more.
TOLERANCE = 0.03
RULE = (
    "a difference counts only if the whole 95 % interval of the ratio is more than "
    f"{100 * TOLERANCE:g} % away from 1"
)

# An interval that extends further than this share from its median says that the machine was busy.
WIDE = 0.10

# With fewer calls, only about six lie beyond the percentile, and it is a matter of chance.
MIN_CALLS = {"p90_ms": 64, "p99_ms": 662}


def verdict(low: float | None, high: float | None, tolerance: float = TOLERANCE) -> str:
    """Return `"faster"`, `"slower"` or `"no difference"` for the interval of a latency ratio.

    Args:
        low: Lower end of the confidence interval, or None without an interval.
        high: Upper end of the confidence interval, or None without an interval.
        tolerance: Ratios within this distance of 1 count as no difference.
    """
    if low is None or high is None:
        return "no difference"
    if high < 1 - tolerance:
        return "faster"
    return "slower" if low > 1 + tolerance else "no difference"


def half_width(mid: float, low: float | None, high: float | None) -> float | None:
    """Return how far an interval extends from its middle, as a share; None without an interval."""
    if low is None or high is None:
        return None
    return max(high - mid, mid - low) / mid


def is_wide(mid: float, low: float | None, high: float | None) -> bool:
    """Return whether an interval is too wide for its middle to be trusted."""
    return (half_width(mid, low, high) or 0.0) > WIDE


def plus_minus(mid: float, low: float | None, high: float | None) -> str:
    """Write an interval as a share of its middle: `±3 %`; an empty string without an interval."""
    width = half_width(mid, low, high)
    if width is None:
        return ""
    return f"±{100 * width:.0f} %" if width >= 0.01 else f"±{100 * width:.1f} %"


def percentile(record: Mapping[str, Any], key: str) -> float | None:
    """Return a percentile of a record, or None if it has too few calls for it.

    Args:
        record: A record of a measurement.
        key: `"p90_ms"` or `"p99_ms"`.
    """
    return record.get(key) if (record.get("n") or 0) >= MIN_CALLS[key] else None
