"""How far the outputs of a model in int8 are from its own, against how much these differ."""

import math

import numpy as np

TINY = 1e-30
QUIET = 1e-12  # of the signal's power: below it there is no error to speak of


class Noise:
    """The difference of outputs, gathered over batches.

    Attributes:
        images: How many.
        largest: The largest difference.
    """

    def __init__(self) -> None:
        self.images, self.largest = 0, 0.0
        self._noise = self._sum = self._squares = np.zeros(())

    def add(self, wanted: np.ndarray, found: np.ndarray) -> None:
        """Take in the outputs of a batch."""
        mine, its = wanted.astype(np.float64), found.astype(np.float64)
        self.images += len(mine)
        self.largest = max(self.largest, float(np.abs(its - mine).max(initial=0)))
        self._noise = self._noise + np.square(its - mine).sum(axis=0)
        self._sum = self._sum + mine.sum(axis=0)
        self._squares = self._squares + np.square(mine).sum(axis=0)

    @property
    def snr_db(self) -> float:
        """How far the differences between images stand above the error, dB of power."""
        count = max(self.images, 1)
        signal = float((self._squares / count - np.square(self._sum / count)).mean())
        noise = float((self._noise / count).mean())
        return 10 * math.log10(max(signal, TINY) / max(noise, QUIET * signal, TINY))
