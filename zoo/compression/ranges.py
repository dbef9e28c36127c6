"""The range of an activation that int8 covers, chosen from a histogram of its values.

A wide range keeps outliers and rounds everything else coarsely. `"minmax"` keeps every value,
`"percentile"` all but one in 10,000 on either side, `"mse"` minimises the squared error of clipping
and rounding together, and `"entropy"` the divergence of the rounded distribution from the original
(Migacz, 8-bit inference with TensorRT, 2017).
"""

import math

import numpy as np

METHODS = ("minmax", "percentile", "mse", "entropy")
STEPS = 255
BINS = 8192  # over both signs
TAIL = 1e-4  # share of values beyond a percentile range, on either side
SHARES = np.linspace(0.2, 1.0, 81)  # of the full range, tried by "mse" and "entropy"
Range = tuple[float, float]


class Histogram:
    """Counts of values in bins of equal width around zero.

    The range doubles when a value lies beyond it; then neighbouring bins are merged, so the order
    of the batches does not matter.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self.limit = 0.0  # bins cover -limit to limit, a power of two
        self.low = self.high = 0.0  # zero is in every range: padding needs it

    def add(self, values: np.ndarray) -> None:
        """Add values of any shape; those that are not finite are left out."""
        values = np.asarray(values, np.float32).ravel()
        values = values[np.isfinite(values)]
        if not values.size:
            return
        self.low = min(self.low, float(values.min()))
        self.high = max(self.high, float(values.max()))
        self._widen(max(-self.low, self.high))
        if self.limit:
            index = (values.astype(np.float64) + self.limit) * (BINS / 2 / self.limit)
            self.counts += np.bincount(index.astype(np.int64), minlength=BINS)

    def _widen(self, largest: float) -> None:
        if largest < self.limit or not largest:
            return
        limit = 2.0 ** (1 + math.floor(math.log2(largest)))  # greater than every value
        while self.limit and self.limit < limit:
            quarter = BINS // 4
            merged = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.pad(merged, (quarter, quarter))
            self.limit *= 2
        self.limit = limit

    def range(self, method: str) -> Range:
        """Return the lowest and the highest value that int8 should represent; zero is between."""
        full = (self.low, self.high)
        if method == "minmax" or not self.limit:
            return full
        if method == "percentile":
            return self._percentile()
        error = self._squared_error if method == "mse" else self._divergence
        candidates = [(float(share * self.low), float(share * self.high)) for share in SHARES]
        return min(reversed(candidates), key=error)  # of equal ones the widest

    @property
    def _middles(self) -> np.ndarray:
        return (np.arange(BINS) + 0.5) * (2 * self.limit / BINS) - self.limit

    def _percentile(self) -> Range:
        shares = np.cumsum(self.counts) / self.counts.sum()
        width = 2 * self.limit / BINS
        first = int(np.searchsorted(shares, TAIL, side="right"))
        last = int(np.searchsorted(shares, 1 - TAIL))
        low, high = first * width - self.limit, (last + 1) * width - self.limit
        return max(min(low, 0.0), self.low), min(max(high, 0.0), self.high)

    def _squared_error(self, limits: Range) -> float:
        x, scale = self._middles, (limits[1] - limits[0]) / STEPS or 1.0
        zero = round(-limits[0] / scale)
        rounded = (np.clip(np.round(x / scale) + zero, 0, STEPS) - zero) * scale
        return float((self.counts * np.square(rounded - x)).sum())

    def _divergence(self, limits: Range) -> float:
        """Return the Kullback-Leibler divergence of the rounded values from the clipped ones.

        Clipped values count at the end of the range in the original, but not in the rounded
        distribution, which is how losing them costs something.
        """
        x, scale = self._middles, (limits[1] - limits[0]) / STEPS or 1.0
        inside = (x >= limits[0]) & (x <= limits[1]) & (self.counts > 0)
        if not inside.any():
            return math.inf
        counts = self.counts[inside].astype(np.float64)
        original = counts.copy()
        original[0] += self.counts[x < limits[0]].sum()
        original[-1] += self.counts[x > limits[1]].sum()
        steps = np.round((x[inside] - limits[0]) / scale).astype(np.int64)
        total, used = np.bincount(steps, counts), np.bincount(steps)
        rounded = (total / np.maximum(used, 1))[steps]
        p, q = original / original.sum(), rounded / rounded.sum()
        return float((p * np.log(p / q)).sum())
