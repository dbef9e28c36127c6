"""Ends of a run: patience, a time limit, what selects the best epoch, and a dry run."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from zoo.command_line.composition import run as run_command
from zoo.errors import BadInput
from zoo.settings import TrainConfig
from zoo.training import loop, stopping
from zoo.training.checks import check_train, parse_duration
from zoo.training.classification import Classification

from .conftest import assert_equal, checkpoint_of, resume_run, rows_of

SMALL = (
    *("model=simplenet_cifar_310k", "data.image_size=16", "data.num_workers=0"),
    *("train.batch_size=8", "train.limit_train_batches=3", "train.limit_val_batches=1"),
    *("train.epochs=4", "train.warmup_epochs=0", "train.loggers=[csv]", "train.log_every=1"),
)


def small_run(out: Path, *more: str) -> Path:
    return run_command("train", [*SMALL, f"train.out={out}", *more])


def assert_same_weights(a: Path, b: Path) -> None:
    ours, theirs = checkpoint_of(a), checkpoint_of(b)
    for key in ("state_dict", "optimizer", "metrics"):
        assert_equal(ours[key], theirs[key], key)
    assert rows_of(a) == rows_of(b)


@pytest.fixture(scope="module")
def four_epochs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(tmp_path_factory.mktemp("whole"))


def with_scores(monkeypatch: pytest.MonkeyPatch, *scores: float) -> None:
    """Let the validations of the epochs have these scores."""

    def score(self: loop.Loop, result: Any) -> float:
        return scores[self.progress.epoch - 1]

    original = loop.Loop._end_epoch

    def end_epoch(self: loop.Loop, result: Any, rate: float) -> None:
        self.task.selection_score = lambda result, best: score(self, result)  # type: ignore
        try:
            original(self, result, rate)
        finally:
            del self.task.selection_score

    monkeypatch.setattr(loop.Loop, "_end_epoch", end_epoch)


def test_patience_ends_a_run_and_more_patience_continues_it_exactly(
    four_epochs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    with_scores(monkeypatch, 0.5, 0.4, 0.5, 0.6)
    folder = small_run(tmp_path, "train.patience=2")
    progress = checkpoint_of(folder)["progress"]
    assert (progress["epoch"], progress["best_epoch"]) == (3, 1)
    printed = capsys.readouterr().out
    assert "ended after epoch 3: no better epoch in train.patience=2" in printed
    assert f"zoo train train.resume={folder} train.patience=<more>" in printed
    with pytest.raises(BadInput, match=r"has ended after 3 epochs .*give train\.patience=<more>"):
        resume_run(folder)
    resume_run(folder, "train.patience=3")
    assert checkpoint_of(folder)["progress"]["best_epoch"] == 4
    assert_same_weights(folder, four_epochs)


def test_a_time_limit_ends_a_run_within_an_epoch_and_counts_the_time_before_a_resume(
    four_epochs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(stopping.time, "monotonic", lambda: float(next(ticks)))
    folder = small_run(tmp_path, "train.max_time=12s")
    first = checkpoint_of(folder)["progress"]
    assert 0 < first["update"] < 12
    assert first["batch"] > 0  # within an epoch
    assert first["seconds"] >= 12
    with pytest.raises(BadInput, match=r"train\.max_time=12s is over.*train\.max_time=<more>"):
        resume_run(folder)
    ticks = itertools.count()
    resume_run(folder, "train.max_time=15s")
    second = checkpoint_of(folder)["progress"]
    assert first["update"] < second["update"] < 12
    resume_run(folder, "train.max_time=1h")
    assert_same_weights(folder, four_epochs)


def test_without_a_time_limit_checkpoints_have_no_time(four_epochs: Path) -> None:
    assert checkpoint_of(four_epochs)["progress"]["seconds"] == 0


def test_a_complete_epoch_is_validated_before_the_time_limit_ends_the_run() -> None:
    train = TrainConfig(max_time="10s", patience=3)
    assert stopping.reason_to_end(train, 2, 1, is_over=True) == "train.max_time=10s is over"
    assert stopping.reason_to_end(train, 3, 1, is_over=False) == ""
    assert "patience=3" in stopping.reason_to_end(train, 4, 1, is_over=False)
    clock = iter([100.0, 105.0, 109.0, 110.0])
    limit = stopping.TimeLimit(train, 0.5, clock=lambda: next(clock))
    assert [limit.is_over for _ in range(3)] == [False, False, True]


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("45m", 2700), ("1h30m", 5400), ("1.5h", 5400)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration("train.max_time", text) == seconds


@pytest.mark.parametrize("text", ["30", "0s", "m", "1x", "-5m", "30m1h", "", "1.2.3s"])
def test_other_durations_are_errors(text: str) -> None:
    with pytest.raises(BadInput, match=r"train\.max_time.*(45m|empty)"):
        check_train(TrainConfig(max_time=text))


@pytest.mark.parametrize(("best", "better"), [("loss", min), ("macro_f1", max), ("top1", max)])
def test_the_best_epoch_is_that_of_the_chosen_metric(best: str, better: Any) -> None:
    class Result:
        score = 0.25

        def __init__(self, **values: float) -> None:
            self.values = {f"val/{name}": value for name, value in values.items()}

        def metrics(self) -> dict[str, float]:
            return self.values

    task = Classification()
    results = [Result(**{best: value}) for value in (1.5, 0.75)]
    chosen = max(results, key=lambda result: task.selection_score(result, best))
    assert chosen.values[f"val/{best}"] == better(1.5, 0.75)
    assert task.selection_score(results[0], None) == 0.25
    assert task.format_selection(-0.75, "loss") == "loss 0.7500"
    assert task.format_selection(0.75, "macro_f1") == "macro_f1 75.00%"


def test_a_run_selected_by_its_loss_resumes_and_says_so(tmp_path: Path, capsys: Any) -> None:
    folder = small_run(tmp_path, "train.best=loss", "train.epochs=2", "train.stop_at_epoch=1")
    first = checkpoint_of(folder)
    assert first["progress"]["best"] == -first["metrics"]["val/loss"]
    resume_run(folder)
    losses = [float(row["val/loss"]) for row in rows_of(folder)]
    progress = checkpoint_of(folder)["progress"]
    assert progress["best"] == -min(losses)
    assert f"best loss {min(losses):.4f} in epoch" in capsys.readouterr().out


def test_an_unknown_metric_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"unknown train\.best 'acc'.*loss, macro_f1, top1"):
        small_run(tmp_path, "train.best=acc")


def test_a_dry_run_keeps_nothing_and_says_what_would_be_trained(
    tmp_path: Path, capsys: Any
) -> None:
    done = run_command("train", [*SMALL, f"train.out={tmp_path / 'runs'}", "train.dry_run=true"])
    assert done is None
    assert not list(tmp_path.iterdir())
    printed = capsys.readouterr().out
    assert "digits: 1437 + 360 images" in printed
    assert "simplenet_cifar_310k: 312,362 parameters" in printed
    assert "4 epochs of 3 batches, 12 updates of 8 images" in printed
    assert "evaluate with" not in printed
