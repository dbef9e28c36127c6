"""Cutting models: what belongs to a unit, kept order, dropped blocks, and models built again."""

import re

import pytest
import torch
from torch import Tensor, nn

import zoo
from zoo.blocks.inverted_residual import InvertedResidual
from zoo.blocks.mlp import ConvMlp, MixFFN, Mlp
from zoo.blocks.residual import resnet_unit
from zoo.blocks.squeeze import SqueezeExcite
from zoo.blocks.transformer import SelfAttention
from zoo.blocks.widths import groups_of, multiply, narrow
from zoo.counting.count import count
from zoo.errors import BadInput
from zoo.narrowing import apply_widths, cut, droppable, places, widths_of
from zoo.reparam import randomize_parameters, reparameterize

BLOCKS = {
    "gated": lambda: InvertedResidual(8, 8, gate=SqueezeExcite(48, 4), act=nn.PReLU),
    "sliced": lambda: InvertedResidual(8, 12, stride=2, expansion=3, act=nn.ReLU),
    "conv_mlp": lambda: ConvMlp(8, 24, bias=True),
    "bottleneck": lambda: resnet_unit(8, 16, hidden=12, stride=2),
    "two_convolutions": lambda: resnet_unit(8, 8),
}


def made(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return randomize_parameters(BLOCKS[kind]()).double().eval()


@pytest.mark.parametrize("kind", BLOCKS)
def test_exactly_the_declared_numbers_depend_on_a_unit(kind: str) -> None:
    """Where nothing reads unit 1, the gradients of exactly its other declared numbers vanish."""
    block = made(kind)
    x = torch.randn(16, 8, 6, 6, dtype=torch.float64)
    for group in groups_of(block):
        before = vanishing(block, x)
        expected = {key: torch.zeros_like(mask) for key, mask in before.items()}
        unit = torch.tensor([1])
        parameters = dict(block.named_parameters())
        for part in group.slices:
            if part.reads:
                parameters[part.tensor].data.index_fill_(part.axis, part.positions(unit), 0.0)
            elif part.tensor in expected:
                expected[part.tensor].index_fill_(part.axis, part.positions(unit), True)
        after = vanishing(block, x)
        assert sum(int(mask.sum()) for mask in expected.values()) > 0
        for key, mask in expected.items():
            assert torch.equal(after[key] & ~before[key], mask & ~before[key]), key


def vanishing(block: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return for each parameter where the gradient of the block's output is exactly zero."""
    parameters = dict(block.named_parameters())
    y = block(x)
    total = (y * torch.randn(y.shape, generator=torch.Generator().manual_seed(1))).sum()
    gradients = torch.autograd.grad(total, list(parameters.values()))
    return {key: g == 0 for key, g in zip(parameters, gradients, strict=True)}


@pytest.mark.parametrize("kind", BLOCKS)
def test_units_are_kept_in_the_given_order(kind: str) -> None:
    """A permutation of the units leaves the outputs; then the first ones can be kept."""
    block = made(kind)
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    before = block(x)
    for group in groups_of(block):
        narrow(block, group, torch.randperm(group.width))
    assert (block(x) - before).abs().max() < 1e-10


def test_heads_can_be_permuted_and_cut() -> None:
    torch.manual_seed(0)
    attention = SelfAttention(12, 3).double().eval()
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    before = attention(x)
    (group,) = groups_of(attention)
    narrow(attention, group, torch.tensor([2, 0, 1]))
    assert (attention(x) - before).abs().max() < 1e-12
    multiply(attention, group, torch.tensor([0]), 0.0)  # was head 2
    without = attention(x)
    narrow(attention, group, torch.tensor([1, 2]))
    assert attention.num_heads == 2
    assert attention.qkv.out_features == 24
    assert (attention(x) - without).abs().max() < 1e-12
    assert (reparameterize(attention)(x) - without).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("block", "macs_of_a_unit"),
    [
        (lambda: Mlp(8, 32), 2 * 8 * 5),  # 5 tokens
        (lambda: MixFFN(8, 32), (2 * 8 + 9) * 5),
        (lambda: InvertedResidual(8, 12, stride=2, hidden=32), 8 * 36 + (9 + 12) * 9),
    ],
)
def test_macs_fall_by_the_formula(block, macs_of_a_unit: int) -> None:
    built = block()
    shape = (1, 8, 6, 6) if isinstance(built, InvertedResidual) else (1, 1, 5, 8)
    (group,) = groups_of(built)
    before = count(built, shape).macs
    narrow(built, group, torch.arange(24))
    assert before - count(built, shape).macs == 8 * macs_of_a_unit


@pytest.fixture(scope="module")
def whole() -> nn.Module:
    torch.manual_seed(0)
    return randomize_parameters(zoo.create_model("mobilenetv2_035", num_classes=10)).eval()


def test_a_dropped_block_is_an_identity(whole: nn.Module) -> None:
    path = "stages.2.blocks.1"
    assert path in droppable(whole)
    assert "stages.2.blocks.0" not in droppable(whole)  # of stride 2
    x = torch.randn(2, 3, 32, 32)
    narrower = cut(whole, {}, [path])
    expected = {}
    handle = whole.get_submodule(path).register_forward_hook(lambda m, args, y: args[0])
    expected = whole(x)
    handle.remove()
    assert torch.equal(narrower(x), expected)
    assert not any(key.startswith(path) for key in narrower.state_dict())
    assert f"{path}.hidden" not in widths_of(narrower)


def test_a_model_is_built_again_from_its_widths(whole: nn.Module) -> None:
    kept = {name: range(0, place.group.width, 2) for name, place in places(whole).items()}
    narrower = cut(whole, kept, ["stages.4.blocks.2"])
    table = {name: len(units) for name, units in kept.items() if "4.blocks.2" not in name}
    table["stages.4.blocks.2"] = 0
    again = zoo.create_model("mobilenetv2_035", num_classes=10, widths=table)
    again.load_state_dict(narrower.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(again.eval()(x), narrower(x))
    with pytest.raises(zoo.ZooError, match="stages"):  # the weights are of other widths
        zoo.load_weights(zoo.create_model("mobilenetv2_035", num_classes=10), narrower.state_dict())


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ({"stages.1.blocks.0.hidden": 0}, r"hidden'\]=0 must be a whole number from 1 to 48"),
        ({"stages.1.blocks.0.hidden": 49}, "=49 must be a whole number"),
        ({"stages.1.blocks.0.hidden": 8.0}, "=8.0 must be a whole number"),
        ({"stages.1.blocks.0.hidden": True}, "=True must be a whole number"),
        ({"stages.9.hidden": 8}, "unknown group of widths 'stages.9.hidden'"),
        ({"stages.2.blocks.0": 0}, "unknown block to drop 'stages.2.blocks.0'"),
        ([3], r"widths=\[3\] must be a table"),
    ],
)
def test_bad_widths_are_refused(widths, message: str) -> None:
    with pytest.raises(BadInput, match=message) as hit:
        zoo.create_model("mobilenetv2_035", widths=widths)
    assert "\n" not in str(hit.value)


def test_models_without_such_widths_say_so() -> None:
    with pytest.raises(BadInput, match=r"SimpleNet has no width that can be cut"):
        zoo.create_model("simplenet_cifar_310k", widths={"a.hidden": 8})
    with pytest.raises(BadInput, match="timm/.* cannot be narrowed"):
        zoo.create_model("timm/resnet18", widths={"a.hidden": 8})
    with pytest.raises(BadInput, match="pretrained"):
        zoo.create_model("mobilenetv2_035", pretrained=True, widths={"a.hidden": 8})


@pytest.mark.parametrize("units", [[], [0, 0], [-1], [48]])
def test_bad_units_are_refused(units: list[int], whole: nn.Module) -> None:
    with pytest.raises(BadInput, match=re.escape("stages.1.blocks.0.hidden: give the numbers")):
        cut(whole, {"stages.1.blocks.0.hidden": units})


def test_shared_blocks_are_cut_once() -> None:
    """SReT runs each block several times; two paths of one module stay one module."""
    shared = Mlp(4, 8)
    model = nn.ModuleList([shared, shared])
    apply_widths(model, {"0.hidden": 3})
    assert model[0] is model[1]
    assert model[1].fc1.out_features == 3
