"""Elastic training: nested networks, their gradients, resumed runs, and networks taken out."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from macs_timer import MacsTimer
from torch import nn

import zoo
from zoo.blocks.inverted_residual import InvertedResidual
from zoo.blocks.squeeze import SqueezeExcite
from zoo.command_line.composition import run as run_command
from zoo.commands import prune as prune_command
from zoo.errors import BadInput, ZooError
from zoo.narrowing import cut, hidden_places, prefix, widths_of
from zoo.reparam import randomize_parameters
from zoo.training.elastic import Elastic, Nested

from .conftest import assert_same_run, checkpoint_of, resume_run, signal_at

RUN = (
    "model=cct_2_3x2_32",
    "data.image_size=32",
    "train.batch_size=4",
    "train.limit_train_batches=3",
    "train.limit_val_batches=1",
    "train.epochs=2",
    "train.ema_decay=0.5",
    "train.loggers=[csv]",
    "train.elastic=[0.25,0.5,0.75]",
)


def network() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2),
        InvertedResidual(8, 8, gate=SqueezeExcite(48, 4), drop_path=0.3),
        InvertedResidual(8, 8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(8, 5),
    )
    return randomize_parameters(net).double()


X = torch.randn(6, 3, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_a_nested_network_equals_the_one_that_is_cut_out(share: float) -> None:
    net = network()
    nested = Nested(net, share).eval()
    extracted = cut(net, prefix(hidden_places(net), share)).eval()
    assert set(widths_of(extracted).values()) == {int(48 * share + 7) // 8 * 8}
    assert (nested(X) - extracted(X)).abs().max() < 1e-10
    if share == 1.0:
        assert torch.equal(nested(X), net.eval()(X))


def test_it_follows_the_parameters_of_the_whole_network() -> None:
    net = network()
    nested = Nested(net, 0.5).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.1)
    extracted = cut(net, prefix(hidden_places(net), 0.5)).eval()
    assert (nested(X) - extracted(X)).abs().max() < 1e-10
    assert list(nested.parameters()) != []
    assert not any(p is q for p in nested.parameters() for q in net.parameters())


def test_gradients_are_the_sum_of_separate_ones() -> None:
    net = network().eval()
    method = Elastic([0.5])
    method.nested = [Nested(net, 0.5)]
    labels = torch.arange(6) % 5
    outputs = net(X)
    F.cross_entropy(outputs, labels).backward()
    for loss in method.branches(net, X, outputs):
        loss.backward()
    together = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}

    net.zero_grad()
    F.cross_entropy(net(X), labels).backward()
    alone = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    narrow = cut(net, prefix(hidden_places(net), 0.5)).train()
    for module in narrow.modules():
        if isinstance(module, nn.Dropout) or type(module).__name__ == "DropPath":
            module.eval()
    target = outputs.detach().float().softmax(1)
    loss = -(target * F.log_softmax(narrow(X).float(), 1)).sum(1).mean()
    loss.backward()
    for name, parameter in narrow.named_parameters():
        expected = alone[name].clone()
        window = tuple(slice(0, n) for n in parameter.shape)
        expected[window] += parameter.grad
        assert (together[name] - expected).abs().max() < 1e-10, name


def test_the_smallest_and_another_one_learn_from_the_whole_one() -> None:
    net = network()
    method = Elastic([0.75, 0.25, 0.5])
    method.nested = [Nested(net, share) for share in method.shares]
    used: list[float] = []
    for share, nested in zip(method.shares, method.nested, strict=True):
        nested.register_forward_pre_hook(lambda *_, share=share: used.append(share))
    torch.manual_seed(0)
    for _ in range(12):
        assert len(list(method.branches(net, X, net(X)))) == 2
    assert used[::2] == [0.25] * 12
    assert set(used[1::2]) == {0.5, 0.75}


def test_the_statistics_of_the_whole_network_stay() -> None:
    net = network().train()
    method = Elastic([0.5])
    method.nested = [Nested(net, 0.5)]
    outputs = net(X)
    before = {name: value.clone() for name, value in net.named_buffers()}
    for loss in method.branches(net, X, outputs):
        loss.backward()
    assert all(torch.equal(value, before[name]) for name, value in net.named_buffers())


def test_runs_resume_exactly_and_give_smaller_networks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_command("train", [*RUN, f"train.out={tmp_path / 'whole'}"])
    with signal_at(update=2):
        run_command("train", [*RUN, f"train.out={tmp_path / 'stopped'}"])
    (folder,) = (tmp_path / "stopped").iterdir()
    resume_run(folder)
    assert_same_run(whole, folder)

    monkeypatch.setattr(prune_command, "create_timer", lambda settings: MacsTimer())
    nested = ["prune.allocation=nested", "prune.latency_ms=31.5", "prune.images=4"]
    narrow = run_command("prune", [f"weights={whole}", *nested])
    made = checkpoint_of(narrow, "best")
    full = checkpoint_of(whole, "best")["state_dict_ema"]
    for name, value in made["state_dict"].items():
        assert torch.equal(value, full[name][tuple(slice(0, n) for n in value.shape)])
    model = zoo.create_model(**made["model"])
    assert {w for n, w in widths_of(model).items() if n.endswith("hidden")} == {64}  # a half
    assert {w for n, w in widths_of(model).items() if n.endswith("heads")} == {2}
    with pytest.raises(BadInput, match="was trained without train.elastic"):
        run_command("prune", [f"weights={narrow}", *nested])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train.elastic=[0.5,1]"], r"train.elastic=\[0.5, 1.0\] must be different shares above"),
        (["train.elastic=[0.5,0.5]"], "must be different shares"),
        (["train.elastic=[0]"], "must be different shares"),
        (["train.elastic=[0.5]", "train.shrink=0.5"], "train.shrink=0.5 is not supported with"),
        (["train.elastic=[0.5]", "train.qat=true"], "train.qat=true is not supported with"),
        (["train.elastic=[0.5]", "model=simplenet_cifar_310k"], "SimpleNet has no hidden width"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    settings: list[str], message: str, tmp_path: Path
) -> None:
    given = ["data.image_size=32", f"train.out={tmp_path}", *settings]
    with pytest.raises(ZooError, match=message) as hit:
        run_command("train", given)
    assert "\n" not in str(hit.value)
    assert not list(tmp_path.iterdir())


def test_several_processes_are_refused() -> None:
    with pytest.raises(BadInput, match="runs in one process, not in 2"):
        Elastic([0.5]).check_processes(2)
