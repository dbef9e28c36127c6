"""A simulated machine: it times candidates without building a model."""

import contextlib
import math

import numpy as np

from zoo.picking.predict import roofline_ms
from zoo.profiling.layers import Roofline

LIMITS = Roofline(gmacs_per_s=45.0, gbytes_per_s=9.0)


class FakeTimer:
    """Times candidates by a formula with deviations of runtimes, families and models.

    Args:
        seed: Of the deviations and the noise.
        noise: Relative standard deviation of a call; one call in 50 takes three times as long.
        broken: Models that cannot be built.
    """

    def __init__(self, seed=0, noise=0.03, broken=()):
        self.seed, self.noise, self.broken = seed, noise, broken
        self.generator = np.random.default_rng(seed)
        self.opened, self.calls = [], 0

    def ms(self, candidate):
        """Return the true median."""
        shift = 0.0
        for share, key in ((0.35, candidate.form), (0.3, candidate.family), (0.1, candidate.model)):
            digits = [self.seed, *map(ord, key)]
            shift += share * float(np.random.default_rng(digits).standard_normal())
        return roofline_ms(candidate, LIMITS) * math.exp(shift - 0.2 - 0.6 * candidate.int8)

    @contextlib.contextmanager
    def open(self, candidate):
        if candidate.model in self.broken:
            raise RuntimeError("it cannot be built")
        self.opened.append(candidate)

        def calls(count):
            self.calls += count
            noise = self.noise * (np.abs(self.generator.standard_normal(count)) - 0.67)
            late = np.where(self.generator.random(count) < 0.02, 3.0, 1.0)
            return self.ms(candidate) * (1 + noise) * late

        yield calls
