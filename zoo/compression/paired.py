"""Whether a difference between two classifiers on the same images is more than chance."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binomtest, norm


@dataclass(frozen=True)
class PairedDrop:
    """How much accuracy the second of two classifiers loses, in percentage points.

    Attributes:
        images: Number of images.
        only_first: Images that only the first classifies correctly.
        only_second: Images that only the second classifies correctly.
        points: The drop: `100 * (only_first - only_second) / images`.
        low: Lower end of the 95 % interval of the drop.
        high: Its upper end.
        p_value: Exact McNemar test of "no difference".
    """

    images: int
    only_first: int
    only_second: int
    points: float
    low: float
    high: float
    p_value: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @property
    def change(self) -> str:
        """The change of accuracy with its interval: `-0.31 ± 0.40 points`."""
        return f"{0.0 - self.points:+.2f} ± {(self.high - self.low) / 2:.2f} points"


def paired_drop(first: np.ndarray, second: np.ndarray) -> PairedDrop:
    """Return the drop between two classifiers.

    The interval is Tango's score interval for paired proportions (Statistics in Medicine 17, 1998),
    which also holds for few or no discordant images.

    Args:
        first: Whether the first classifier is right, for each image.
        second: The same of the second.
    """
    first, second = np.asarray(first, bool), np.asarray(second, bool)
    b, c, n = int((first & ~second).sum()), int((~first & second).sum()), len(first)
    low, high = tango_interval(b, c, n)
    p_value = float(binomtest(b, b + c).pvalue) if b + c else 1.0
    return PairedDrop(n, b, c, 100 * (b - c) / n, 100 * low, 100 * high, p_value)


def tango_interval(b: int, c: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Tango's interval of a difference of paired proportions.

    Args:
        b: Images that only the first classifies correctly.
        c: Images that only the second classifies correctly.
        n: Number of images.
        confidence: Share of cases in which the interval covers the true difference.
    """
    z = float(norm.ppf(0.5 + confidence / 2))

    def excess(difference: float, sign: int) -> float:
        # The most likely share of `c` if the true difference is `difference`.
        first = -b - c + (2 * n - b + c) * difference
        second = -c * difference * (1 - difference)
        share = (np.sqrt(max(first**2 - 8 * n * second, 0.0)) - first) / (4 * n)
        variance = n * max(2 * share + difference * (1 - difference), 0.0)
        return b - c - n * difference - sign * z * float(np.sqrt(variance))

    found = (b - c) / n
    below, above = found - 1e-9, found + 1e-9  # the ends, not the root at the difference itself
    root: Any = brentq
    low = -1.0 if below <= -1 else root(excess, -1.0, below, args=(1,))
    high = 1.0 if above >= 1 else root(excess, above, 1.0, args=(-1,))
    return float(low), float(high)
