"""A run that is stopped and resumed is bit-identical to an uninterrupted run."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from zoo.command_line.composition import run as run_command
from zoo.errors import BadInput, BadWeights
from zoo.training import loop

from .conftest import TINY, assert_same_run, checkpoint_of, resume_run, rows_of, signal_at, tiny_run

ROOT = Path(__file__).parents[2]


def test_resuming_after_two_epochs_equals_an_uninterrupted_run(
    whole_run: Path, tmp_path: Path
) -> None:
    half = tiny_run(f"train.out={tmp_path}", "train.stop_at_epoch=2")
    assert checkpoint_of(half)["progress"]["epoch"] == 2
    assert resume_run(half) == half
    assert checkpoint_of(half)["progress"]["epoch"] == 4
    assert len(rows_of(half)) == 4
    assert_same_run(whole_run, half)


@pytest.mark.parametrize(
    "update", [1, 4, 6]
)  # within an epoch (1, 4) and after its last update (6)
def test_a_signal_saves_a_checkpoint_that_resumes_exactly(
    update: int, whole_run: Path, tmp_path: Path, capsys: Any
) -> None:
    with signal_at(update):
        tiny_run(f"train.out={tmp_path}")
    (folder,) = tmp_path.iterdir()
    assert f"zoo train train.resume={folder}" in capsys.readouterr().out
    assert checkpoint_of(folder)["progress"]["update"] == update
    resume_run(folder)
    assert_same_run(whole_run, folder)


def test_a_signal_during_validation_saves_a_checkpoint_that_resumes_exactly(
    whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = loop.Loop._stop_while_validating

    def interrupt_and_stop(self: loop.Loop) -> None:
        if self.progress.epoch == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self)

    monkeypatch.setattr(loop.Loop, "_stop_while_validating", interrupt_and_stop)
    with pytest.raises(SystemExit) as exit:
        tiny_run(f"train.out={tmp_path}")
    monkeypatch.undo()
    assert exit.value.code == 143
    (folder,) = tmp_path.iterdir()
    progress = checkpoint_of(folder)["progress"]
    assert (progress["epoch"], progress["batch"]) == (1, 5)
    resume_run(folder)
    assert_same_run(whole_run, folder)


def test_a_script_stopped_by_sigterm_resumes_exactly(
    whole_run: Path, tmp_path: Path, capsys: Any
) -> None:
    """Stop `train.py` with SIGTERM after the first epoch, then resume it in this process."""
    command = [sys.executable, "train.py", *TINY, f"train.out={tmp_path}"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    printed = ""
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            printed += line
            if line.startswith("epoch 1/"):
                process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 143, printed
    (folder,) = tmp_path.iterdir()
    assert re.search(rf"stopped by SIGTERM in epoch \d.*train\.resume={folder}", printed), printed
    assert 1 <= checkpoint_of(folder)["progress"]["epoch"] < 4
    resume_run(folder)
    assert "continuing " in capsys.readouterr().out
    assert_same_run(whole_run, folder)


def test_a_finished_run_resumes_only_with_more_epochs(whole_run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(whole_run, tmp_path / "copy")
    with pytest.raises(BadInput, match=r"has finished its 4 epochs; give train\.epochs"):
        resume_run(copy)
    resume_run(copy, "train.epochs=5")
    assert checkpoint_of(copy)["progress"]["epoch"] == 5
    assert rows_of(copy)[:4] == rows_of(whole_run)
    assert "train.epochs changed from 4 to 5" in (copy / "train.log").read_text()


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("model=mobilenetv2_100", "model.name"),
        ("data.image_size=64", "data.image_size"),
        ("train.lr=1", "train.lr"),
        ("train.batch_size=16", "train.batch_size"),
        ("train.out=elsewhere", "train.out"),
    ],
)
def test_settings_that_conflict_with_the_run_are_rejected(
    override: str, key: str, whole_run: Path
) -> None:
    with pytest.raises(BadInput, match=rf"^{key}=.* conflicts with train\.resume") as error:
        resume_run(whole_run, override)
    assert "train.epochs" in str(error.value)  # one of the keys that may change
    assert "\n" not in str(error.value)


def test_repeating_the_settings_of_the_run_is_not_a_conflict(whole_run: Path) -> None:
    with pytest.raises(BadInput, match="has finished"):
        resume_run(whole_run, "model=mobilenetv2_035", "train.batch_size=8", "data=digits")


def test_resume_from_the_best_checkpoint_drops_later_rows(whole_run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(whole_run, tmp_path / "copy")
    best = checkpoint_of(copy, "best")["progress"]["epoch"]
    overrides = [f"train.resume={copy / 'checkpoints' / 'best.ckpt'}"]
    if best == 4:
        overrides.append("train.epochs=5")
    run_command("train", overrides)
    assert [row["epoch"] for row in rows_of(copy)] == [str(n) for n in range(1, 5 + (best == 4))]


def test_files_that_are_not_run_checkpoints_are_rejected(tmp_path: Path, whole_run: Path) -> None:
    with pytest.raises(BadWeights, match="no checkpoint|not a checkpoint"):
        resume_run(tmp_path)
    weights = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(1)}, weights)
    with pytest.raises(BadWeights, match=r"not a checkpoint of train\.py, so there is no"):
        resume_run(weights)
    whole = (whole_run / "checkpoints" / "last.ckpt").read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadWeights, match="truncated"):
        resume_run(weights)


@pytest.fixture
def sigint_handler() -> Iterator[None]:
    """Install Python's SIGINT handler, which background processes do not have."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.mark.usefixtures("sigint_handler")
def test_a_second_signal_has_its_usual_effect() -> None:
    from zoo.training.interrupt import Interrupt

    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.signal is signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
