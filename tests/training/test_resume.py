"""A run that was stopped and continued equals one that was not, bit for bit."""

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

from zoo.cli import run as run_command
from zoo.errors import BadInput, BadWeights
from zoo.training import loop

from .conftest import TINY, assert_same_run, checkpoint_of, resume_run, rows_of, tiny_run

ROOT = Path(__file__).parents[2]


def test_two_and_two_epochs_are_four(whole_run: Path, tmp_path: Path) -> None:
    half = tiny_run(f"train.out={tmp_path}", "train.stop_at_epoch=2")
    assert checkpoint_of(half)["progress"]["epoch"] == 2
    assert resume_run(half) == half
    assert checkpoint_of(half)["progress"]["epoch"] == 4
    assert len(rows_of(half)) == 4
    assert_same_run(whole_run, half)


@pytest.mark.parametrize("update", [1, 4, 6])  # mid-epoch, mid-epoch, after the last batch
def test_signal_leaves_a_checkpoint_that_continues_exactly(
    update: int, whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    original = loop.Loop._update

    def signalled(self: loop.Loop) -> None:
        original(self)
        if self.place.update + 1 == update:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(loop.Loop, "_update", signalled)
    with pytest.raises(SystemExit) as exit:
        tiny_run(f"train.out={tmp_path}")
    monkeypatch.undo()
    assert exit.value.code == 130
    (folder,) = tmp_path.iterdir()
    assert f"python train.py train.resume={folder}" in capsys.readouterr().out
    assert checkpoint_of(folder)["progress"]["update"] == update
    resume_run(folder)
    assert_same_run(whole_run, folder)


def test_signal_while_validating(
    whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = loop.Loop._stop_while_validating

    def signalled(self: loop.Loop) -> None:
        if self.place.epoch == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self)

    monkeypatch.setattr(loop.Loop, "_stop_while_validating", signalled)
    with pytest.raises(SystemExit) as exit:
        tiny_run(f"train.out={tmp_path}")
    monkeypatch.undo()
    assert exit.value.code == 143
    (folder,) = tmp_path.iterdir()
    place = checkpoint_of(folder)["progress"]
    assert (place["epoch"], place["batch"]) == (1, 5)
    resume_run(folder)
    assert_same_run(whole_run, folder)


def test_killed_process_continues_exactly(whole_run: Path, tmp_path: Path) -> None:
    """The command itself: SIGTERM at some moment, exit code, message, and on with it."""
    command = [sys.executable, "train.py", *TINY, f"train.out={tmp_path}"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    seen = ""
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            seen += line
            if line.startswith("epoch 1/"):
                process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 143, seen
    (folder,) = tmp_path.iterdir()
    assert re.search(rf"stopped by SIGTERM in epoch \d.*train\.resume={folder}", seen), seen
    assert 1 <= checkpoint_of(folder)["progress"]["epoch"] < 4
    command = [sys.executable, "train.py", f"train.resume={folder}"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "going on with" in done.stdout
    assert_same_run(whole_run, folder)


def test_resuming_a_finished_run(whole_run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(whole_run, tmp_path / "copy")
    with pytest.raises(BadInput, match=r"has finished its 4 epochs; give train\.epochs"):
        resume_run(copy)
    resume_run(copy, "train.epochs=5")
    assert checkpoint_of(copy)["progress"]["epoch"] == 5
    assert rows_of(copy)[:4] == rows_of(whole_run)
    assert "train.epochs was 4 and is 5 now" in (copy / "train.log").read_text()


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
def test_conflicts_are_refused(override: str, key: str, whole_run: Path) -> None:
    with pytest.raises(BadInput, match=rf"^{key}=.* conflicts with train\.resume") as error:
        resume_run(whole_run, override)
    assert "train.epochs" in str(error.value)  # says what may change
    assert "\n" not in str(error.value)


def test_asking_for_what_the_run_has_is_no_conflict(whole_run: Path) -> None:
    with pytest.raises(BadInput, match="has finished"):
        resume_run(whole_run, "model=mobilenetv2_035", "train.batch_size=8", "data=digits")


def test_resume_from_the_best_checkpoint_drops_later_rows(whole_run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(whole_run, tmp_path / "copy")
    best = checkpoint_of(copy, "best")["progress"]["epoch"]
    given = [f"train.resume={copy / 'checkpoints' / 'best.ckpt'}"]
    if best == 4:
        given.append("train.epochs=5")
    run_command("train", given)
    assert [row["epoch"] for row in rows_of(copy)] == [str(n) for n in range(1, 5 + (best == 4))]


def test_what_is_no_checkpoint(tmp_path: Path, whole_run: Path) -> None:
    with pytest.raises(BadWeights, match="no checkpoint|not a checkpoint"):
        resume_run(tmp_path)
    weights = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(1)}, weights)
    with pytest.raises(BadWeights, match="not a checkpoint of train.py"):
        resume_run(weights)
    whole = (whole_run / "checkpoints" / "last.ckpt").read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadWeights, match="truncated"):
        resume_run(weights)


@pytest.fixture
def interrupting() -> Iterator[None]:
    """Let SIGINT interrupt, as in a terminal; what is started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupting")
def test_second_signal_acts_as_usual() -> None:
    from zoo.training.interrupt import Interrupt

    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.signal is signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
