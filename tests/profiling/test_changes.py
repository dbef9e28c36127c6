"""Comparing two files of records: ratios, verdicts, matching of cases, and the command."""

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from synthetic import noisy, record

import zoo
from zoo.cli import execute as main
from zoo.profiling.results import Comparison
from zoo.profiling.stats import summarize
from zoo.reports.changes import Ratio, changes, notes, outcome, ratio, table
from zoo.reports.claims import TOLERANCE


def times(seconds: float, noise: float, seed: int, n: int = 50) -> dict:
    generator = noisy(seconds, noise, seed)
    summary = summarize(np.array([next(generator) for _ in range(n)]))
    return {"p50_ms": summary.p50, "low_ms": summary.low, "high_ms": summary.high}


def verdicts(b: float, noise: float, n: int = 50, runs: int = 300) -> list[str]:
    return [
        ratio(
            record(**times(1.0, noise, 2 * seed, n)), record(**times(b, noise, 2 * seed + 1, n))
        ).verdict
        for seed in range(runs)
    ]


def test_a_difference_of_one_percent_in_five_percent_noise_is_not_reported():
    assert verdicts(1.01, 0.05, n=20).count("no difference") >= 295


def test_a_difference_of_ten_percent_in_five_percent_noise_is_reported():
    assert verdicts(1.10, 0.05).count("slower") >= 295
    assert verdicts(1 / 1.12, 0.05).count("faster") >= 295


def test_the_interval_contains_the_true_ratio_in_about_95_percent_of_runs():
    hits = 0
    for seed in range(400):
        found = ratio(record(**times(1.0, 0.1, 2 * seed)), record(**times(1.3, 0.1, 2 * seed + 1)))
        assert found.low < found.value < found.high
        hits += found.low <= 1.3 <= found.high
    assert hits >= 0.93 * 400


def test_ratio_and_interval_match_a_hand_calculation():
    a = record(p50_ms=10.0, low_ms=10.0, high_ms=10.0)
    b = record(p50_ms=12.0, low_ms=11.0, high_ms=13.0)
    found = ratio(a, b)  # only B has an uncertainty
    assert (found.value, found.low, found.high) == pytest.approx((1.2, 1.1, 1.3))
    assert found.verdict == "slower"
    assert ratio(b, a).verdict == "faster"
    assert (ratio(b, a).low, ratio(b, a).high) == pytest.approx((1 / 1.3, 1 / 1.1))


def test_no_difference_within_the_tolerance_or_without_an_interval():
    exact = {"low_ms": 10.0, "high_ms": 10.0, "p50_ms": 10.0}
    near = 10.0 * (1 + 0.9 * TOLERANCE)
    close = record(p50_ms=near, low_ms=near, high_ms=near)
    assert ratio(record(**exact), close).verdict == "no difference"
    few = record(p50_ms=99.0, low_ms=None, high_ms=None)
    assert ratio(record(**exact), few).verdict == "no difference"
    assert str(ratio(record(**exact), few)) == "9.900"


def test_cases_are_matched_by_model_arguments_input_variant_and_runtime():
    a = [record(model=name) for name in ("one", "two", "three")]
    b = [record(model=name) for name in ("two", "one", "four")]
    found = changes(a, b)
    assert [(c.a["model"], c.b["model"]) for c in found.both] == [("one", "one"), ("two", "two")]
    assert [r["model"] for r in found.only_a] == ["three"]
    assert [r["model"] for r in found.only_b] == ["four"]
    assert not any(c.settings or c.counts for c in found.both)
    other = {"fused": True, "input_size": [2, 3, 224, 224], "runtime": "compile", "args": {"a": 1}}
    for key, value in other.items():
        assert changes([record()], [record(**{key: value})]).both == []


def test_equal_settings_are_matched_first_and_different_ones_are_reported():
    a = [record(threads=1), record(threads=2)]
    b = [record(threads=2), record(threads=4)]
    found = changes(a, b)
    pairs = sorted((c.a["threads"], c.b["threads"], c.settings) for c in found.both)
    assert pairs == [(1, 4, ("threads",)), (2, 2, ())]
    assert "warning: threads differ: 1 and 4" in notes(found, a, b)


def test_ambiguous_settings_are_not_matched():
    found = changes([record(threads=1), record(threads=2)], [record(threads=4)])
    assert (len(found.both), len(found.only_a), len(found.only_b)) == (0, 2, 1)


def test_a_different_count_is_reported_as_a_changed_model():
    a, b = [record()], [record(macs=5)]
    found = changes(a, b)
    assert found.both[0].counts == ("macs",)
    assert "warning: macs differ, so these models have changed: net" in notes(found, a, b)


def test_machines_and_versions_are_listed_and_the_last_repetition_is_used():
    a = [record(p50_ms=1.0), record()]
    b = [record(machine={"cpu": "C", "cores": 4}, versions={"torch": "2.16"})]
    found = changes(a, b)
    assert found.both[0].a["p50_ms"] == 12.346
    lines = notes(found, a, b)
    assert lines[0] == "A: A, B, 2 cores, zoo 0.1.0, torch 2.15.0"
    assert lines[1] == "B: C, 4 cores, torch 2.16"
    assert lines[-1] == "A: ignored 1 earlier measurement of the same cases"


def write(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return str(path)


def test_the_compare_command(tmp_path, capsys):
    exact = {"low_ms": 10.0, "high_ms": 10.0, "p50_ms": 10.0}
    a = [record(**exact, model=name) for name in ("up", "down", "same", "gone")]
    factors = {"up": 1.2, "down": 0.8, "same": 1.001, "new": 1.0}
    b = [
        record(model=name, **{key: value * factor for key, value in exact.items()})
        for name, factor in factors.items()
    ]
    files = [write(tmp_path / name, rows) for name, rows in (("a.jsonl", a), ("b.jsonl", b))]
    assert main(["compare", *files]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line for line in lines if line.strip()}
    assert rows["up"].split()[-4:] == ["1.200", "[1.200,", "1.200]", "slower"]
    assert rows["down"].rstrip().endswith("faster")
    assert rows["same"].rstrip().endswith("no difference")
    assert "all: variant unfused, runtime eager, input 1x3x224x224" in lines
    assert [line.split()[0] for line in lines if "[" in line][:3] == [
        "up",
        "down",
        "same",
    ]
    assert "1 slower, 1 faster, 1 no difference" in "\n".join(lines)
    assert "only in A: gone unfused eager 1x3x224x224" in lines
    assert "only in B: new unfused eager 1x3x224x224" in lines


def test_the_rule_is_stated_once_and_with_its_number(tmp_path, capsys):
    files = [write(tmp_path / name, [record()]) for name in ("a.jsonl", "b.jsonl")]
    assert main(["compare", *files]) == 0
    assert f"more than {100 * TOLERANCE:g} % away from 1" in capsys.readouterr().out
    page = (Path(__file__).parents[2] / "docs" / "benchmarking.md").read_text("utf-8")
    assert f"more than {100 * TOLERANCE:g} % away from 1" in " ".join(page.split())
    assert Ratio(1.0, 0.9, 1.1).tolerance == TOLERANCE
    summary = summarize([1.0])
    assert Comparison(1.0, None, None, 1, summary, summary).tolerance == TOLERANCE


def test_wide_intervals_are_said(capsys):
    a = record(p50_ms=10.0, low_ms=8.0, high_ms=11.0)
    found = changes([a], [record(p50_ms=10.0)])
    assert outcome(found)[1].startswith("! 1 of 1 with an interval wider than ±10 %")
    assert len(outcome(changes([record()], [record()]))) == 1


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_the_terminal(width):
    a = [record(model="wavemix_seg_192_16_l3_cityscapes"), record(runtime="onnxruntime")]
    slow = {"p50_ms": 50.0, "low_ms": 49.0, "high_ms": 90.0}
    b = [{**r, **slow, "threads": 7, "params": 3} for r in a]
    console = Console(width=width)
    with console.capture() as capture:
        console.print(table(changes(a, b), width))
    shown = capture.get().splitlines()
    assert max(map(len, shown)) <= width
    assert "slower" in capture.get()
    assert ("differ" in shown[0]) == (width == 120)


def test_long_lists_are_shortened():
    found = changes([record(model=f"m{i}") for i in range(30)], [])
    assert outcome(found)[1].endswith("; and 10 more")


@pytest.mark.parametrize("missing", [0, 1])
def test_a_missing_file_is_an_error(missing, tmp_path, capsys):
    files = [write(tmp_path / "a.jsonl", [record()]), write(tmp_path / "b.jsonl", [record()])]
    files[missing] = str(tmp_path / "none.jsonl")
    assert main(["compare", *files]) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}/none.jsonl does not exist")


def test_files_without_a_common_model_are_an_error(tmp_path):
    from zoo.reports.changes import compare_files

    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for file, name in zip(files, ("one", "two"), strict=True):
        write(file, [record(model=name)])
    with pytest.raises(zoo.BadInput, match="no measurement of the same model"):
        compare_files(*files)
