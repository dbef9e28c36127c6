"""Signal-to-noise ratio of a quantised model's outputs."""

import math

import numpy as np

TINY = 1e-30
QUIET = 1e-12  # noise below this share of the signal's power counts as none


class SignalToNoise:
    """Differences between the outputs of two models, accumulated over batches.

    Attributes:
        images: Number of images.
        largest: Largest absolute difference.
    """

    def __init__(self) -> None:
        self.images, self.largest = 0, 0.0
        self._noise = self._sum = self._squares = np.zeros(())

    def add(self, expected: np.ndarray, actual: np.ndarray) -> None:
        """Add the outputs of one batch."""
        expected, actual = expected.astype(np.float64), actual.astype(np.float64)
        self.images += len(expected)
        self.largest = max(self.largest, float(np.abs(actual - expected).max(initial=0)))
        self._noise = self._noise + np.square(actual - expected).sum(axis=0)
        self._sum = self._sum + expected.sum(axis=0)
        self._squares = self._squares + np.square(expected).sum(axis=0)

    @property
    def snr_db(self) -> float:
        """Return the power of differences between images over the power of the error, in dB."""
        count = max(self.images, 1)
        signal = float((self._squares / count - np.square(self._sum / count)).mean())
        noise = float((self._noise / count).mean())
        return 10 * math.log10(max(signal, TINY) / max(noise, QUIET * signal, TINY))
