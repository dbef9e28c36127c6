"""Parameter groups, learning rates, schedules and freezing."""

import math

import pytest
import torch
from torch import nn

import zoo
from zoo.command_line.composition import compose
from zoo.errors import BadInput
from zoo.training import optim
from zoo.training.freezing import freeze

from .conftest import checkpoint_of, tiny_run


def settings(*overrides: str):
    keys = [f"+train.{o[1:]}" if o[0] == "+" else f"train.{o}" for o in overrides]
    return compose("train", keys).train


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return zoo.create_model("efficientformer_l1", num_classes=10)


@pytest.mark.parametrize(("scale", "factor"), [("linear", 4), ("sqrt", 2), ("none", 1)])
def test_the_learning_rate_scales_with_the_images_per_update(scale: str, factor: float) -> None:
    train = settings("lr=0.1", f"lr_scale={scale}")
    assert optim.scaled_lr(train, 4 * train.lr_base_batch) == pytest.approx(0.1 * factor)


def test_vectors_and_parameters_named_by_the_model_have_no_weight_decay(model: nn.Module) -> None:
    optimizer = optim.create_optimizer(model, settings("weight_decay=0.3"), lr=1.0)
    decayed = {
        id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]
    }
    spared = model.no_weight_decay()
    assert spared, "the test needs a model with such parameters"
    for name, parameter in model.named_parameters():
        expected = parameter.ndim > 1 and name not in spared
        assert (id(parameter) in decayed) == expected, name
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.3}


def test_layer_decay_lowers_the_learning_rate_towards_the_input(model: nn.Module) -> None:
    train = settings("layer_decay=0.5")
    optimizer = optim.create_optimizer(model, train, lr=1.0)
    scale = {id(p): g["lr_scale"] for g in optimizer.param_groups for p in g["params"]}
    by_name = {name: scale[id(p)] for name, p in model.named_parameters()}
    stem = next(value for name, value in by_name.items() if name.startswith("stem."))
    assert by_name["head.fc.weight" if "head.fc.weight" in by_name else "head.weight"] == 1.0
    assert stem == min(by_name.values()) < 0.1
    assert all(math.log2(value).is_integer() for value in by_name.values())


@pytest.mark.parametrize("name", [n for n in optim.SCHEDULERS if n != "none"])
def test_every_schedule_starts_with_warmup(name: str) -> None:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    train = settings(f"scheduler={name}", "epochs=10", "warmup_epochs=2", "warmup_lr=0.5")
    scheduler = optim.create_scheduler(optimizer, train, updates_per_epoch=3)
    rates = []
    for update in range(30):
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step_update(update + 1)
    assert rates[0] == 0.5
    assert rates[1] > 0.5
    assert max(rates) <= 1.0
    if name == "cosine":
        expected = [
            1e-6 + 0.5 * (1 - 1e-6) * (1 + math.cos(math.pi * t / 30)) for t in range(6, 30)
        ]
        assert rates[6:] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer=adamv", r"unknown train\.optimizer 'adamv'; did you mean 'adam"),
        ("scheduler=cosin", r"unknown train\.scheduler 'cosin'; did you mean 'cosine'"),
        ("scheduler=plateau", "cannot be resumed exactly"),
        ("+optimizer_args.betaz=1", r"train\.optimizer=adamw cannot be built:.*betaz"),
        ("+optimizer_args.momentum=0.9", "momentum has no effect with train.optimizer=adamw"),
        ("+scheduler_args.speed=1", r"cosine does not accept train\.scheduler_args:.*speed"),
    ],
)
def test_invalid_optimizers_and_schedules_are_rejected(override: str, message: str) -> None:
    model = nn.Linear(2, 2)
    train = settings(override)

    def build() -> None:
        optimizer = optim.create_optimizer(model, train, 1.0)
        optim.create_scheduler(optimizer, train, 3)

    with pytest.raises(BadInput, match=message) as error:
        build()
    assert "\n" not in str(error.value)


def test_arguments_reach_the_optimizer() -> None:
    train = settings("optimizer=sgd", "+optimizer_args.momentum=0.7")
    optimizer = optim.create_optimizer(nn.Linear(2, 2), train, 1.0)
    assert {group["momentum"] for group in optimizer.param_groups} == {0.7}
    train = settings("+optimizer_args.betas=[0.5,0.6]")
    optimizer = optim.create_optimizer(nn.Linear(2, 2), train, 1.0)
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.6)


def test_freeze_by_glob_and_all_but_head() -> None:
    model = zoo.create_model("mobilenetv2_035", num_classes=10)
    norms = freeze(model, ["stem*", "stages.0"])
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {
        name for name, _ in model.named_parameters() if name.startswith(("stem", "stages.0."))
    }
    assert len(norms) == sum(
        isinstance(m, nn.BatchNorm2d) and name.startswith(("stem", "stages.0."))
        for name, m in model.named_modules()
    )
    freeze(model, ["all-but-head"])
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert trained == {id(p) for p in model.get_classifier().parameters()}
    with pytest.raises(BadInput, match="'nothing\\*' matches no module or parameter"):
        freeze(model, ["nothing*"])
    with pytest.raises(BadInput, match="leaves nothing to train"):
        freeze(model, ["*"])


def test_freeze_returns_synchronised_batch_norms() -> None:
    model = zoo.create_model("mobilenetv2_035", num_classes=10)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    norms = freeze(model, ["stem*"])
    assert norms
    assert {type(norm) for norm in norms} == {nn.SyncBatchNorm}


def test_frozen_parameters_and_statistics_do_not_change(tmp_path) -> None:
    short = ["train.epochs=1", "train.warmup_epochs=0", "train.limit_train_batches=2"]
    start = tiny_run(f"train.out={tmp_path}", *short, "train.lr=1e-30", "train.min_lr=0")
    weights = start / "checkpoints" / "last.ckpt"
    before = checkpoint_of(start)["state_dict_ema"]
    folder = tiny_run(
        f"train.out={tmp_path}",
        *short,
        f"model.checkpoint_path={weights}",
        "train.freeze=[all-but-head]",
        "train.lr=0.1",
    )
    after = checkpoint_of(folder)["state_dict"]
    changed = {key for key in after if not torch.equal(after[key], before[key])}
    assert changed == {"head.fc.weight", "head.fc.bias"}
