"""Units that shrink to zero during training: the schedule, cutting, averages and resuming."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import zoo
from zoo.blocks.mlp import Mlp
from zoo.blocks.widths import unit_is_zero
from zoo.command_line.composition import run as run_command
from zoo.errors import BadInput
from zoo.narrowing import cut, places
from zoo.settings import TrainConfig
from zoo.training.shrinking import Shrinking

from .conftest import assert_same_run, checkpoint_of, resume_run, signal_at

RUN = (
    "model=cct_2_3x2_32",
    "data.image_size=32",
    "train.batch_size=4",
    "train.limit_train_batches=5",
    "train.limit_val_batches=1",
    "train.epochs=2",
    "train.ema_decay=0.5",
    "train.loggers=[csv]",
    "train.shrink=0.5",
    "train.shrink_periods=2",
    "train.warmup_epochs=0",
)


def shrinking(net: nn.Module, updates: int, **settings: Any) -> Shrinking:
    method = Shrinking(TrainConfig(**{"shrink_score": "magnitude", **settings}))
    method.prepare(net, None, resumed=False, layout=torch.contiguous_format)  # type: ignore[arg-type]
    method.plan(updates)
    return method


def test_weights_follow_the_schedule_by_hand() -> None:
    net = nn.Sequential(Mlp(4, 32))
    method = shrinking(net, 10, shrink=0.5, shrink_periods=2, shrink_until=0.8)
    whole = copy.deepcopy(net.state_dict())
    factors = [3 / 4, 2 / 4, 1 / 4, 0.0]
    chosen = None
    for update in range(1, 11):
        method.after_update(net, update)
        weight = net[0].fc1.weight
        if update == 1:
            chosen = method.shrinking["0.hidden"]
            assert len(chosen) == 8  # half of the share
        if update <= 4:
            expected = factors[update - 1] * whole["0.fc1.weight"][chosen]
            assert torch.allclose(weight[chosen], expected)
            others = [unit for unit in range(32) if unit not in chosen]
            assert torch.equal(weight[others], whole["0.fc1.weight"][others])
        if update in (4, 7):
            assert int(unit_is_zero(net[0], places(net)["0.hidden"].group).sum()) == 8
    zero = unit_is_zero(net[0], places(net)["0.hidden"].group)
    assert int(zero.sum()) == 16
    assert len(method.zero["0.hidden"]) == 16
    with torch.no_grad():  # an optimizer with momentum moves them again
        net[0].fc2.weight.add_(1.0)
    method.after_update(net, 11)
    assert torch.equal(unit_is_zero(net[0], places(net)["0.hidden"].group), zero)


def test_the_least_important_units_go_first() -> None:
    net = nn.Sequential(Mlp(4, 32))
    with torch.no_grad():
        net[0].fc1.weight[5:13] *= 1e-3
        net[0].fc2.weight[:, 5:13] *= 1e-3
    method = shrinking(net, 4, shrink=0.25, shrink_periods=1, shrink_until=0.5)
    method.after_update(net, 1)
    assert method.shrinking["0.hidden"].tolist() == list(range(5, 13))


def test_runs_end_with_units_that_can_be_cut_and_resume_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_command("train", [*RUN, f"train.out={tmp_path / 'whole'}"])
    content = checkpoint_of(whole)
    arguments = content["model"]
    x = torch.randn(2, 3, 32, 32)
    for entry in ("state_dict", "state_dict_ema"):
        net = zoo.create_model(**arguments).eval()
        net.load_state_dict(content[entry])
        kept = {}
        for name, place in places(net).items():
            zero = unit_is_zero(place.block, place.group)
            assert torch.equal(zero.nonzero().flatten(), content["method"]["zero"][name])
            kept[name] = (~zero).nonzero().flatten()
        left = sum(len(units) for units in kept.values())
        total = sum(place.group.width for place in places(net).values())
        assert 0.45 * total < left < 0.6 * total
        narrower = cut(net, kept).double()
        assert (narrower(x.double()) - net.double()(x.double())).abs().max() < 1e-10

    with signal_at(update=4):  # in the first step of the second period
        run_command("train", [*RUN, f"train.out={tmp_path / 'stopped'}"])
    (folder,) = (tmp_path / "stopped").iterdir()
    resume_run(folder)
    assert_same_run(whole, folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train.shrink=1"], "train.shrink=1.0 must be at least 0 and below 1"),
        (["train.shrink=0.5", "train.shrink_until=0"], "train.shrink_until=0.0 must be greater"),
        (["train.shrink=0.5", "train.shrink_periods=0"], "train.shrink_periods=0 must be at least"),
        (["train.shrink=0.5", "train.shrink_score=l1"], "unknown train.shrink_score 'l1'"),
        (["train.shrink=0.5", "train.qat=true"], "is not supported with train.shrink=0.5"),
        (["train.shrink_periods=3"], "has no effect without train.shrink above 0"),
        (["model=simplenet_cifar_310k", "train.shrink=0.5"], "SimpleNet has no hidden width"),
        (
            ["model=cct_2_3x2_32", "train.shrink=0.5", "train.limit_train_batches=2"],
            "train.shrink_periods=5 is more than the 1 updates",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(
    settings: list[str], message: str, tmp_path: Path
) -> None:
    given = ["train.epochs=1", "data.image_size=32", f"train.out={tmp_path}", *settings]
    with pytest.raises(BadInput, match=message) as hit:
        run_command("train", given)
    assert "\n" not in str(hit.value)
    assert not list(tmp_path.iterdir())
