"""Helpers and fixtures: training runs of a tiny model with few batches."""

import contextlib
import csv
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from zoo.command_line.composition import run as run_command
from zoo.training import loop

TINY = [
    "model=mobilenetv2_035",
    "model.drop_rate=0.2",
    "data.image_size=32",
    "train.batch_size=8",
    "train.accumulate=2",
    "train.limit_train_batches=5",
    "train.limit_val_batches=2",
    "train.epochs=4",
    "train.warmup_epochs=0.5",
    "train.mixup=0.2",
    "train.cutmix=0.5",
    "train.label_smoothing=0.1",
    "train.clip_grad=1",
    "train.ema_decay=0.9",
    "train.loggers=[csv]",
    "train.log_every=1",
]

Run = Callable[..., Path]


@pytest.fixture(autouse=True, scope="package")
def _single_thread() -> Iterator[None]:
    previous = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny tensors: more threads are slower
    yield
    torch.set_num_threads(previous)


def tiny_run(*overrides: str) -> Path:
    """Train the tiny model and return its run folder."""
    return run_command("train", [*TINY, *overrides])


def resume_run(folder: Path, *overrides: str) -> Path:
    """Resume a run, like `python train.py train.resume=...`."""
    return run_command("train", [f"train.resume={folder}", *overrides])


@contextlib.contextmanager
def signal_at(update: int, number: signal.Signals = signal.SIGINT) -> Iterator[None]:
    """Send a signal to this process within the step of an update; the run must end by it."""
    original = loop.Loop._update

    def update_and_signal(self: loop.Loop) -> None:
        original(self)
        if self.progress.update + 1 == update:
            os.kill(os.getpid(), number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Loop, "_update", update_and_signal)
        with pytest.raises(SystemExit) as end:
            yield
    assert end.value.code == {"SIGINT": 130, "SIGUSR1": 138}[number.name]


def checkpoint_of(folder: Path, which: str = "last") -> dict[str, Any]:
    """Read a checkpoint safely: it has only tensors and plain values."""
    return torch.load(folder / "checkpoints" / f"{which}.ckpt", weights_only=True)


def assert_equal(a: Any, b: Any, where: str = "") -> None:
    """Assert that nested values are equal, bit for bit."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}[{index}]")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def assert_same_run(a: Path, b: Path) -> None:
    """Assert that two runs are equal: checkpoints without their settings, and `metrics.csv`."""
    for which in ("last", "best"):
        ours, theirs = checkpoint_of(a, which), checkpoint_of(b, which)
        assert {"state_dict", "state_dict_ema", "optimizer", "metrics", "progress"} <= set(ours)
        for key in ours.keys() - {"config"}:
            assert_equal(ours[key], theirs[key], f"{which}:{key}")
    assert rows_of(a) == rows_of(b)


def rows_of(folder: Path) -> list[dict[str, str]]:
    """Return the rows of `metrics.csv` without the column that depends on the clock."""
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{key: row[key] for key in row if key != "images_per_s"} for row in rows]


@pytest.fixture(scope="package")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an uninterrupted run of four epochs."""
    return tiny_run(f"train.out={tmp_path_factory.mktemp('whole')}")
