"""Pruning: scores, allocations, the search for a latency, and what it refuses."""

import copy
from typing import Any

import pytest
import torch
from macs_timer import MacsTimer, macs
from torch import nn
from torch.nn import functional as F

import zoo
from zoo.blocks.conv import ConvNorm
from zoo.blocks.inverted_residual import InvertedResidual
from zoo.blocks.mlp import ConvMlp, Mlp
from zoo.blocks.squeeze import SqueezeExcite
from zoo.blocks.widths import multiply
from zoo.errors import BadInput
from zoo.importance import score
from zoo.narrowing import apply_widths, places, widths_of
from zoo.pruning.allocation import State, choices, steps
from zoo.pruning.prune import prune
from zoo.pruning.table import LatencyTable, measure_table
from zoo.reparam import randomize_parameters
from zoo.settings import PruneConfig

SIZE = (1, 3, 32, 32)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        ConvNorm(3, 8, kernel_size=3, stride=4, act=nn.ReLU),
        InvertedResidual(8, 8),
        InvertedResidual(8, 16, stride=2, gate=SqueezeExcite(48, 4)),
        *(InvertedResidual(16, 16) for _ in range(3)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )
    return randomize_parameters(net).eval()


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return [(images, torch.arange(8))]


def pruned(model: nn.Module, timer: Any = None, **settings: Any):
    config = PruneConfig(**settings)
    return prune(model, SIZE, config, timer or MacsTimer(), batches, F.cross_entropy)


def test_magnitude_by_hand() -> None:
    mlp = Mlp(2, 3)
    with torch.no_grad():
        mlp.fc1.weight.copy_(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 3.0]]))
        mlp.fc2.weight.copy_(torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 1.0]]))
    # squares: fc1 1, 2, 9 (mean 4); fc2 4, 1, 1 (mean 2)
    found = score("magnitude", places(mlp))["hidden"]
    assert found.tolist() == pytest.approx(
        [(1 / 4 + 2) / 2, (2 / 4 + 1 / 2) / 2, (9 / 4 + 1 / 2) / 2]
    )


def test_hesso_by_hand() -> None:
    mlp = Mlp(1, 2)
    with torch.no_grad():
        for tensor, values in (
            (mlp.fc1.weight, [[3.0], [0.0]]),
            (mlp.fc1.bias, [0.0, 1.0]),
            (mlp.fc2.weight, [[4.0, 0.0]]),
        ):
            tensor.copy_(torch.tensor(values))
            tensor.grad = torch.ones_like(tensor)
    # unit 0: w = (3, 0, 4), g = 1: |w| 5, w.g 7; unit 1: w = (0, 1, 0): |w| 1, w.g 1
    terms = torch.tensor(
        [
            [5.0, 1.0],
            [5 / 3**0.5, 1 / 3**0.5],
            [1 + 7 / (5 * 3**0.5), 1 + 1 / 3**0.5],
            [7.0, 1.0],
            [24.5, 0.5],
        ]
    )
    expected = (0.2 * terms / terms.norm(dim=1, keepdim=True)).sum(0)
    assert score("hesso", places(mlp))["hidden"].tolist() == pytest.approx(expected.tolist())


def test_norm_is_the_scale_of_the_batch_norm() -> None:
    block = ConvMlp(2, 3)
    with torch.no_grad():
        block.fc1.norm.weight.copy_(torch.tensor([1.0, -2.0, 0.5]))
    assert score("norm", places(block))["hidden"].tolist() == [1.0, 2.0, 0.5]
    with pytest.raises(BadInput, match="needs a batch norm in every group, but hidden has none"):
        score("norm", places(Mlp(2, 3)))


def test_hesso_without_gradients_is_refused() -> None:
    with pytest.raises(BadInput, match="all of them are zero"):
        score("hesso", places(Mlp(2, 3)))


@pytest.fixture
def two() -> dict[str, Any]:
    model = nn.Sequential(Mlp(4, 32), Mlp(4, 32))
    found = places(model)
    scores = {"0.hidden": torch.arange(32.0), "1.hidden": 10 * torch.arange(32.0)}
    # the second costs four times as much for each unit
    table = LatencyTable({"0.hidden": ([8, 32], [8.0, 32.0]), "1.hidden": ([8, 32], [32.0, 128.0])})
    return {"found": found, "scores": scores, "table": table, "blocks": []}


def test_the_step_with_the_least_score_per_millisecond_comes_first(two: dict[str, Any]) -> None:
    states = list(steps("latency", **two))
    # Units 0..7 of the first: score 28 for 8 ms. Of the second: 280 for 32 ms.
    assert states[0].widths == {"0.hidden": 24, "1.hidden": 32}
    # Then 92 for 8 ms (11.5 each) against 280 for 32 ms (8.75 each).
    assert states[1].widths == {"0.hidden": 24, "1.hidden": 24}
    assert states[-1].widths == {"0.hidden": 8, "1.hidden": 8}
    times = [state.ms(two["table"]) for state in states]
    assert times == sorted(times, reverse=True)
    kept = states[0].kept(two["scores"])
    assert kept["0.hidden"].tolist() == list(range(8, 32))
    assert "1.hidden" not in kept


def test_uniform_and_global(two: dict[str, Any]) -> None:
    uniform = list(steps("uniform", **two))
    assert all(len(set(state.widths.values())) == 1 for state in uniform)
    assert uniform[9].widths == {"0.hidden": 16, "1.hidden": 16}  # half
    half = list(steps("global", **two))[9].widths
    assert half["0.hidden"] == 8
    assert half["1.hidden"] == 32  # of the lower half of all scores, four are its


def test_widths_to_choose_from_are_fast_ones(model: nn.Module) -> None:
    for place in places(model).values():
        widths = choices(place)
        assert widths[0] == place.group.width
        assert all(width % 8 == 0 for width in widths[1:])
        assert 1 <= len(widths) <= 9


def test_the_table_is_measured_once_for_equal_blocks(model: nn.Module) -> None:
    timer = MacsTimer()
    found = places(model)
    table = measure_table(model, found, SIZE, timer)
    assert table.points.keys() == found.keys()
    assert len(timer.calls) < sum(len(widths) for widths, _ in table.points.values())
    for width in (96, 50, 8):  # 16 channels, 16 positions
        assert table.ms("3.hidden", width) * 1e6 == pytest.approx((2 * 16 + 9) * width * 16)


@pytest.mark.parametrize("allocation", ["latency", "global", "uniform"])
def test_the_latency_is_met_by_what_was_measured(model: nn.Module, allocation: str) -> None:
    before = macs(model, SIZE) / 1e6
    timer = MacsTimer()
    found = pruned(model, timer, latency_ms=0.7 * before, allocation=allocation)
    after = macs(found.model, SIZE) / 1e6
    assert 0.5 * before < after <= 0.7 * before
    assert found.comparison.ratio == pytest.approx(after / before)
    assert found.measured == timer.calls.count("compare") <= 8
    again = copy.deepcopy(model)
    apply_widths(again, found.widths)
    again.load_state_dict(found.model.state_dict())
    x = batches()[0][0]
    assert torch.equal(again.eval()(x), found.model(x))
    has_dropped = 0 in found.widths.values()
    assert not has_dropped or allocation == "latency"


def test_statistics_are_those_of_the_narrower_model(model: nn.Module) -> None:
    target = 0.8 * macs(model, SIZE) / 1e6
    found = pruned(model, latency_ms=target, score="hesso", drop_blocks=False)
    assert all(width > 0 for width in found.widths.values())
    images = batches()[0][0]
    means = []
    found.model[0].conv.register_forward_hook(lambda m, args, y: means.append(y.mean((0, 2, 3))))
    found.model(images)
    assert torch.allclose(found.model[0].norm.running_mean, means[0], atol=1e-5)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("settings", "timer", "message"),
    [
        ({"latency_ms": 1e-3}, None, r"latency_ms=0.001 cannot be reached: .* takes [\d.]+ ms"),
        ({"latency_ms": 1e3}, None, r"takes [\d.]+ ms in onnxruntime already; give a lower"),
        ({"latency_ms": 1e-3, "allocation": "uniform"}, None, "cannot be reached"),
        ({"allocation": "zeros"}, None, "no unit of the model is zero; train with train.shrink"),
    ],
)
def test_latencies_that_make_no_sense_are_refused(
    settings: dict[str, Any], timer: Any, message: str, model: nn.Module
) -> None:
    with pytest.raises(BadInput, match=message) as hit:
        pruned(model, timer, **settings)
    assert "\n" not in str(hit.value)


def test_a_model_that_is_not_faster_is_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 16), Mlp(16, 32))
    place = places(model)["2.hidden"]
    multiply(place.block, place.group, torch.tensor([3]), 0.0)
    with pytest.raises(
        BadInput, match=r"not faster: 1\.\d+ times the latency .* nothing was written"
    ):
        pruned(model.eval(), MacsTimer(offset=0.1), allocation="zeros")


def test_models_without_groups_are_refused() -> None:
    with pytest.raises(BadInput, match=r"SimpleNet has no hidden width or head that can be cut"):
        pruned(zoo.create_model("simplenet_cifar_310k").eval(), latency_ms=1.0)


def test_zero_units_are_cut_without_a_change_of_the_outputs(model: nn.Module) -> None:
    shrunk = copy.deepcopy(model)
    gone = {}
    for name, place in places(shrunk).items():
        gone[name] = torch.arange(0, place.group.width, 3)
        multiply(place.block, place.group, gone[name], 0.0)
    found = pruned(shrunk, allocation="zeros")
    x = batches()[0][0].double()
    assert (found.model.double()(x) - shrunk.double()(x)).abs().max() < 1e-10
    full = widths_of(shrunk)
    assert found.widths == {name: full[name] - len(units) for name, units in gone.items()}


def test_a_state_counts_what_is_left() -> None:
    table = LatencyTable({"a": ([2, 4], [1.0, 3.0]), "b": ([4], [5.0])})
    assert State({"a": 3, "b": 4}).ms(table) == 7.0
    assert State({"a": 1}).ms(table) == 0.0
