"""Small parts against their formulas: stochastic depth, norms, scales, folding, key renaming."""

import pytest
import torch
from timm.layers import DropPath
from torch import nn

from zoo.blocks.conv import ConvNorm
from zoo.blocks.drop import drop_path_rates
from zoo.blocks.folding import (
    Absorbing,
    affine_inputs,
    mean_of,
    rebuilt,
    scale_outputs,
    split_affine,
)
from zoo.blocks.heads import DistilledHead
from zoo.blocks.mlp import ConvMlp, Mlp
from zoo.blocks.norm import LayerNorm2d
from zoo.blocks.scale import LayerScale
from zoo.blocks.sizes import grid_size, pair
from zoo.errors import BadInput
from zoo.keys import KeyStyle, prefixed, recognise, rename
from zoo.reparam import randomize_parameters, reparameterize


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(4000, 3), (4000, 3, 2, 2)])
def test_drop_path_drops_whole_samples_and_keeps_the_mean(shape):
    torch.manual_seed(0)
    drop, x = DropPath(0.3).train(), torch.ones(shape)
    y = drop(x).flatten(1)
    assert y.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert (y == y[:, :1]).all(), "a sample is dropped whole"
    assert (y[:, 0] == 0).float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert y.mean().item() == pytest.approx(1, abs=0.05)
    assert drop.eval()(x) is x
    assert DropPath(0.0).train()(x) is x


def test_drop_path_passes_gradients_of_what_it_keeps():
    torch.manual_seed(0)
    x = torch.ones(8, 2, requires_grad=True)
    y = DropPath(0.5).train()(x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
    assert 0 < (x.grad == 0).sum() < x.numel()


def test_rates_grow_linearly_over_all_blocks():
    assert drop_path_rates(0.4, (2, 1, 2)) == [
        pytest.approx(r) for r in ([0, 0.1], [0.2], [0.3, 0.4])
    ]
    assert drop_path_rates(0.4, (1,)) == [[0.0]]
    assert drop_path_rates(0.0, (2, 2)) == [[0.0, 0.0], [0.0, 0.0]]


def test_layer_norm_of_a_map_is_that_of_its_positions():
    norm = randomize_parameters(LayerNorm2d(6).double())
    x = noise(2, 6, 3, 5)
    want = nn.functional.layer_norm(x.permute(0, 2, 3, 1), (6,), norm.weight, norm.bias)
    torch.testing.assert_close(norm(x), want.permute(0, 3, 1, 2))


def test_layer_scale_scales_channels():
    x = noise(2, 6, 3, 6)
    scale = LayerScale(6, init=0.5).double()
    scale.gamma.data = noise(6)
    torch.testing.assert_close(scale(x), x * scale.gamma)
    scale.spatial = True
    torch.testing.assert_close(scale(x), x * scale.gamma.view(1, 6, 1, 1))
    assert torch.equal(LayerScale(3, init=1e-5).gamma, torch.full((3,), 1e-5))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("act", [None, nn.ReLU6])
def test_conv_norm_fuses_and_scales(bias, act):
    block = randomize_parameters(
        ConvNorm(4, 6, kernel_size=5, stride=2, groups=2, dilation=2, bias=bias, act=act).double()
    ).eval()
    fused, x = block.fused(), noise(2, 4, 11, 13)
    assert isinstance(fused.norm, nn.Identity)
    assert isinstance(block.norm, nn.BatchNorm2d), "the block itself stays"
    with torch.no_grad():
        torch.testing.assert_close(fused(x), block(x))
        if act is None:
            gamma = noise(6)
            torch.testing.assert_close(
                scale_outputs(fused, gamma)(x), block(x) * gamma.view(1, 6, 1, 1)
            )
    assert fused.fused() is fused
    assert (block(x).shape[2], block(x).shape[3]) == (6, 7)


def test_both_perceptrons_compute_the_same_without_norms():
    plain, conv = Mlp(4, 8).double(), ConvMlp(4, 8, act=nn.GELU, bias=True).double().eval()
    for a, b in ((plain.fc1, conv.fc1), (plain.fc2, conv.fc2)):
        b.conv.weight.data = a.weight.data[:, :, None, None].clone()
        b.conv.bias.data = a.bias.data.clone()
        b.norm = nn.Identity()
    x = noise(2, 4, 3, 3)
    want = plain(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(conv(x), want)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shift", [False, True])
def test_affine_maps_go_into_linear_layers(bias, shift):
    layer, x = nn.Linear(4, 6, bias=bias).double(), noise(5, 4)
    out, inn = (noise(2, 6), noise(2, 4))
    extra = out[1] if shift else None
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    scaled = scale_outputs(layer, out[0], extra)
    torch.testing.assert_close(scaled(x), layer(x) * out[0] + (out[1] if shift else 0))
    extra = inn[1] if shift else None
    fed = affine_inputs(layer, inn[0], extra)
    torch.testing.assert_close(fed(x), layer(x * inn[0] + (inn[1] if shift else 0)))
    assert all(torch.equal(before[key], value) for key, value in layer.state_dict().items())
    assert (scaled.bias is not None) == (bias or shift)


def test_the_mean_of_linear_layers_and_the_halves_of_a_norm():
    layers, x = [nn.Linear(4, 3).double() for _ in range(3)], noise(5, 4)
    torch.testing.assert_close(mean_of(layers)(x), sum(layer(x) for layer in layers) / 3)
    for norm in (nn.LayerNorm(4).double(), nn.GroupNorm(2, 4).double()):
        plain, weight, bias = split_affine(randomize_parameters(norm))
        torch.testing.assert_close(plain(x) * weight + bias, norm(x))
        assert norm.weight is weight
        assert plain.weight is None
        assert "affine=True" in str(norm)
        assert "affine=False" in str(plain)


@pytest.mark.parametrize("norm", ["", "batch"])
def test_two_linear_classifiers_become_one(norm):
    head = randomize_parameters(DistilledHead(6, 3, norm=norm).double()).eval()
    x = noise(2, 6, 4, 4)
    fused = reparameterize(head)
    assert type(fused.fc) is nn.Linear
    torch.testing.assert_close(fused(x), head(x))
    assert isinstance(DistilledHead(6, 0).eval().fused().fc, nn.Identity), "nothing to average"


def test_classifiers_without_a_mean_are_not_fused():
    head = DistilledHead(6, 3, norm="layer").eval()
    with pytest.raises(BadInput, match="cannot fuse the classifiers NormLinear and NormLinear"):
        reparameterize(head)


class Branch(Absorbing):
    """norm, two layers that read it, a scale on the second."""

    absorbs_before = {"a": "norm", "b.fc1": "norm"}
    absorbs_after = {"b": "scale"}

    def __init__(self, padding=0):
        super().__init__()
        self.norm = LayerNorm2d(4)
        self.a = nn.Conv2d(4, 6, 3, padding=padding)
        self.b = Mlp(4, 5)
        self.scale = LayerScale(4)

    def forward(self, x):
        x = self.norm(x)
        return self.a(x), self.scale(self.b(x.permute(0, 2, 3, 1)))


def test_layers_absorb_the_norm_before_and_the_scale_after_them():
    block, x = randomize_parameters(Branch().double()), noise(2, 4, 5, 7)
    fused = block.fused()
    assert fused.norm.weight is None
    assert isinstance(fused.scale, nn.Identity)
    assert isinstance(block.scale, LayerScale), "the block itself is unchanged"
    torch.testing.assert_close(fused(x), block(x))
    assert fused.fused() is fused


def test_a_padded_convolution_absorbs_no_norm_before_it():
    block, x = randomize_parameters(Branch(padding=1).double()), noise(2, 4, 5, 7)
    fused = block.fused()
    assert fused.norm is block.norm
    assert isinstance(fused.scale, nn.Identity)
    torch.testing.assert_close(fused(x), block(x))


def test_rebuilding_shares_nothing_that_is_assigned():
    layer = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    other = rebuilt(layer, **{"0": nn.Linear(2, 3)})
    assert layer[0].out_features == 2
    assert other[0].out_features == 3
    assert other[1] is layer[1]


@pytest.mark.parametrize("wrong", [0, -1, 2.0, "64", (1,), (1, 2, 3), (1, 0), (1, 2.0), True, None])
def test_sizes_that_are_none(wrong):
    with pytest.raises(BadInput, match="img_size="):
        pair(wrong)


def test_sizes_of_maps_round_up():
    assert pair(3) == (3, 3)
    assert pair([3, 4]) == (3, 4)
    assert grid_size((97, 130), 32) == (4, 5)
    assert grid_size(224, 32) == (7, 7)


def test_keys_are_renamed_by_the_first_rule_at_their_beginning():
    state = dict.fromkeys(("a.1.x", "b.a.1.x", "c", "a.2"), torch.zeros(1))
    rules = [
        (r"a\.(\d)\.", r"first.\1."),
        (r"a\.", lambda fit: f"second{fit.end()}."),
        (r"c$", "d"),
    ]
    assert list(rename(state, rules)) == ["first.1.x", "b.a.1.x", "d", "second2.2"]
    assert list(state) == ["a.1.x", "b.a.1.x", "c", "a.2"]


def test_replacements_compute_numbers_and_drop_keys():
    state = dict.fromkeys(("block7.x", "block12.x", "index", "rest"), torch.zeros(1))
    rows = [(r"block(?P<n>\d+)\.", r"stages.{n-1//4}.{1//2%2+1}.{n*2}.\1."), (r"index$", None)]
    assert list(rename(state, rows)) == ["stages.1.2.14.7.x", "stages.2.1.24.12.x", "rest"]


def test_a_style_is_a_table_or_a_function_of_the_model():
    state = {"a.1.c": torch.zeros(1), "b": torch.ones(1)}
    table = [(r"a\.(\d)", "first.{1-1}")]
    for rows in (table, lambda model: table):
        style = KeyStyle("x", "b", rows=rows, inside=[(r"\.c$", ".conv")])
        assert list(style.to_own(state, None)) == ["first.0.conv", "b"]
    doubled = KeyStyle("x", "b", tensors=lambda state, model: {k: 2 * t for k, t in state.items()})
    assert doubled.to_own(state, None)["b"] == 2
    assert prefixed("old", "new.", [("a", "b"), ("c", None)]) == [("olda", "new.b"), ("oldc", None)]


def test_a_style_is_known_by_its_marker():
    styles = [KeyStyle(name, name, lambda state, model: state) for name in ("a", "b")]
    assert recognise({"b": torch.zeros(1)}, styles) is styles[1]
    assert recognise({"c": torch.zeros(1)}, styles) is None
