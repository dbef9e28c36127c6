"""The hooks of training methods: when they are called, and that their state is resumed exactly."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from zoo.command_line.composition import run as run_command
from zoo.commands import train as train_command
from zoo.errors import BadWeights
from zoo.training import restore
from zoo.training.method import TrainingMethod

from .conftest import assert_same_run, checkpoint_of, resume_run

RUN = (
    "model=simplenet_cifar_310k",
    "data.image_size=32",
    "train.batch_size=4",
    "train.limit_train_batches=3",
    "train.limit_val_batches=1",
    "train.epochs=2",
    "train.ema_decay=0.5",
    "train.ema_warmup=false",
    "train.loggers=[csv]",
    "train.log_every=1",
)


class Shrinking(TrainingMethod):
    """Shrinks one weight by a share that depends on all updates so far; Ctrl-C after `signal_at`.

    Attributes:
        seen: Number and presence of gradients of each call.
    """

    def __init__(self, signal_at: int = 0):
        self.signal_at, self.sum = signal_at, torch.zeros(3)
        self.seen: list[tuple[str, int, bool]] = []

    def after_update(self, model: nn.Module, update: int) -> None:
        weight = next(model.parameters())
        self.seen.append(("update", update, weight.grad is not None))
        with torch.no_grad():
            weight[:3, 0, 0, 0] *= 0.9 + 0.01 * self.sum.cos()
            self.sum += weight[:3, 0, 0, 0]
            weight[4] = update
        if update == self.signal_at:
            os.kill(os.getpid(), signal.SIGINT)

    def after_averaging(self, averaged: nn.Module, update: int) -> None:
        self.seen.append(("average", update, False))
        with torch.no_grad():
            next(averaged.parameters())[3] = 0

    def start_epoch(self, model: nn.Module, update: int) -> None:
        self.seen.append(("epoch", update, model.training))

    def state_dict(self) -> dict[str, Any]:
        return {"sum": self.sum.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sum.copy_(state["sum"])


def run_with(method: TrainingMethod, out: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(train_command, "create_method", lambda settings: method)
    return run_command("train", [*RUN, f"train.out={out}"])


def test_hooks_are_seen_by_averages_and_their_state_is_resumed_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = Shrinking()
    whole = run_with(method, tmp_path / "whole", monkeypatch)
    pairs = [[("update", n, True), ("average", n, False)] for n in range(1, 7)]
    wanted = [("epoch", 0, True), *sum(pairs[:3], []), ("epoch", 3, True), *sum(pairs[3:], [])]
    assert method.seen == wanted
    content = checkpoint_of(whole)
    assert torch.equal(content["method"]["sum"], method.sum)
    name, weight = next(iter(content["state_dict"].items()))
    averaged = content["state_dict_ema"][name]
    assert averaged[3].eq(0).all()
    assert weight[3].ne(0).all()
    assert weight[4].eq(6).all()
    mean = sum(n / 2 ** (7 - n) for n in range(1, 7))  # besides 1/64 of the first weight
    assert (averaged[4] - mean).abs().max() <= 1 / 64

    with pytest.raises(SystemExit):
        run_with(Shrinking(signal_at=2), tmp_path / "stopped", monkeypatch)
    (folder,) = (tmp_path / "stopped").iterdir()
    assert checkpoint_of(folder)["progress"]["update"] == 2
    monkeypatch.setattr(train_command, "create_method", lambda settings: Shrinking())
    resume_run(folder)
    assert_same_run(whole, folder)


@pytest.mark.parametrize("entry", [{}, {"other": 1}, {"sum": "x"}, {"sum": torch.zeros(2)}])
def test_a_state_of_another_method_is_damage(
    entry: dict[str, Any],
) -> None:
    with pytest.raises(BadWeights, match=r"c\.ckpt is a damaged checkpoint .*method"):
        restore.restore_method(Shrinking(), entry, Path("c.ckpt"))
