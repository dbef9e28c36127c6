"""The tables of a sweep: means, intervals and paired differences, compared with SciPy."""

import csv
import json
import math

import numpy as np
import pytest
from scipy import stats

from zoo.sweeping.table import write_tables
from zoo.training.run_comparison import half_width

from .fakes import cell

pytestmark = pytest.mark.usefixtures("no_sync")


def finish(sweep, values):
    """Add finished cells: (seed, lr, fold) -> top-1."""
    for (seed, lr, fold), top1 in values.items():
        one = cell(sweep, seed, lr, fold)
        one.add()
        one.finished.mkdir(parents=True)
        result = {"outcome": "finished", "metrics": {"val/top1": top1, "val/loss": 1.0}}
        (one.finished / "result.json").write_text(json.dumps(result))
    write_tables(sweep)
    with (sweep / "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_means_intervals_and_differences_are_those_of_scipy(tmp_path):
    rng = np.random.default_rng(0)
    a, b = 0.5 + rng.random(4) / 2, rng.random(4) / 2
    rows = finish(
        tmp_path,
        {(s, lr, None): float(v[s]) for lr, v in ((0.01, b), (0.1, a)) for s in range(4)},
    )
    assert [row["train.lr"] for row in rows] == ["0.01", "0.1"]
    for row, values in zip(rows, (b, a), strict=True):
        low, high = stats.ttest_1samp(100 * values, 0).confidence_interval(0.95)
        assert float(row["top1"]) == pytest.approx(100 * values.mean())
        assert float(row["half_interval"]) == pytest.approx((high - low) / 2)
    low, high = stats.ttest_rel(100 * b, 100 * a).confidence_interval(0.95)
    assert float(rows[0]["minus_best"]) == pytest.approx((low + high) / 2)
    assert float(rows[0]["half_interval_of_difference"]) == pytest.approx((high - low) / 2)
    assert rows[1]["minus_best"] == ""
    page = (tmp_path / "table.md").read_text()
    assert f"{100 * a.mean():.2f} ± " in page
    assert "paired by seed." in page


def test_only_common_seeds_are_paired_and_an_incomplete_setting_is_not_the_best(tmp_path):
    values = {(s, 0.1, None): 0.5 + s / 100 for s in range(3)}
    values |= {(s, 0.2, None): 0.9 - s / 50 for s in (1, 2)}
    cell(tmp_path, 0, 0.2).add()
    rows = finish(tmp_path, values)
    assert [row["finished"] for row in rows] == ["3", "2"]
    assert rows[0]["minus_best"] == "", "0.2 is not complete"
    steps = [100 * (values[s, 0.2, None] - values[s, 0.1, None]) for s in (1, 2)]
    assert float(rows[1]["minus_best"]) == pytest.approx(np.mean(steps))


def test_folds_are_averaged_over_seeds_and_their_interval_is_corrected(tmp_path):
    rng = np.random.default_rng(1)
    values = rng.random((2, 3))  # seed, fold
    (row,) = finish(
        tmp_path, {(s, 0.1, f): float(values[s, f]) for s in range(2) for f in range(3)}
    )
    means = 100 * values.mean(axis=0)
    deviation = means.std(ddof=1)
    expected = stats.t.ppf(0.975, 2) * deviation * math.sqrt(1 / 3 + (1 / 3) / (2 / 3))
    assert float(row["half_interval"]) == pytest.approx(expected)
    assert float(row["top1"]) == pytest.approx(100 * values.mean())
    assert "over folds" in (tmp_path / "table.md").read_text()


def test_one_value_has_no_interval(tmp_path):
    assert half_width([3.0]) is None
    (row,) = finish(tmp_path, {(0, 0.1, None): 0.5})
    assert (row["top1"], row["half_interval"]) == ("50.0", "")


def test_settings_of_a_machine_make_no_new_setting_and_no_column(tmp_path):
    one = cell(tmp_path, accelerator="cpu", progress=False)
    assert one.setting == cell(tmp_path, accelerator="cuda", progress=True).setting
    assert one.setting != cell(tmp_path, lr=0.2).setting
    assert one.setting == cell(tmp_path, seed=5).setting
    assert one.add()
    assert not cell(tmp_path, accelerator="cuda").add()
