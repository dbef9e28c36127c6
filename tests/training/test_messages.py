"""What a run and an evaluation say, and the settings that they reject."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import zoo
from zoo.command_line.composition import compose
from zoo.command_line.composition import run as run_command
from zoo.errors import BadInput, ZooError
from zoo.training import classification, loop, optim, segmentation
from zoo.training.checks import check_train
from zoo.training.divergence import Diverged
from zoo.training.losses import create_loss
from zoo.training.tasks import NotFinite

from .conftest import checkpoint_of

FAST = [
    *("model=cct_2_3x2_32", "data.image_size=32", "train.epochs=1", "train.warmup_epochs=0"),
    *("train.limit_train_batches=1", "train.limit_val_batches=1", "train.batch_size=4"),
    "train.loggers=[]",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_command("train", [*FAST, f"train.out={tmp_path_factory.mktemp('a b=c')}"])


def test_a_run_returns_its_score_and_ends_with_the_next_commands(finished: Path) -> None:
    progress = checkpoint_of(finished)["progress"]
    assert finished.score == progress["best"]
    assert finished == Path(finished)
    log = (finished / "train.log").read_text()
    quoted = f"\"weights='{finished}'\""
    assert f"best top-1 {progress['best']:.2%} in epoch 1" in log
    assert f"evaluate with: zoo eval {quoted}; export with: zoo export {quoted}" in log


def test_an_evaluation_names_its_files_and_the_next_command(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run_command("eval", [f"weights='{finished}'", f"out={tmp_path / 'e'}", "device=cpu"])
    printed = capsys.readouterr().out
    files = "classes.csv, confusion.csv, confusion.png, images.csv, report.html, report.json"
    assert f"{tmp_path / 'e'}: {files}" in printed
    assert f"next: zoo export \"weights='{finished}'\"" in printed


def test_weights_that_are_not_finite_are_named(finished: Path, tmp_path: Path) -> None:
    content = checkpoint_of(finished)
    del content["checksum"]
    content["state_dict"]["head.fc.bias"][3] = float("nan")
    torch.save(content, tmp_path / "nan.ckpt")
    with pytest.raises(ZooError, match=r"NaN|finite") as hit:
        run_command("eval", [f"weights={tmp_path / 'nan.ckpt'}", f"out={tmp_path / 'e'}"])
    assert "nan.ckpt" in str(hit.value)
    assert "\n" not in str(hit.value)
    assert not (tmp_path / "e").exists()


def test_outputs_that_are_not_finite_are_no_metrics() -> None:
    outputs = torch.zeros(3, 2)
    outputs[1, 0] = float("inf")
    with pytest.raises(NotFinite, match="the outputs for 1 of 3 images are NaN or infinite"):
        classification.TASK.validate(
            lambda images: outputs,
            [(torch.zeros(3, 1, 1, 1), torch.zeros(3, dtype=torch.int64))],
            SimpleNamespace(num_classes=2, class_names=None),
            torch.device("cpu"),
        )


def test_a_diverged_validation_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        loop.Loop, "_eval_forward", lambda self, x: torch.full((len(x), 10), float("inf"))
    )
    with pytest.raises(Diverged, match=r"validation: the outputs for .* Try a lower train\.lr"):
        run_command("train", [*FAST, f"train.out={tmp_path}"])


def test_a_wrong_normalisation_is_blamed_for_a_nan_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        loop.Loop, "_eval_forward", lambda self, x: torch.full((len(x), 10), float("inf"))
    )
    overrides = [*FAST, f"train.out={tmp_path}", "data.std=[1e-7,1e-7,1e-7]"]
    with pytest.raises(ZooError, match=r"data\.std=\[1e-07") as hit:
        run_command("train", overrides)
    assert "train.lr" not in str(hit.value)


def test_masks_without_a_class_are_no_metrics() -> None:
    meter = segmentation.SegmentationMeter(2)
    ignored = torch.full((1, 4, 4), 255)
    meter.update(torch.zeros(1, 3, 4, 4), torch.zeros(1, 2, 4, 4), ignored)
    with pytest.raises(BadInput, match=r"no pixel of the validation masks has a class.*palette"):
        meter.compute()


@pytest.mark.parametrize(("classes", "shown"), [(2, False), (5, False), (6, True)])
def test_top_5_is_shown_only_of_more_classes(classes: int, shown: bool) -> None:
    meter = classification.ClassificationMeter(classes)
    meter.update(torch.empty(0), torch.randn(8, classes), torch.zeros(8, dtype=torch.int64))
    result = meter.compute()
    assert ("top-5" in result.summary()) == shown
    assert ("val/top5" in result.metrics()) == shown
    assert result.summary().count("top-") == 1 + shown


def rates(model: nn.Module, *overrides: str) -> dict[str, float]:
    train = compose("train", [f"train.{word}" for word in overrides]).train
    optimizer = optim.create_optimizer(model, train, lr=1e-3)
    scheduler = optim.create_scheduler(optimizer, train, 10)
    if scheduler is not None:
        scheduler.step_update(1)
    named = {id(p): name for name, p in model.named_parameters()}
    return {named[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}


def test_layer_decay_is_the_same_with_every_constant_schedule() -> None:
    model = zoo.create_model("cct_2_3x2_32", num_classes=10)
    decay = ("layer_decay=0.5", "warmup_epochs=0")
    none, constant = (rates(model, *decay, f"scheduler={s}") for s in ("none", "constant"))
    assert none == pytest.approx(constant)
    assert none["head.fc.weight"] == 1e-3
    assert min(none.values()) < 3e-4
    model.requires_grad_(False)
    model.get_classifier().requires_grad_(True)
    with pytest.raises(BadInput, match=r"train\.layer_decay=0\.5 has no effect"):
        rates(model, *decay)


def test_adaptive_clipping_leaves_the_classifier_out() -> None:
    model = zoo.create_model("cct_2_3x2_32", num_classes=10)
    names = optim.classifier_names(model)
    assert names == {"head.fc.weight", "head.fc.bias"}
    everything = list(model.parameters())
    clipped = optim.clipped_parameters(model, "agc", names)
    assert len(clipped) == len(everything) - 2
    assert not {id(p) for p in clipped} & {id(p) for p in model.get_classifier().parameters()}
    assert optim.clipped_parameters(model, "norm", names) == everything


WITHOUT_EFFECT = [
    (("mixup=0.2", "mixup_prob=0"), r"train\.mixup=0\.2 has no effect with train\.mixup_prob=0"),
    (("cutmix=1", "batch_size=1"), r"train\.cutmix=1 has no effect with train\.batch_size=1"),
    (("mixup=0.2", "cutmix=1", "mixup_switch_prob=0"), r"train\.cutmix=1 has no effect"),
    (("mixup=0.2", "cutmix=1", "mixup_switch_prob=1"), r"train\.mixup=0\.2 has no effect"),
    (("mixup=0.2", "mixup_off_epoch=8"), r"train\.mixup_off_epoch=8 has no effect"),
    (("distill=hard", "distill_teacher=x", "distill_alpha=0"), r"train\.distill=hard has no eff"),
    (
        ("distill=hard", "distill_teacher=x", "distill_alpha=1", "label_smoothing=0.1"),
        r"train\.label_smoothing=0\.1 has no effect without train\.distill_alpha below 1",
    ),
    (("distill_alpha=0.2",), r"train\.distill_alpha=0\.2 has no effect without"),
    (("clip_mode=agc",), r"train\.clip_mode=agc has no effect without train\.clip_grad"),
    (("warmup_lr=0.1", "warmup_epochs=0"), r"train\.warmup_lr=0\.1 has no effect"),
    (("scheduler=none", "warmup_epochs=0", "min_lr=0.1", "lr=1"), r"train\.min_lr=0\.1 has no eff"),
    (("seed=4294967296",), r"train\.seed=4294967296 must be below 2\*\*32"),
    (("epochs=99999999999",), r"must be below 2\*\*31"),
    (("out=''",), r"train\.out is empty"),
    (("resume=''",), r"train\.resume is empty"),
]


@pytest.mark.parametrize(
    ("overrides", "message"), WITHOUT_EFFECT, ids=[m for _, m in WITHOUT_EFFECT]
)
def test_settings_without_effect_are_rejected(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(BadInput, match=message) as hit:
        check_train(compose("train", [f"train.{word}" for word in overrides]).train)
    assert "\n" not in str(hit.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("scheduler=none", "decay_rate=0.1"), r"decay_rate=0\.1 has no effect with .*=none"),
        (("scheduler=cosine", "decay_epochs=3"), r"decay_epochs=3 has no effect with .*=cosine"),
        (("scheduler=cosine", "cycle_mul=2"), r"cycle_mul=2 has no effect .* without cycle_limit"),
        (("scheduler=cosine", "noise_std=2"), r"noise_std=2 has no effect .* without noise"),
        (("scheduler=cosine", "noise=[0.1]", "noise_pct=0"), "noise_pct=0 must be greater than 0"),
        (("scheduler=cosine", "noise=[0.1]", "noise_std=1e9"), "noise_std=1000000000.0 must be at"),
        (("scheduler=cosine", "noise=x"), "does not accept train.scheduler_args"),
        (("scheduler=cosine", "k_decay=x"), "does not accept train.scheduler_args"),
        (("scheduler=poly", "k_decay=-1"), "does not accept train.scheduler_args"),
        (("scheduler=step", "decay_epochs=0"), "does not accept train.scheduler_args"),
        (("scheduler=step", "decay_epochs=1", "decay_rate=-1"), "learning rate of update .* -"),
        (("scheduler=multistep", "decay_milestones=[a]"), "does not accept train.scheduler_args"),
    ],
)
def test_arguments_that_a_schedule_ignores_are_rejected(
    overrides: tuple[str, ...], message: str
) -> None:
    scheduler, *arguments = overrides
    words = [f"train.{scheduler}", *(f"+train.scheduler_args.{word}" for word in arguments)]
    train = compose("train", [*words, "train.warmup_epochs=0"]).train
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(BadInput, match=message) as hit:
        optim.create_scheduler(optimizer, train, 3)
    assert "\n" not in str(hit.value)


@pytest.mark.parametrize(
    ("loss", "arguments"),
    [
        ("bce", {"target_threshold": "x"}),
        ("bce", {"target_threshold": 2}),
        ("bce", {"sum_classes": "x"}),
        ("bias", {"alpha": "x"}),
    ],
)
def test_arguments_of_a_loss_are_checked_before_training(loss: str, arguments: dict) -> None:
    with pytest.raises(BadInput, match=r"train\.loss_args"):
        create_loss(loss, **arguments)
    with pytest.raises(BadInput, match=r"dice.*loss_args"):
        create_loss("dice", task="segmentation", smooth="x")


def test_a_run_that_is_all_warm_up_says_so(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run_command("train", [*FAST, "train.warmup_epochs=1", f"train.out={tmp_path}"])
    assert "the whole run is warm-up" in capsys.readouterr().out


def test_settings_that_a_checkpoint_lacks_are_named(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    content = checkpoint_of(finished)
    del content["config"]["train"]["clip_mode"], content["config"]["data"]["cache"]
    file = tmp_path / "checkpoints" / "last.ckpt"
    file.parent.mkdir()
    torch.save(content, file)
    run_command("train", [f"train.resume={tmp_path}", "train.epochs=2"])
    assert "the checkpoint has no data.cache, train.clip_mode" in capsys.readouterr().out
