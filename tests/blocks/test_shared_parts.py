"""Parts that several families share, and batch norm statistics estimated again."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import zoo
from zoo.blocks.conv import ConvNorm, channel_prelu
from zoo.blocks.heads import HiddenHead
from zoo.blocks.inverted_residual import InvertedResidual
from zoo.blocks.residual import PooledShortcut, resnet_unit
from zoo.reparam import randomize_parameters, reparameterize


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def made(module):
    return randomize_parameters(module.double()).eval()


def test_an_activation_may_know_the_width():
    block = made(ConvNorm(3, 5, act=channel_prelu, eps=1e-3))
    assert block.act.weight.shape == (5,)
    assert block.norm.eps == 1e-3
    x = noise(2, 3, 4, 4)
    y = block.norm(block.conv(x))
    with torch.no_grad():
        want = torch.where(y > 0, y, block.act.weight[:, None, None] * y)
        torch.testing.assert_close(block(x), want)
        torch.testing.assert_close(reparameterize(block)(x), want)


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (1, 1)])
def test_a_pooled_shortcut_pads_odd_sides_in_front(size):
    block, x = made(PooledShortcut(3, 5, stride=2)), noise(2, 3, *size)
    pooled = F.avg_pool2d(x, 2, 2, padding=[side % 2 for side in size])  # the public code
    with torch.no_grad():
        assert torch.equal(block(x), block.conv(pooled))
    assert isinstance(PooledShortcut(3, 3).conv, nn.Identity)


def test_an_inverted_residual_with_a_shortcut_is_residual_in_every_shape():
    shortcut = PooledShortcut(4, 6, stride=2)
    block = made(InvertedResidual(4, 6, stride=2, shortcut=shortcut, eps=1e-3, act=nn.SiLU))
    x = noise(2, 4, 5, 5)
    assert {m.eps for m in block.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-3}
    with torch.no_grad():
        branch = block.project(block.depthwise(block.expand(x)))
        torch.testing.assert_close(block(x), block.shortcut(x) + branch)


@pytest.mark.parametrize("hidden", [None, 4])
@pytest.mark.parametrize("pooled", [False, True])
def test_units_of_resnet(hidden, pooled):
    unit, x = made(resnet_unit(6, 8, hidden=hidden, stride=2, pooled=pooled)), noise(2, 6, 5, 7)
    kernels = [layer.conv.kernel_size[0] for layer in unit.branch]
    assert kernels == ([3, 3] if hidden is None else [1, 3, 1])
    assert [type(layer.act) for layer in unit.branch][-1] is nn.Identity
    with torch.no_grad():
        y = unit(x)
        assert y.shape == (2, 8, 3, 4)
        short = unit.shortcut(x)
        if pooled:
            pool = F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
            short = unit.shortcut[1](pool)
        torch.testing.assert_close(y, F.relu(short + unit.branch(x)))
        torch.testing.assert_close(reparameterize(unit)(x), y)
    assert isinstance(resnet_unit(8, 8, hidden=hidden, pooled=pooled).shortcut, nn.Identity)


def test_a_hidden_layer_without_bias_and_of_another_activation():
    head = HiddenHead(4, 3, hidden_size=6, bias=False, act=nn.Tanh)
    assert head.hidden[0].bias is None
    x = torch.randn(2, 4, 3, 3)
    want = torch.tanh(head.hidden[0](x.mean((2, 3))))
    torch.testing.assert_close(head(x, pre_logits=True), want)


def net():
    return made(nn.Sequential(ConvNorm(3, 4, kernel_size=3, act=nn.ReLU), ConvNorm(4, 5)))


BATCHES = [noise(6, 3, 5, 5), 2 + noise(2, 3, 5, 5)]


@pytest.mark.parametrize("method", ["cumulative", "once_for_all"])
def test_statistics_are_those_of_the_batches(method):
    model = net()
    before = copy.deepcopy(model.state_dict())
    found = zoo.recalibrate(model, iter(BATCHES), method)
    weights = [6, 2] if method == "once_for_all" else [1, 1]
    inputs = list(BATCHES)
    for layer in found:
        maps = [layer.conv(x) for x in inputs]
        unbiased = method == "cumulative"
        for name, statistics in (
            ("running_mean", [y.mean((0, 2, 3)) for y in maps]),
            ("running_var", [y.var((0, 2, 3), unbiased=unbiased) for y in maps]),
        ):
            want = sum(w * s for w, s in zip(weights, statistics, strict=True)) / sum(weights)
            torch.testing.assert_close(getattr(layer.norm, name), want)
        inputs = [
            layer.act(
                F.batch_norm(y, None, None, layer.norm.weight, layer.norm.bias, training=True)
            )
            for y in maps
        ]
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    assert not any(module.training for module in found.modules())
    assert {layer.norm.momentum for layer in found} == {0.1}
    assert not any(module._forward_pre_hooks for module in found.modules())


def test_what_cannot_be_estimated_is_refused():
    with pytest.raises(zoo.BadInput, match="batches is empty"):
        zoo.recalibrate(net(), [])
    with pytest.raises(zoo.BadInput, match=r"unknown method 'cumulativ'; did you mean"):
        zoo.recalibrate(net(), BATCHES, "cumulativ")
