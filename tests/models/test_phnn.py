"""PHNN: products of matrices as weights, quaternions as a special case, dead biases, padding."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from published import public_state
from support import difference, fresh, images
from torch import nn

import zoo
from zoo.models.phnn import PHConv, PHLinear, kronecker_sum

NAME = "phresnet18_large_n3"
TINY = dict(depths=(1, 1, 1, 1), dims=(12, 12, 12, 12))


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def test_autocast_does_not_round_a_weight_before_it_is_used():
    mix, weight = noise(3, 3, 3).float(), noise(6, 2, 1, 1).float()
    want = kronecker_sum(mix, weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(kronecker_sum(mix, weight), want)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_a_weight_is_a_sum_of_kronecker_products(n):
    mix, weight = noise(n, n, n), noise(4 * n, 5, 3, 3)
    found = kronecker_sum(mix, weight)
    assert found.shape == (4 * n, 5 * n, 3, 3)
    for u, v in ((0, 0), (2, 1)):
        terms = (np.kron(mix[m], weight[4 * m : 4 * m + 4, :, u, v]) for m in range(n))
        np.testing.assert_allclose(found[:, :, u, v], sum(terms))


def test_four_products_may_be_a_quaternion_convolution():
    mix = torch.zeros(4, 4, 4, dtype=torch.float64)
    signs = {  # rows: component of the output; columns: of the input
        0: {(0, 0): 1, (1, 1): 1, (2, 2): 1, (3, 3): 1},
        1: {(0, 1): -1, (1, 0): 1, (2, 3): -1, (3, 2): 1},
        2: {(0, 2): -1, (1, 3): 1, (2, 0): 1, (3, 1): -1},
        3: {(0, 3): -1, (1, 2): -1, (2, 1): 1, (3, 0): 1},
    }
    for m, entries in signs.items():
        for place, value in entries.items():
            mix[m][place] = value
    conv = PHConv(8, 12, n=4, kernel_size=3).double()
    conv.mix.data.copy_(mix)
    x = noise(2, 8, 5, 5)
    a, b, c, d = (F.pad(part, [1] * 4) for part in x.chunk(4, dim=1))
    r, i, j, k = conv.weight.chunk(4)
    con = F.conv2d
    want = torch.cat(  # the Hamilton product of the weight and the input
        [
            con(a, r) - con(b, i) - con(c, j) - con(d, k),
            con(a, i) + con(b, r) - con(c, k) + con(d, j),
            con(a, j) + con(b, k) + con(c, r) - con(d, i),
            con(a, k) - con(b, j) + con(c, i) + con(d, r),
        ],
        dim=1,
    )
    torch.testing.assert_close(conv(x), want)


@pytest.mark.parametrize("n", [2, 4])
def test_an_image_of_three_channels_has_zeros_in_front(n):
    whole = zoo.create_model(f"phresnet18_n{n}", in_chans=4, **TINY).double().eval()
    model = zoo.create_model(f"phresnet18_n{n}", **TINY).double().eval()
    model.load_state_dict(whole.state_dict())
    assert not model.stem.conv.bias.requires_grad
    x = images(2, (9, 8), dtype=torch.float64)
    with torch.no_grad():
        assert difference(model(x), whole(F.pad(x, [0, 0, 0, 0, 1, 0]))) < 1e-9


def test_fused_convolutions_are_dense_and_without_bias_of_their_own():
    conv = PHConv(6, 8, n=2, kernel_size=3, stride=2).double().eval()
    x = noise(2, 6, 7, 7)
    dense = zoo.reparameterize(conv)
    assert isinstance(dense, nn.Conv2d)
    assert dense.bias is None
    torch.testing.assert_close(dense(x), conv(x))
    layer = PHLinear(6, 9, n=3).double().eval()
    whole, y = zoo.reparameterize(layer), noise(2, 6)
    assert isinstance(whole, nn.Linear)
    torch.testing.assert_close(whole(y), layer(y))


def test_vgg_is_fused_and_halves_five_times():
    model = fresh("phvgg16_n4", torch.float64, dims=(8, 8, 8, 8, 8), hidden_size=8)
    x = images(2, (70, 64), dtype=torch.float64)
    with torch.no_grad():
        maps = model.forward_intermediates(x, intermediates_only=True)
        assert [m.shape[2] for m in maps] == [35, 17, 8, 4, 2]
        fused = zoo.reparameterize(model)
        assert difference(fused(x), model(x)) < 1e-9
        assert not [m for m in fused.modules() if isinstance(m, PHConv | PHLinear)]
        with pytest.raises(zoo.BadInput, match="at least 32 x 32"):
            model(images(2, (31, 64), dtype=torch.float64))


def test_widths_that_n_does_not_divide_are_refused():
    with pytest.raises(zoo.BadInput, match="out_channels=64 is not divisible by n=3"):
        zoo.create_model("phresnet18_n2", n=3)


def test_public_names():
    state, model = public_state(NAME), zoo.create_model(NAME)
    assert zoo.load_weights(model, {f"module.{key}": t for key, t in state.items()}) == []
    shortcut = model.stages[3].blocks[0].shortcut.conv
    assert torch.equal(shortcut.weight, state["layer4.0.shortcut.0.F"].flatten(0, 1))
    assert torch.equal(shortcut.mix, state["layer4.0.shortcut.0.A"])
    assert torch.equal(shortcut.bias, state["layer4.0.shortcut.0.bias"])
