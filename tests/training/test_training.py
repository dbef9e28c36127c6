"""Training runs: their files, computations and errors."""

import copy
import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import zoo
from zoo.command_line.composition import run as run_command
from zoo.errors import BadInput, ZooError
from zoo.training import loop
from zoo.training.logs import MetricsLog
from zoo.training.losses import Distillation

from .conftest import TINY, checkpoint_of, tiny_run


def test_files_of_a_run_folder(whole_run: Path) -> None:
    assert whole_run.name.split("_")[2:-1] == ["mobilenetv2", "035"]
    names = {file.name for file in whole_run.iterdir()}
    assert names == {"checkpoints", "config.yaml", "metrics.csv", "train.log", "versions.yaml"}
    assert {file.name for file in (whole_run / "checkpoints").iterdir()} == {
        "best.ckpt",
        "last.ckpt",
    }
    saved = OmegaConf.load(whole_run / "config.yaml")
    assert saved.train.batch_size == 8
    assert saved.train.precision == "32"
    used = (saved.model.num_classes, saved.data.num_workers, saved.data.interpolation)
    assert None not in used, "values that were used, not null"
    assert used[0] == 10
    assert saved.data.mean == checkpoint_of(whole_run)["data"]["preprocessing"]["mean"]
    versions = yaml.safe_load((whole_run / "versions.yaml").read_text())
    assert versions["torch"] == torch.__version__.split("+")[0]
    with (whole_run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert [row["update"] for row in rows] == ["3", "6", "9", "12"]  # 5 batches, 2 per update
    assert {"train/loss", "lr", "images_per_s", "val/loss", "val/top1", "val/top5"} <= set(rows[0])
    log = (whole_run / "train.log").read_text()
    assert "epoch 4/4: loss" in log


def test_a_checkpoint_has_everything_that_evaluation_needs(whole_run: Path) -> None:
    content = checkpoint_of(whole_run)
    assert content["format"] == "zoo.checkpoint/1"
    assert content["data"]["class_names"] == [str(digit) for digit in range(10)]
    assert content["data"]["preprocessing"]["size"] == [3, 32, 32]
    model = zoo.create_model(**content["model"])
    assert model.num_classes == 10
    zoo.load_weights(model, whole_run / "checkpoints" / "last.ckpt")
    for key, value in model.state_dict().items():
        assert torch.equal(value, content["state_dict_ema"][key]), key
    model.load_state_dict(content["state_dict"])
    different = [
        key
        for key, value in content["state_dict"].items()
        if not torch.equal(value, content["state_dict_ema"][key])
    ]
    assert len(different) > 50, "the averaged weights differ from the weights"


def test_the_best_checkpoint_is_the_epoch_with_the_highest_accuracy(whole_run: Path) -> None:
    with (whole_run / "metrics.csv").open() as file:
        top1 = [float(row["val/top1"]) for row in csv.DictReader(file)]
    best = checkpoint_of(whole_run, "best")
    assert best["progress"]["epoch"] == top1.index(max(top1)) + 1
    assert best["metrics"]["val/top1"] == max(top1)
    assert best["progress"]["best"] == max(top1)


def test_accumulating_batches_equals_a_larger_batch(tmp_path: Path) -> None:
    """The model has no batch norms, and an update of SGD is the gradient."""
    common = [
        "model=timm/test_vit",
        "model.img_size=32",
        "data.image_size=32",
        "train.optimizer=momentum",
        "+train.optimizer_args.momentum=0",
        "train.weight_decay=0",
        "train.scheduler=constant",
        "train.lr_scale=none",
        "train.warmup_epochs=0",
        "train.epochs=1",
        "train.limit_val_batches=1",
        "train.loggers=[]",
        f"train.out={tmp_path}",
    ]

    def trained(*overrides: str) -> dict[str, torch.Tensor]:
        return checkpoint_of(run_command("train", [*common, *overrides]))["state_dict"]

    one = trained("train.batch_size=8", "train.limit_train_batches=1", "train.lr=1")
    two = trained(
        "train.batch_size=4", "train.accumulate=2", "train.limit_train_batches=2", "train.lr=1"
    )
    start = trained("train.batch_size=8", "train.limit_train_batches=1", "train.lr=1e-30")
    for key, value in one.items():
        step = (value - start[key]).abs().max()
        torch.testing.assert_close(two[key], value, rtol=0, atol=float(1e-4 * step + 1e-7))
    assert max((one[key] - start[key]).abs().max() for key in one) > 1e-3


def test_a_nan_loss_stops_the_run_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = loop.Loop._update

    def update_with_nan(self: loop.Loop) -> None:
        if self.progress.update == 4:
            next(iter(self.components.net.parameters())).grad.fill_(float("nan"))
        original(self)

    monkeypatch.setattr(loop.Loop, "_update", update_with_nan)
    with pytest.raises(ZooError, match=r"loss is nan in epoch 2, after update 6; .*last\.ckpt"):
        tiny_run(f"train.out={tmp_path}", "train.clip_grad=null")
    (folder,) = tmp_path.iterdir()
    kept = checkpoint_of(folder)
    assert kept["progress"]["epoch"] == 1
    assert all(v.isfinite().all() for v in kept["state_dict"].values())


def test_nan_weights_of_the_last_update_are_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = loop.Loop._update

    def update_with_nan(self: loop.Loop) -> None:
        original(self)
        if self.progress.update == 5:
            next(iter(self.components.net.parameters())).data.fill_(float("nan"))

    monkeypatch.setattr(loop.Loop, "_update", update_with_nan)
    with pytest.raises(ZooError, match="weights are not finite in epoch 2"):
        tiny_run(f"train.out={tmp_path}")
    (folder,) = tmp_path.iterdir()
    assert checkpoint_of(folder)["progress"]["epoch"] == 1


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_distillation_does_not_change_the_teacher(
    kind: str, whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The student is EfficientFormer with two heads, the teacher is the model of the tiny run."""
    seen: list[Distillation] = []
    original = Distillation.forward

    def recorded(self: Distillation, outputs, targets, images):
        assert isinstance(outputs, tuple), "the student has two heads in training"
        if not seen:
            seen.extend([self, copy.deepcopy(self)])
        return original(self, outputs, targets, images)

    monkeypatch.setattr(Distillation, "forward", recorded)
    tiny_run(
        "model.name=efficientformer_l1",
        "model.drop_rate=0",
        f"train.out={tmp_path}",
        f"train.distill={kind}",
        "train.distill_teacher=mobilenetv2_035",
        f"train.distill_teacher_weights={whole_run}",
        "train.epochs=1",
        "train.limit_train_batches=2",
    )
    now, then = (d.teacher.state_dict() for d in seen)
    assert all(torch.equal(now[key], then[key]) for key in now)


def test_bf16_training_keeps_float32_weights(tmp_path: Path) -> None:
    folder = tiny_run(
        f"train.out={tmp_path}", "train.precision=bf16", "train.epochs=1", "train.layer_decay=0.8"
    )
    content = checkpoint_of(folder)
    assert {v.dtype for v in content["state_dict"].values() if v.is_floating_point()} == {
        torch.float32
    }


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs=-1", r"train\.epochs=-1 must be at least 1"),
        ("train.lr=-0.1", r"train\.lr=-0\.1 must be greater than 0"),
        ("train.lr=nan", r"train\.lr=nan must be a finite number"),
        ("train.precision=8", r"unknown train\.precision '8'.*bf16"),
        ("train.batch_size=0", r"train\.batch_size=0 must be auto or at least 1"),
        ("train.batch_size=2000", r"batch_size=2000.*1437 training images"),
        ("train.accumulate=100", r"train\.accumulate=100 is more than the 5 batches"),
        ("train.label_smoothing=1", "below 1"),
        ("train.mixup_off_epoch=-1", "mixup_off_epoch=-1 must be at least 0"),
        ("train.warmup_epochs=9", r"is more than train\.epochs=4"),
        ("train.stop_at_epoch=9", r"is more than train\.epochs=4"),
        ("train.clip_mode=gradient", "Choices: agc, norm, value"),
        ("train.loggers=[paper]", "csv, mlflow, pictures, tensorboard, wandb"),
        ("train.devices=none", "must be auto or at least 1"),
        ("train.accelerator=cuda", r"train\.accelerator=cuda"),
        ("train.sync_bn=true", r"train\.sync_bn"),
        ("train.distill_tau=2", r"train\.distill_tau=2\.0 has no effect without"),
        ("train.distill=hard", r"requires a teacher; give train\.distill_teacher"),
        ("model.num_classes=7", r"model\.num_classes=7 does not match the data, which has 10"),
        ("model.in_chans=4", r"model\.in_chans=4 does not match the data"),
        ("train.out=pyproject.toml/x", r"train\.out=.*is not a folder"),
        ("train.loss=cross", r"unknown train\.loss 'cross'"),
        ("train.freeze=[bogus]", "'bogus' matches no module"),
    ],
)
def test_invalid_settings_write_nothing(
    override: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if override == "train.accelerator=cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    overrides = [*TINY, override]
    if not override.startswith("train.out"):
        overrides.append(f"train.out={tmp_path / 'runs'}")
    with pytest.raises(BadInput, match=message) as error:
        run_command("train", overrides)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=timm/vit_tiny_patch16_224", "data.image_size=32"],
        ["model=mobilenetv2_035", "model.global_pool=''", "data.image_size=64"],
    ],
)
def test_unsupported_image_sizes_and_heads_are_rejected(
    overrides: list[str], tmp_path: Path
) -> None:
    with pytest.raises(
        BadInput, match=r"does not run with data\.image_size=32x32|num_classes=10 needs"
    ):
        run_command("train", [*overrides, f"train.out={tmp_path / 'runs'}"])
    assert not list(tmp_path.iterdir())


def test_settings_without_effect_are_rejected() -> None:
    for override in (
        "train.mixup_prob=0.5",
        "train.mixup_switch_prob=0.1",
        "train.ema_warmup=false",
    ):
        with pytest.raises(BadInput, match="has no effect without"):
            run_command("train", [override])


def test_disable_malloc_trim_reuses_freed_memory() -> None:
    """After the first steps, far fewer pages have to be mapped again."""
    code = """
import resource, sys, numpy
from zoo.training.allocator import disable_malloc_trim
if sys.argv[1] == "keep":
    disable_malloc_trim()
def step():
    tensors = [numpy.ones(1 << 19) for _ in range(16)]
for _ in range(2): step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4): step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    if not sys.platform.startswith("linux"):
        pytest.skip("only glibc supports it")

    def page_faults(mode: str) -> int:
        done = subprocess.run([sys.executable, "-c", code, mode], capture_output=True, text=True)
        return int(done.stdout)

    assert page_faults("keep") < 0.2 * page_faults("default")


def test_data_of_another_task_is_rejected(tmp_path: Path) -> None:
    overrides = ["data.name=digits_segmentation", f"train.out={tmp_path / 'runs'}"]
    with pytest.raises(
        BadInput, match="for classification, but data.name=digits_segmentation is for segmentation"
    ):
        run_command("train", overrides)


def test_tensorboard_drops_updates_after_the_resumed_one(tmp_path: Path) -> None:
    for update, value in ((0, 1.0), (2, 2.0)):
        log = MetricsLog(tmp_path, ["tensorboard"], epoch=0, update=update)
        for number in range(update + 1, update + 4):
            log.log_update(number, {"train/loss": value})
        log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert found == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0), (5, 2.0)]


def test_the_precision_plugin_of_fabric_has_the_gradient_scaler() -> None:
    """`Loop.precision` relies on it to clip gradients and to save the scaler's state."""
    fabric = Fabric(accelerator="cpu", devices=1, plugins=MixedPrecision("16-mixed", device="cpu"))
    model = nn.Linear(2, 1, bias=False)
    model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=1.0))
    precision = fabric.strategy.precision
    precision.load_state_dict({**precision.state_dict(), "scale": 8.0})
    images = torch.ones(1, 2)
    fabric.backward(model(images).sum())
    scaled = model.weight.grad.clone()
    precision.unscale_gradients(optimizer)
    assert precision.state_dict()["scale"] == 8.0
    torch.testing.assert_close(scaled, 8 * model.weight.grad)
    torch.testing.assert_close(model.weight.grad, images)
