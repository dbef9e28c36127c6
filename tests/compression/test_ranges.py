"""Ranges of activations from a histogram."""

import numpy as np
import pytest

from zoo.compression.ranges import METHODS, Histogram


def histogram(*parts) -> Histogram:
    found = Histogram()
    for part in parts:
        found.add(np.asarray(part, np.float32))
    return found


def squared_error(values: np.ndarray, limits) -> float:
    scale = (limits[1] - limits[0]) / 255
    zero = np.round(-limits[0] / scale)
    rounded = (np.clip(np.round(values / scale) + zero, 0, 255) - zero) * scale
    return float(np.square(rounded - values).sum())


def test_the_order_of_batches_does_not_matter():
    parts = [np.linspace(0, 1, 99), [100.0, -3.0], [1e-3] * 5, [np.nan, np.inf], []]
    first, second = histogram(*parts), histogram(*reversed(parts))
    assert (first.counts == second.counts).all()
    assert first.counts.sum() == 106
    assert (first.low, first.high, first.limit) == (-3.0, 100.0, 128.0)


@pytest.mark.parametrize("method", METHODS)
def test_zero_is_in_every_range(method):
    assert histogram([2.0, 3.0]).range(method)[0] == 0.0
    assert histogram([0.0, 0.0]).range(method) == (0.0, 0.0)
    assert Histogram().range(method) == (0.0, 0.0)


def test_outliers_are_cut_off_where_that_pays():
    generator = np.random.default_rng(0)
    values = np.append(np.abs(generator.standard_normal(300_000)), [30.0]).astype(np.float32)
    found = histogram(values)
    ranges = {method: found.range(method) for method in METHODS}
    assert ranges["minmax"] == (0.0, 30.0)
    assert 3.5 < ranges["percentile"][1] < 5, "all but one in 10,000"
    assert ranges["mse"][1] < 25
    assert squared_error(values, ranges["mse"]) < squared_error(values, ranges["minmax"])
    assert ranges["entropy"][1] < 20


def test_the_least_squared_error_of_all_candidates_is_taken():
    values = np.random.default_rng(1).laplace(size=20_000).astype(np.float32)
    found = histogram(values)
    best = squared_error(values, found.range("mse"))
    for share in np.linspace(0.2, 1, 30):
        assert best <= 1.01 * squared_error(values, (share * found.low, share * found.high))
