"""Adapters: exactly merged for every family, counted by formula, refused where they do nothing."""

import re

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import zoo
from tests.support import SMALLEST, difference, fresh, inputs, quick
from zoo.adapters import adapt, adapters_of, merge
from zoo.errors import BadInput
from zoo.reparam import randomize_parameters, reparameterize

KINDS = ("ssf", "lora", "linear")


def shake_adapters(model: nn.Module) -> None:
    """Give adapters values by which they change the outputs."""
    generator = torch.Generator().manual_seed(1)
    for adapter in adapters_of(model).values():
        for name, parameter in adapter.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            share = 0.2 if parameter.ndim == 1 else 0.3 * parameter[0].numel() ** -0.5
            with torch.no_grad():
                parameter.copy_((name == "gamma") + share * noise)


def assert_same_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    own = model.state_dict()
    assert list(own) == list(state)
    assert all(torch.equal(own[key], state[key]) for key in state)


@pytest.mark.parametrize(("number", "name"), list(enumerate(SMALLEST)))
def test_merged_equals_adapted_for_every_family(number: int, name: str) -> None:
    model = fresh(name, torch.float64, **quick(name, 1))
    plain = {key: value.clone() for key, value in model.state_dict().items()}
    try:
        adapt(model, KINDS[number % 3], rank=2, alpha=3, std=0)
    except BadInput:  # no plain layers but norms
        adapt(model, "ssf", std=0)
    assert_same_state(merge(model), plain)  # fresh adapters change no bit
    shake_adapters(model)
    merged = merge(model)
    own = merged.state_dict()
    assert list(own) == list(plain)
    assert all(own[key].shape == plain[key].shape for key in plain)
    assert sum(not torch.equal(own[key], plain[key]) for key in plain) >= len(adapters_of(model))
    x = inputs(name, dtype=torch.float64)
    with torch.no_grad():
        assert difference(merged(x), model(x)) < 1e-10


LAYERS = {
    "linear": (lambda: nn.Linear(6, 5), (2, 3, 6)),
    "bias-free": (lambda: nn.Linear(6, 5, bias=False), (2, 6)),
    "1d": (lambda: nn.Conv1d(6, 5, 3, padding=1), (2, 6, 7)),
    "2d": (lambda: nn.Conv2d(6, 5, (3, 2), stride=2), (2, 6, 7, 8)),
    "3d": (lambda: nn.Conv3d(6, 5, 2), (2, 6, 3, 4, 5)),
    "depthwise": (lambda: nn.Conv2d(6, 6, 3, groups=6), (2, 6, 5, 5)),
    "batch norm": (lambda: nn.BatchNorm2d(6), (2, 6, 5, 5)),
    "layer norm": (lambda: nn.LayerNorm(6), (2, 3, 6)),
    "group norm": (lambda: nn.GroupNorm(2, 6), (2, 6, 5)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", LAYERS)
def test_an_adapter_computes_its_formula_and_has_that_many_numbers(case: str, kind: str) -> None:
    make, size = LAYERS[case]
    net = nn.Sequential(make()).double().eval()
    randomize_parameters(net)
    plain = make().double().eval()
    plain.load_state_dict(net[0].state_dict())
    if kind != "ssf" and case in ("depthwise", "batch norm", "layer norm", "group norm"):
        with pytest.raises(BadInput, match=f"has no linear layers or .* of the kind {kind}"):
            adapt(net, kind)
        return
    assert adapt(net, kind, rank=2, alpha=3) == ["0"]
    shake_adapters(net)
    t = {name: p.detach() for name, p in adapters_of(net)["0"].named_parameters()}
    x = torch.randn(size, dtype=torch.float64)
    y = plain(x)
    last = case in ("linear", "bias-free", "layer norm")
    rows = y if last else y.movedim(1, -1)
    weight = plain.weight
    out, inside = len(weight), weight[0].numel()
    if kind == "ssf":
        rows = rows * t["gamma"] + t.get("beta", 0)
        count = out if plain.bias is None else 2 * out
    elif kind == "linear":
        rows = rows + 1.5 * F.linear(F.linear(rows, t["down"]), t["up"])
        count = 2 * 2 * out
    else:
        down = type(plain)(6, 2, *_geometry(plain), bias=False).double()
        down.weight.data = t["down"]
        inner = down(x) if last else down(x).movedim(1, -1)
        rows = rows + 1.5 * F.linear(inner, t["up"])
        count = 2 * (inside + out)
    want = rows if last else rows.movedim(-1, 1)
    with torch.no_grad():
        for have in (net(x), merge(net)(x), reparameterize(net)(x)):
            assert (have - want).abs().max() < 1e-12
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == count


def _geometry(layer: nn.Module) -> tuple:
    if isinstance(layer, nn.Linear):
        return ()
    return layer.kernel_size, layer.stride, layer.padding  # pyright: ignore[reportReturnType]


def test_the_classifier_is_trained_and_layers_before_batch_norms_get_no_scale() -> None:
    model = zoo.create_model("mobilenetv2_035", num_classes=3)
    names = adapt(model, "ssf")
    assert all(isinstance(model.get_submodule(name), nn.BatchNorm2d) for name in names)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name in trained if "parametrizations" not in name} == {
        "head.fc.weight",
        "head.fc.bias",
    }
    with pytest.raises(BadInput, match="has adapters already"):
        adapt(model, "lora")


def test_norms_are_trained_themselves_where_a_glob_says() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), nn.LayerNorm(2))
    assert adapt(model, "norms", where=["0"]) == ["0.1"]
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["0.1.weight", "0.1.bias"]


def test_a_merged_model_loads_in_timm_and_computes_the_same() -> None:
    model = zoo.create_model("timm/vit_tiny_patch16_224", num_classes=3, img_size=32, depth=1)
    adapt(model, "lora", where=["blocks.*.mlp.*", "blocks.0.attn.qkv"])
    shake_adapters(model)
    plain = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32, depth=1)
    plain.load_state_dict(merge(model).state_dict())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert difference(plain.eval()(x), model.eval()(x)) < 1e-5


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("lorra", {}, "unknown kind of adapter 'lorra'; did you mean 'lora'"),
        ("lora", {"rank": 0}, "rank=0: must be a whole number of at least 1"),
        ("lora", {"rank": True}, "rank=True: must be a whole number"),
        (
            "lora",
            {"rank": 1000},
            "rank=1000 is above the rank of every adapted layer; .* at most 4",
        ),
        ("linear", {"alpha": 0}, "alpha=0 must be a number greater than 0"),
        ("ssf", {"std": -1}, "std=-1 must be a number at least 0"),
        ("ssf", {"where": []}, "where=.* must be a list of globs"),
        ("ssf", {"where": "0"}, "where=0 must be a list of globs"),
        ("ssf", {"where": ["0", "stages.*"]}, "'stages.*' matches no layer .*these can: 0"),
        ("norms", {}, "Sequential has no norms for adapters of the kind norms"),
    ],
)
def test_what_does_nothing_is_refused(kind: str, arguments: dict, message: str) -> None:
    with pytest.raises(BadInput, match=message) as raised:
        adapt(nn.Sequential(nn.Linear(8, 4), nn.ReLU()), kind, **arguments)
    assert "\n" not in str(raised.value)
    assert re.search(r"[a-z]", str(raised.value))
