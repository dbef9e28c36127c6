"""Fine-tuning in two phases, the batch size and the learning rate that are found."""

import csv
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from zoo.command_line.composition import run as run_command
from zoo.errors import BadInput
from zoo.training import batch_size, lr_range

from .conftest import TINY, assert_same_run, checkpoint_of, resume_run

SMALL = ["model=simplenet_cifar_310k", "data.image_size=16"]
FINETUNE = [
    *(*SMALL, "train.freeze=[all-but-head]"),
    *(
        "train.freeze_epochs=2",
        "train.layer_decay=0.7",
        "train.epochs=3",
        "train.limit_train_batches=4",
    ),
]


def run_of(*settings: str) -> Path:
    """Train with the settings of `TINY` that are not given."""
    given = {word.partition("=")[0] for word in settings}
    kept = [word for word in TINY if word.partition("=")[0] not in given]
    return run_command("train", [*kept, *settings])


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_of(*FINETUNE, f"train.out={tmp_path_factory.mktemp('fine')}")


def test_layers_stay_as_they_were_until_they_are_unfrozen(finetuned: Path, tmp_path: Path) -> None:
    parts = [run_of(*FINETUNE, "train.stop_at_epoch=1", f"train.out={tmp_path}")]
    first = checkpoint_of(parts[0])["state_dict"]
    resume_run(parts[0], "train.stop_at_epoch=2")
    second = checkpoint_of(parts[0])["state_dict"]
    resume_run(parts[0])
    third = checkpoint_of(parts[0])["state_dict"]
    head = {name for name in first if "head" in name}
    assert head
    assert any(not torch.equal(first[name], second[name]) for name in head)
    for name in first.keys() - head:  # batch norms keep their statistics, too
        assert torch.equal(first[name], second[name]), name
    weights = [name for name in first.keys() - head if first[name].dim() == 4]
    assert all(not torch.equal(second[name], third[name]) for name in weights)
    assert_same_run(parts[0], finetuned)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train.freeze=[]"], r"train\.freeze_epochs=2 has no effect without train\.freeze"),
        (["train.freeze_epochs=3"], r"freeze_epochs=3 is all of train\.epochs=3"),
        (["train.freeze_epochs=0"], r"train\.freeze_epochs=0 must be at least 1"),
        (["train.batch_size=0"], r"train\.batch_size=0 must be auto or at least 1"),
        (["train.batch_size=big"], r"train\.batch_size=big must be auto or at least 1"),
        (["train.find_lr=true", "train.dry_run=true"], r"find_lr=true has no effect with train\.d"),
    ],
)
def test_settings_without_effect_are_errors(
    settings: list[str], message: str, tmp_path: Path
) -> None:
    given = {word.partition("=")[0] for word in settings}
    kept = [word for word in FINETUNE if word.partition("=")[0] not in given]
    with pytest.raises(BadInput, match=message):
        run_of(*kept, *settings, f"train.out={tmp_path}")


def test_sizes_double_while_an_epoch_has_enough_updates() -> None:
    assert list(batch_size.candidates(1437)) == [8, 16, 32, 64, 128]
    assert list(batch_size.candidates(10**6)) == [8, 16, 32, 64, 128, 256, 512]
    assert list(batch_size.candidates(5)) == [5]


class Machine:
    """A machine of some memory on which each image takes one byte."""

    def __init__(self, memory: float, *, fails: bool) -> None:
        self.memory, self.fails, self.peak = memory, fails, 0.0
        self.tried: list[int] = []

    def attempt(self, size: int) -> None:
        self.tried.append(size)
        if size > self.memory:
            assert self.fails, "the process would be killed"
            raise MemoryError
        self.peak = max(self.peak, size)

    def find(self, images: int = 10**6) -> tuple[int, str]:
        def is_memory(error: Exception) -> bool:
            return isinstance(error, MemoryError)

        used = (lambda: 0.0) if self.fails else (lambda: self.peak)
        return batch_size.find(
            images, self.attempt, is_memory, used, lambda: self.memory - self.peak
        )


def test_the_largest_batch_that_fits_is_found() -> None:
    gpu = Machine(100, fails=True)
    assert gpu.find() == (64, "128 does not fit into memory")
    assert gpu.tried == [8, 16, 32, 64, 128]
    assert Machine(10**6, fails=True).find() == (512, "at most 512")
    assert Machine(10**6, fails=True).find(200) == (16, "an epoch has at least 10 updates")
    with pytest.raises(BadInput, match=r"auto: 8 images need more memory than is available"):
        Machine(4, fails=True).find()


def test_a_batch_that_would_end_the_process_is_not_tried() -> None:
    machine = Machine(100, fails=False)
    size, why = machine.find()
    assert size == 32
    assert why == "64 would need more memory than is free"
    assert max(machine.tried) <= 64


def test_other_errors_are_not_taken_for_too_little_memory() -> None:
    def broken(size: int) -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        batch_size.find(1000, broken, lambda error: False, lambda: 0.0, lambda: 1e9)


def test_a_run_with_the_batch_size_that_was_found(tmp_path: Path) -> None:
    """It is the run with that number, bit for bit."""
    small = [*SMALL, "train.epochs=1", "train.limit_train_batches=2", f"train.out={tmp_path}"]
    found = run_of(*small, "train.batch_size=auto")
    size = checkpoint_of(found)["config"]["train"]["batch_size"]
    assert size == 128
    log = (found / "config.yaml").read_text()
    assert "batch_size: 128" in log
    assert_same_run(found, run_of(*small, "train.batch_size=128"))


def test_the_suggested_rate_is_where_the_loss_falls_fastest() -> None:
    rates = [lr_range.rate(update) for update in range(100)]
    assert rates[0] == pytest.approx(1e-6)
    assert rates[-1] == pytest.approx(1.0)
    falls = [1 / (1 + np.exp(4 * (math.log10(lr) + 3))) for lr in rates]  # steepest at 1e-3
    losses = [
        value + max(0.0, 50 * (math.log10(lr) + 1)) for value, lr in zip(falls, rates, strict=True)
    ]
    chosen = lr_range.suggestion(rates, losses)
    assert chosen is not None
    assert 1e-3 <= chosen <= 1e-2  # the running mean is late
    assert lr_range.suggestion(rates, [1.0 + 0.01 * n for n in range(100)]) is None
    assert lr_range.suggestion(rates[:3], [3.0, 2.0, 1.0]) is None
    assert [lr_range.rounded(lr) for lr in (0.00123, 0.98, 2.5e-6)] == [0.0012, 0.98, 2.5e-6]


def test_the_range_test_is_drawn_and_leaves_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        run_of(
            *(*SMALL, "train.find_lr=true"),
            *(
                "train.limit_train_batches=60",
                "train.accumulate=1",
                "train.batch_size=4",
                f"train.out={tmp_path}",
            ),
        )
        is None
    )
    (folder,) = tmp_path.iterdir()
    assert {file.name for file in folder.iterdir()} == {"lr_range.csv", "lr_range.png"}
    with (folder / "lr_range.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) > 50
    assert [float(row["lr"]) for row in rows] == pytest.approx(
        [lr_range.rate(update) for update in range(len(rows))]
    )
    with Image.open(folder / "lr_range.png") as picture:
        assert min(picture.size) > 300
    printed = capsys.readouterr().out
    assert re.search(r"\d+ updates: the loss (falls fastest at train\.lr=|never falls)", printed)
