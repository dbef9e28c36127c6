"""Stored predictions: equal to an online teacher, whole or absent, and refused if they differ."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import zoo
from zoo.command_line.composition import run as run_command
from zoo.commands import store_logits
from zoo.errors import BadInput
from zoo.reparam import randomize_parameters
from zoo.training.logit_store import LogitStore
from zoo.training.losses import Distillation, StoredDistillation

from .conftest import assert_equal, checkpoint_of, resume_run, rows_of

DATA = (
    "data=digits_in_photos",
    "data.image_size=32",
    "data.train_images=23",
    "data.val_images=8",
    "data.hflip=0.5",
    "data.num_workers=0",
)
STORE = (*DATA, "model=simplenet_cifar_310k", "seed=3", "half=false", "batch_size=10")
TRAIN = (
    *DATA,
    "model=simplenet_cifar_310k",
    "train.seed=3",
    "train.epochs=2",
    "train.batch_size=4",
    "train.lr=1e-3",
    "train.optimizer=sgd",
    "train.loggers=[csv]",
)


def described(images: int = 6, classes: int = 5) -> dict[str, Any]:
    split = {"images": images, "names": "x", "content": "y"}
    versions = {"pillow": "1", "torchvision": "2"}
    return {"train.seed": 0, "num_classes": classes, "split": split, "versions": versions}


def stored(folder: Path, logits: torch.Tensor, top: int, half: bool) -> LogitStore:
    described_ = described(*logits.shape)
    store = LogitStore.create(folder, described_, {"name": "t"}, top=top, half=half)
    store.write(0, [((4, 0), logits[[4, 0]]), ((1, 2, 3, 5), logits[[1, 2, 3, 5]])])
    return store


@pytest.mark.parametrize(("half", "error"), [(False, 1e-6), (True, 1e-3)])
def test_all_classes_equal_soft_distillation(half: bool, error: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x, targets = torch.randn(6, 7), torch.arange(6) % 5
    teacher = nn.Linear(7, 5)
    store = stored(tmp_path, teacher(x).detach() * 3, 5, half)
    online = Distillation(
        nn.CrossEntropyLoss(), nn.Sequential(teacher, Thrice()), kind="soft", alpha=0.7
    )
    offline = StoredDistillation(nn.CrossEntropyLoss(), store, alpha=0.7)
    chosen = [5, 0, 3]
    for pair in (False, True):  # a student with two heads
        results = []
        for loss, third in ((online, x[chosen]), (offline, [(0, index) for index in chosen])):
            student = nn.Linear(7, 5)
            nn.init.constant_(student.weight, 0.1)
            nn.init.constant_(student.bias, 0.2)
            logits = student(x[chosen])
            value = loss((logits, logits * 2) if pair else logits, targets[chosen], third)
            value.backward()
            results.append((value.detach(), student.weight.grad, student.bias.grad))
        for have, want in zip(*results, strict=True):
            assert (have - want).abs().max() < error


class Thrice(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 3 * x


def test_the_rest_of_the_mass_is_spread_evenly(tmp_path: Path) -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 9)
    store = stored(tmp_path, logits, 2, half=True)
    assert store.row.itemsize == 4 * 2
    assert store.path(0).stat().st_size == 192 + 6 * 8
    have = store.probabilities(0, [4, 1])
    p = logits[[4, 1]].softmax(1)
    values, classes = p.topk(2, dim=1)
    want = ((1 - values.sum(1, keepdim=True)) / 7).expand(-1, 9).scatter(1, classes, values)
    assert (have - want).abs().max() < 1e-3
    assert (have.sum(1) - 1).abs().max() < 1e-6


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "teacher.pth"
    torch.manual_seed(5)
    model = randomize_parameters(zoo.create_model("simplenet_cifar_310k", num_classes=10))
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def store(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("store")
    return run_command("store-logits", [*STORE, f"weights={teacher}", "epochs=2", f"out={out}"])


def stored_run(store: Path, out: Path, *more: str) -> Path:
    settings = ("train.distill=stored", f"train.distill_store={store}", f"train.out={out}")
    return run_command("train", [*TRAIN, *settings, *more])


def test_a_run_equals_the_one_with_the_teacher_itself_and_resumes(
    teacher: Path, store: Path, tmp_path: Path
) -> None:
    online = run_command(
        "train",
        [
            *TRAIN,
            "train.distill=soft",
            "train.distill_teacher=simplenet_cifar_310k",
            f"train.distill_teacher_weights={teacher}",
            f"train.out={tmp_path}",
        ],
    )
    whole = stored_run(store, tmp_path / "whole")
    # Steps with four images enlarge rounding errors: only the first epoch tells more than those.
    have, want = (float(rows_of(run)[0]["train/loss"]) for run in (whole, online))
    assert have == pytest.approx(want, rel=1e-3)
    half = stored_run(store, tmp_path / "half", "train.stop_at_epoch=1")
    resume_run(half)
    for key in ("state_dict", "optimizer", "progress", "metrics"):
        assert_equal(checkpoint_of(half)[key], checkpoint_of(whole)[key])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.seed=4", "train.seed is 4, and the store was made with 3"),
        ("data.hflip=0.4", "data.hflip is 0.4, and the store was made with 0.5"),
        ("data.re_prob=0.1", r"data.re_prob is 0.1, and the store was made with"),
        ("data.image_size=40", r"data.image_size is \[40, 40\], and .* with \[32, 32\]"),
        ("data.mean=[0.1,0.2,0.3]", r"data.mean is \[0.1, 0.2, 0.3\], and the store"),
        ("data.train_images=22", "the images differ: split train has"),
        ("train.epochs=3", "train.epochs=3 is more than the 2 epochs"),
        ("train.mixup=0.2", "train.mixup=0.2 mixes images"),
        ("train.distill_store=null", "requires predictions; give train.distill_store"),
        ("train.distill_store=/nowhere", "is no store of logits"),
        ("train.distill_tau=2", "train.distill_tau=2.0 has no effect"),
    ],
)
def test_another_run_is_refused(setting: str, message: str, store: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=message) as raised:
        stored_run(store, tmp_path, setting)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_a_killed_store_continues_and_is_the_same(
    teacher: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = store_logits._predictions
    calls = []

    def predictions(*args: Any) -> Iterator[Any]:
        calls.append(1)
        for number, batch in enumerate(original(*args)):
            if len(calls) == 2 and number == 1:
                raise KeyboardInterrupt
            yield batch

    words = [*STORE, f"weights={teacher}", f"out={tmp_path}"]
    monkeypatch.setattr(store_logits, "_predictions", predictions)
    with pytest.raises(KeyboardInterrupt):
        run_command("store-logits", [*words, "epochs=2"])
    assert sorted(path.name for path in tmp_path.iterdir() if path.name[0] != ".") == [
        "epoch_00000.npy",
        "store.json",
    ]
    with pytest.raises(BadInput, match="train.epochs=2 is more than the 1 epochs"):
        stored_run(tmp_path, tmp_path / "out")
    (tmp_path / ".epoch_00001.npy.killed").write_bytes(b"half")
    run_command("store-logits", [*words, "epochs=2", "batch_size=23"])
    assert not list(tmp_path.glob(".epoch*"))
    for epoch in range(2):
        ours, theirs = (LogitStore(f).probabilities(epoch, range(23)) for f in (tmp_path, store))
        assert (ours - theirs).abs().max() < 1e-6
    first, second = (LogitStore(store).probabilities(epoch, range(23)) for epoch in range(2))
    assert (first - second).abs().max() > 1e-3  # other augmentation

    for word, message in (
        ("top=3", "is a store with top=10, not 3; give another out"),
        ("seed=1", "is another store: train.seed is 1"),
        ("top=11", "top=11 must be between 1 and 10"),
        ("epochs=0", "epochs=0 must be at least 1"),
        ("weights=null", "a teacher needs trained weights"),
    ):
        with pytest.raises(BadInput, match=message):
            run_command("store-logits", [*words, word])
    others = [word for word in words if not word.startswith("data=")]
    with pytest.raises(BadInput, match="logits are stored for classification only"):
        run_command("store-logits", ["data=digits_segmentation", *others])
    LogitStore(tmp_path).path(1).write_bytes(b"damaged")
    with pytest.raises(BadInput, match="epoch_00001.npy cannot be read"):
        LogitStore(tmp_path).probabilities(1, [0])
