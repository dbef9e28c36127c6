"""Predict latencies from counts and the speed of the machine, and learn from measured ones.

The first prediction is a roofline: MACs at the rate of a matrix product plus bytes at the rate of a
copy. The logarithm of measured / roofline is then a Gaussian process over the candidates: those of
the same runtime, family and model deviate alike. So each measurement improves the predictions of
its relatives, and a prediction comes with its uncertainty.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from zoo.picking.candidates import Candidate
from zoo.profiling.layers import Roofline

# Standard deviations of the logarithm of measured / roofline. In results/models.jsonl, it varies by
# 0.2 to 0.4 among all models of a runtime, and by 0.1 within a family.
_OF_ALL, _OF_FORM, _OF_FAMILY, _OF_MODEL, _OF_ONE = 0.5, 0.3, 0.3, 0.1, 0.08


class Predictor:
    """Predicts the latency of each candidate.

    Args:
        candidates: All candidates of a search.
        limits: The measured limits of the machine.
    """

    def __init__(self, candidates: Sequence[Candidate], limits: Roofline) -> None:
        self.candidates = list(candidates)
        self._index = {candidate: number for number, candidate in enumerate(self.candidates)}
        self._base = np.log([roofline_ms(candidate, limits) for candidate in self.candidates])
        self._covariance = _covariance(self.candidates)
        self._measured: dict[int, float] = {}
        self._update()

    def learn(self, candidate: Candidate, ms: float) -> None:
        """Take a measured latency into account."""
        number = self._index[candidate]
        self._measured[number] = math.log(ms) - float(self._base[number])
        self._update()

    def ms(self, candidate: Candidate) -> float:
        """Return the predicted median latency in ms."""
        return math.exp(self._mean[self._index[candidate]])

    def chance(self, candidate: Candidate, limit_ms: float) -> float:
        """Return the probability that a candidate takes at most `limit_ms`."""
        number = self._index[candidate]
        deviation = NormalDist(float(self._mean[number]), float(self._deviation[number]))
        return deviation.cdf(math.log(limit_ms))

    def _update(self) -> None:
        variance = np.diag(self._covariance)
        self._mean, self._deviation = self._base, np.sqrt(variance)
        if self._measured:
            known = list(self._measured)
            noise = _OF_ONE**2 * np.eye(len(known))
            across = self._covariance[:, known]
            weights = np.linalg.solve(self._covariance[np.ix_(known, known)] + noise, across.T).T
            self._mean = self._base + weights @ np.array(list(self._measured.values()))
            rest = variance - np.sum(weights * across, axis=1)
            self._deviation = np.sqrt(np.maximum(rest, 0) + _OF_ONE**2)


def roofline_ms(candidate: Candidate, limits: Roofline) -> float:
    """Return the time of a candidate in ms if it computed and moved data at the machine's rates."""
    compute = candidate.macs / (limits.gmacs_per_s * 1e9)
    return 1e3 * (compute + candidate.moved_bytes / (limits.gbytes_per_s * 1e9))


def _covariance(candidates: Sequence[Candidate]) -> np.ndarray:
    total = np.full((len(candidates), len(candidates)), _OF_ALL**2)
    for value, share in (
        (lambda c: c.form, _OF_FORM),
        (lambda c: c.family, _OF_FAMILY),
        (lambda c: c.model, _OF_MODEL),
    ):
        values = np.array([value(candidate) for candidate in candidates])
        total += share**2 * (values[:, None] == values[None, :])
    return total
