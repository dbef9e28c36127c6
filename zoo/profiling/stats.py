"""Statistics of latencies: percentiles, and confidence intervals of a median and of a difference.

No statistic assumes a normal distribution: latencies have a long right tail, and a single
interruption by the system must not change a figure or widen its interval.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from zoo.reports.claims import MIN_CALLS

LEVEL = 0.95  # confidence level of all intervals


@dataclass(frozen=True)
class Summary:
    """Summary of a distribution, in the unit of its samples.

    Attributes:
        p50: The median. Percentiles are interpolated linearly between samples.
        p90: The 90th percentile; None for fewer than 64 samples.
        p99: The 99th percentile; None for fewer than 662 samples.
        min: The smallest sample.
        n: The number of samples.
        spread: Interquartile range divided by the median.
        low: Lower end of the 95 % confidence interval of the median; None for fewer than 6 samples.
        high: Upper end of that interval.
    """

    p50: float
    p90: float | None
    p99: float | None
    min: float
    n: int
    spread: float
    low: float | None
    high: float | None


def summarize(samples: "np.ndarray | list[float]") -> Summary:
    """Summarise a non-empty list of samples."""
    ordered = np.sort(np.asarray(samples, dtype=np.float64))
    p25, p50, p75, p90, p99 = np.quantile(ordered, (0.25, 0.5, 0.75, 0.9, 0.99)).tolist()
    p90, p99 = (
        value if len(ordered) >= MIN_CALLS[key] else None
        for key, value in (("p90_ms", p90), ("p99_ms", p99))
    )
    low, high = median_interval(ordered) or (None, None)
    spread = (p75 - p25) / p50 if p50 > 0 else 0.0
    return Summary(p50, p90, p99, float(ordered[0]), len(ordered), spread, low, high)


def median_interval(samples: np.ndarray, level: float = LEVEL) -> tuple[float, float] | None:
    """Return the confidence interval of the median, or None for too few samples (n < 6 at 95 %).

    The interval runs between two samples (order statistics) and is valid for any distribution.
    """
    from scipy.stats import quantile_test  # takes about a second to import

    low, high = quantile_test(samples, p=0.5).confidence_interval(level)
    return None if math.isnan(low) or math.isnan(high) else (float(low), float(high))


def paired_shift(
    differences: np.ndarray, level: float = LEVEL
) -> tuple[float, tuple[float, float] | None]:
    """Return the typical value of paired differences and its confidence interval.

    The value is the Hodges-Lehmann estimate, the median of the means of all pairs of differences.
    The interval is that of Wilcoxon's signed-rank test; it is None for fewer than 6 differences.
    Outliers affect neither, and the interval is narrower than that of the median.
    """
    n = len(differences)
    rows, columns = np.triu_indices(n)
    means = np.sort((differences[rows] + differences[columns]) / 2)
    z = NormalDist().inv_cdf((1 + level) / 2)
    k = math.floor(n * (n + 1) / 4 - z * math.sqrt(n * (n + 1) * (2 * n + 1) / 24))
    interval = (float(means[k - 1]), float(means[-k])) if k > 0 else None
    return float(np.median(means)), interval
