"""Percentiles and intervals against textbook values, scipy and simulations."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from zoo.profiling.stats import median_interval, paired_shift, summarize


def test_summary_of_the_numbers_1_to_100():
    summary = summarize(list(range(100, 0, -1)))
    assert summarize(list(range(63))).p90 is None
    assert summary.p50 == 50.5
    assert summary.p90 == pytest.approx(90.1)
    assert summary.p99 is None, "too few"
    assert summarize(list(range(1000, 0, -1))).p99 == pytest.approx(990.01)
    assert (summary.min, summary.n) == (1, 100)
    assert summary.spread == pytest.approx((75.25 - 25.75) / 50.5)
    assert (summary.low, summary.high) == (40, 61)  # ranks 40 and 61 in tables of the sign test


def test_an_outlier_changes_neither_the_median_nor_its_interval():
    normal = summarize([1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9])
    outlier = summarize([1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 99.0])
    assert (normal.p50, normal.low, normal.high) == (outlier.p50, outlier.low, outlier.high)


@pytest.mark.parametrize(("n", "ranks"), [(6, (1, 6)), (10, (2, 9)), (20, (6, 15)), (50, (18, 33))])
def test_ranks_of_the_interval_match_published_tables(n, ranks):
    ordered = np.arange(1, n + 1, dtype=float)
    assert median_interval(ordered) == ranks


def test_fewer_than_six_samples_have_no_interval():
    assert median_interval(np.arange(5.0)) is None
    assert summarize([3.0]).low is None


def test_ranks_of_the_interval_are_binomial_quantiles():
    for n in (*range(6, 200), 999, 1000, 1001, 1500, 20_000):
        interval = median_interval(np.arange(1, n + 1, dtype=float))
        assert interval is not None
        assert interval[0] == scipy_stats.binom.ppf(0.025, n, 0.5), n


@pytest.mark.slow
def test_the_interval_contains_the_median_in_at_least_95_percent_of_runs():
    generator = np.random.default_rng(3)
    samples = np.sort(generator.lognormal(0, 1, (4000, 25)), axis=1)
    covered = [low <= 1.0 <= high for low, high in map(median_interval, samples)]  # type: ignore[misc]
    assert 0.945 <= np.mean(covered) <= 0.985


@pytest.mark.parametrize("n", [8, 20, 60])
def test_the_interval_of_a_shift_agrees_with_wilcoxons_test(n):
    differences = np.random.default_rng(n).normal(0.3, 1, n)
    centre, interval = paired_shift(differences)
    assert interval is not None
    low, high = interval
    assert low < centre < high

    def p(value: float) -> float:
        return scipy_stats.wilcoxon(
            differences - value, method="exact" if n < 50 else "approx"
        ).pvalue

    inside, outside = 0.02 * (high - low), 0.15 * (high - low)
    assert p(low + inside) > 0.045
    assert p(high - inside) > 0.045
    assert p(low - outside) < 0.05
    assert p(high + outside) < 0.05


def test_few_differences_have_a_shift_but_no_interval():
    assert paired_shift(np.array([1.0, 2.0, 6.0])) == (2.75, None)
