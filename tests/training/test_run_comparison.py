"""`zoo compare` of training runs: paired intervals, and what it refuses to compare."""

import csv
import re
import shlex
from pathlib import Path

import pytest
import yaml

from zoo.cli import execute
from zoo.training import checkpoint
from zoo.training.run_comparison import Difference, RunComparison, difference

SETTINGS = {
    "model": {"name": "cct_2_3x2_32", "kwargs": {}},
    "data": {"name": "digits", "num_workers": 0, "val_split": None, "train_images": None},
    "train": {
        "seed": 0,
        "out": "runs",
        "epochs": 2,
        "mixup": 0.0,
        "label_smoothing": 0.0,
        "patience": None,
        "best": None,
    },
}
T2, T3 = 4.302653, 3.182446  # 97.5 % points of Student's t with 2 and 3 degrees of freedom (tables)


def write_run(folder, seed, top1, *, splits=None, rows=None, **changes):
    """Write a run folder whose last epoch has `top1`; `changes` are settings: train__mixup=0.2."""
    settings = {group: dict(values) for group, values in SETTINGS.items()}
    settings["train"] |= {"seed": seed, "out": str(folder)}
    for key, value in changes.items():
        group, name = key.split("__")
        settings[group][name] = value
    run = folder / f"run_{seed}"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    rows = [0.9, top1] if rows is None else rows  # the best epoch is not the last
    with (run / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["epoch", "update", "val/loss", "val/top1", "val/recall/0"])
        writer.writerows([n, 10 * n, 1 - value, value, ""] for n, value in enumerate(rows, 1))
    if splits is not None:
        checkpoint.save({"data": {"splits": splits}}, run / "checkpoints" / "last.ckpt")
    return run


@pytest.fixture
def groups(tmp_path):
    """Two folders of three runs, which differ in nothing but one value per seed."""

    def write(a=(0.70, 0.72, 0.74), b=(0.71, 0.74, 0.77), of_a=None, **of_b):
        for name, values, changes in (("a", a, of_a or {}), ("b", b, of_b)):
            for seed, value in enumerate(values):
                write_run(tmp_path / name, seed, value, **changes)
        return str(tmp_path / "a"), str(tmp_path / "b")

    return write


def output(capsys, *words):
    assert execute(["compare", *words]) == 0
    return capsys.readouterr().out


def refusal(capsys, *words):
    assert execute(["compare", *words]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    return printed


@pytest.mark.parametrize(
    ("steps", "mean", "half", "better"),
    [
        ([1.0, 2.0, 3.0], 2.0, T2 * 1.0 / 3**0.5, None),
        ([1.0, 2.0, 2.0, 3.0], 2.0, T3 * (2 / 3) ** 0.5 / 2, "B"),
        ([-1.0, -2.0, -2.0, -3.0], -2.0, T3 * (2 / 3) ** 0.5 / 2, "A"),
        ([1.0, 3.0], 2.0, 12.706205, None),  # 12.706205 * sqrt(2) / sqrt(2)
        ([0.0, 0.0, 0.0], 0.0, 0.0, None),  # the same runs twice
    ],
)
def test_intervals_match_a_hand_calculation(steps, mean, half, better):
    a = [50.0, 61.0, 47.0, 80.0][: len(steps)]  # the spread between seeds must not count
    found = difference(a, [x + step for x, step in zip(a, steps, strict=True)])
    assert (found.mean, found.half) == pytest.approx((mean, half), rel=1e-6, abs=1e-12)
    assert (found.better, found.seeds) == (better, len(steps))


def test_a_lower_loss_is_better():
    assert difference([1.0, 1.1, 1.2], [0.5, 0.61, 0.7], lower_is_better=True).better == "B"
    assert difference([0.5, 0.61, 0.7], [1.0, 1.1, 1.2], lower_is_better=True).better == "A"


@pytest.mark.parametrize(
    ("found", "metric", "words"),
    [
        (Difference(1.2, 0.4, 5), "top1", "B is better by 1.20 ± 0.40 points"),
        (Difference(-0.1, 0.5, 5), "top1", "no difference shown: B - A is -0.10 ± 0.50 points"),
        (Difference(0.3, 0.1, 5, lower_is_better=True), "loss", "A is better by 0.3000 ± 0.1000"),
    ],
)
def test_verdicts_in_words(found, metric, words):
    sentence = RunComparison(metric, [], [], [], found, []).sentence()
    assert sentence == f"{metric}: {words} (95 % interval of 5 paired seeds)"


def test_the_last_epochs_of_equal_seeds_are_compared(groups, capsys):
    a, b = groups((0.70, 0.72, 0.71, 0.75), (0.71, 0.74, 0.73, 0.78), train__mixup=0.2)
    text = output(capsys, a, b, "--change", "train.mixup")
    assert "compared: train.mixup (0.0 in A, 0.2 in B)" in text
    rows = [line.split() for line in text.splitlines()]
    assert ["1", "72.00", "74.00", "+2.00"] in rows
    assert ["mean", "72.00", "74.00", "+2.00"] in rows
    verdict = "top1: B is better by 2.00 ± 1.30 points (95 % interval of 4 paired seeds)"
    assert text.splitlines()[-1] == verdict


def test_the_command_of_the_page_runs(groups, tmp_path, capsys, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "comparing.md").read_text("utf-8")
    (line,) = re.findall(r"(?m)^zoo compare (.*)$", page)
    a, b = groups(train__label_smoothing=0.1)
    (tmp_path / "runs").mkdir()
    for folder, name in ((a, "plain"), (b, "smooth")):
        Path(folder).rename(tmp_path / "runs" / name)
    monkeypatch.chdir(tmp_path)
    text = output(capsys, *shlex.split(line))
    assert "compared: train.label_smoothing (0.0 in A, 0.1 in B)" in text


def test_no_difference_is_said_and_seeds_without_a_partner_are_left_out(groups, capsys):
    a, b = groups(b=(0.71, 0.74, 0.77, 0.99))
    text = output(capsys, a, b)
    assert "left out, only in B: seeds 3" in text
    assert "top1: no difference shown: B - A is +2.00 ± 2.48 points" in text
    assert "warning: 7 of 7 runs do not say which images they used" in text


def test_another_metric(groups, capsys):
    a, b = groups((0.70, 0.72, 0.71, 0.75), (0.71, 0.74, 0.73, 0.78))
    assert "loss: B is better by 0.0200 ± 0.0130 (95" in output(capsys, a, b, "--metric", "loss")
    assert "unknown metric 'lose'; did you mean 'loss'" in refusal(capsys, a, b, "--metric", "lose")


@pytest.mark.parametrize(
    ("changes", "words", "message"),
    [
        (
            {"train__mixup": 0.2, "model__kwargs": {"x": 1}},
            ["--change", "train.mixup"],
            r'differ in model.kwargs \(\{\} in A, \{"x": 1\} in B\); .* --change model.kwargs$',
        ),
        (
            {"data__name": "cifar10"},
            ["--change", "data.name"],
            "validated on other images: data.name",
        ),
        ({"data__val_split": 0.2}, ["--change", "*"], "validated on other images: data.val_split"),
        ({}, ["--change", "train.mixup"], "--change train.mixup: A and B do not differ in it"),
        (
            {},
            ["--change", "train.mixpu"],
            "unknown setting 'train.mixpu'; did you mean 'train.mixup'",
        ),
    ],
    ids=str,
)
def test_other_differences_are_refused(groups, capsys, changes, words, message):
    assert re.search(message, refusal(capsys, *groups(**changes), *words).strip())


def test_settings_that_change_nothing_may_differ_and_globs_name_several(groups, capsys):
    a, b = groups(data__num_workers=4, train__mixup=0.2, train__best="loss")
    assert "no difference shown" in output(capsys, a, b, "--change", "train.*")


VAL, OTHER = (
    {"train": {"names": "t"}, "val": {"names": "v"}},
    {"train": {"names": "u"}, "val": {"names": "v"}},
)


def test_changed_images_are_refused(groups, capsys):
    a, b = groups(of_a={"splits": VAL}, splits=OTHER)
    assert "have other train images, although the settings are equal" in refusal(capsys, a, b)


def test_numbers_of_training_images_can_be_compared(groups, capsys):
    a, b = groups(of_a={"splits": VAL}, splits=OTHER, data__train_images=100)
    text = output(capsys, a, b, "--change", "data.train_images")
    assert "no difference shown" in text
    assert "warning" not in text


def test_runs_of_one_folder_that_differ_in_more_than_the_seed_are_refused(groups, tmp_path, capsys):
    a, b = groups()
    write_run(tmp_path / "a", 7, 0.9, train__mixup=0.5)
    message = refusal(capsys, a, b)
    assert "differ in more than train.seed: train.mixup (0.0 in run_0, 0.5 in run_7)" in message


def test_two_runs_of_a_seed_are_refused(groups, tmp_path, capsys):
    a, b = groups()
    write_run(tmp_path / "a", 9, 0.9, train__seed=1)
    assert "have the same train.seed=1; move one of them away" in refusal(capsys, a, b)


def test_a_run_that_failed_is_not_left_out_silently(groups, tmp_path, capsys):
    a, b = groups()
    (write_run(tmp_path / "b", 8, 0.9) / "metrics.csv").unlink()
    assert "run_8 has no metrics.csv" in refusal(capsys, a, b)


@pytest.mark.parametrize(
    ("rows", "patience", "is_finished"),
    [
        ([0.5], None, False),
        ([0.5, 0.5], None, True),
        ([0.5, 0.6, 0.6], 1, True),  # no better epoch in one
        ([0.5, 0.6, 0.6], 2, False),
    ],
)
def test_runs_with_epochs_left_are_refused(tmp_path, capsys, rows, patience, is_finished):
    epochs = 2 if patience is None else 9
    for name in "ab":
        for seed in range(2):
            changes = {"train__patience": patience, "train__epochs": epochs}
            write_run(tmp_path / name, seed, 0.5, rows=rows, **changes)
    words = str(tmp_path / "a"), str(tmp_path / "b")
    if is_finished:
        assert "no difference shown" in output(capsys, *words)
    else:
        assert f"has {len(rows)} of {epochs} epochs; finish it" in refusal(capsys, *words)


def test_one_seed_in_common_has_no_interval(groups, tmp_path, capsys):
    a, b = groups(b=(0.7,))
    assert "b has 0: an interval needs at least 2 in both" in refusal(capsys, a, b)
    one = str(tmp_path / "a" / "run_0")
    assert "an interval needs at least 2 in both" in refusal(capsys, one, b)


def test_damaged_runs_are_named(groups, tmp_path, capsys):
    a, b = groups()
    table = tmp_path / "a" / "run_1" / "metrics.csv"
    table.write_text("epoch,val/top1\n2,nan\n")
    assert "b has no" not in refusal(capsys, a, b)
    table.write_text("epoch,val/top1\n2,x\n")
    assert f"{table} is not the table of a run" in refusal(capsys, a, b)
    config = tmp_path / "a" / "run_0" / "config.yaml"
    for text in ("[]", "train: 3", "{", "train: {seed: x}"):
        config.write_text(text)
        assert f"{config} is not the configuration of a run" in refusal(capsys, a, b)


def test_runs_are_not_compared_with_records(groups, tmp_path, capsys):
    a, _ = groups()
    file = str(tmp_path / "a.jsonl")
    assert f"{a} has training runs, but {file} has none" in refusal(capsys, file, a)
    assert "--metric is for folders of training runs" in refusal(
        capsys, file, file, "--metric", "x"
    )


@pytest.mark.parametrize(
    ("path", "message"), [("x" * 300, "is not a path"), ("a\0b", "does not exist")]
)
def test_texts_that_are_no_path_are_refused(path, message, capsys):
    assert message in refusal(capsys, path, path)
