"""The statistics of latencies: percentiles, the interval of a median, the interval of a ratio.

None of them assumes a distribution: latencies have a long right tail, and one interruption by the
system must not move a figure or widen its interval.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

LEVEL = 0.95  # of every interval


@dataclass(frozen=True)
class Summary:
    """The distribution of a measured quantity, in the unit of its samples.

    Attributes:
        p50: The median. Percentiles are interpolated linearly between samples.
        p90: 90 % of the samples lie below it.
        p99: 99 % of the samples lie below it; with fewer than 100 samples it leans on the largest.
        min: The smallest sample.
        n: The number of samples.
        spread: Interquartile range divided by the median.
        low: Lower end of the 95 % confidence interval of the median; None for fewer than 6 samples.
        high: Upper end of that interval.
    """

    p50: float
    p90: float
    p99: float
    min: float
    n: int
    spread: float
    low: float | None
    high: float | None


def summarize(samples: "np.ndarray | list[float]") -> Summary:
    """Summarise a non-empty list of samples."""
    ordered = np.sort(np.asarray(samples, dtype=np.float64))
    p25, p50, p75, p90, p99 = np.quantile(ordered, (0.25, 0.5, 0.75, 0.9, 0.99)).tolist()
    low, high = median_interval(ordered) or (None, None)
    spread = (p75 - p25) / p50 if p50 > 0 else 0.0
    return Summary(p50, p90, p99, float(ordered[0]), len(ordered), spread, low, high)


def median_interval(ordered: np.ndarray, level: float = LEVEL) -> tuple[float, float] | None:
    """Return the confidence interval of the median of sorted samples, by order statistics.

    The number of samples below the true median is binomial with p = 1/2, whatever their
    distribution. The interval runs from the k-th smallest to the k-th largest sample for the
    largest k that keeps `level`; None where even the extremes do not (n < 6 at 95 %).
    """
    n = len(ordered)
    if n > 1000:  # the normal approximation is exact to a rank here
        k = math.floor((n + 1) / 2 - _z(level) * math.sqrt(n) / 2)
    else:
        k, tail, allowed = 0, 1, (1 - level) / 2 * 2.0**n  # tail = number of subsets up to size k
        while tail <= allowed:
            k += 1
            tail += math.comb(n, k)
    return (float(ordered[k - 1]), float(ordered[n - k])) if k else None


def shift(
    differences: np.ndarray, level: float = LEVEL
) -> tuple[float, tuple[float, float] | None]:
    """Return the centre of paired differences and its confidence interval.

    The centre is Hodges and Lehmann's: the median of the means of all pairs of differences. Its
    interval is the one that belongs to Wilcoxon's signed-rank test. Both take two noisy but alike
    sides well: half the width that the median's own interval would have, unmoved by outliers.
    None for the interval where there are fewer than 6 differences.
    """
    n = len(differences)
    rows, columns = np.triu_indices(n)
    means = np.sort((differences[rows] + differences[columns]) / 2)
    k = math.floor(n * (n + 1) / 4 - _z(level) * math.sqrt(n * (n + 1) * (2 * n + 1) / 24))
    interval = (float(means[k - 1]), float(means[-k])) if k > 0 else None
    return float(np.median(means)), interval


def _z(level: float) -> float:
    return NormalDist().inv_cdf((1 + level) / 2)
