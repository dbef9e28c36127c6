"""What is folded into transposed convolutions, whose output channels are axis 1 of the weight."""

import pytest
import torch
from torch import nn

from zoo.blocks.folding import fold_batch_norm, merge_pointwise, scale_outputs
from zoo.reparam import randomize_parameters

KINDS = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def filled(module):
    return randomize_parameters(module.double()).eval()


def maps(channels, axes=2):
    return torch.randn(2, channels, *[5, 4, 3][:axes], dtype=torch.float64)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_a_norm_after_it(axes, groups, bias):
    layer = filled(
        KINDS[axes](6, 12, 4, stride=2, padding=1, output_padding=1, groups=groups, bias=bias)
    )
    norm = filled(NORMS[axes](12))
    before = layer.weight.clone()
    x = maps(6, axes)
    with torch.no_grad():
        folded = fold_batch_norm(layer, norm)
        torch.testing.assert_close(folded(x), norm(layer(x)))
        assert not torch.allclose(folded(x), layer(x))
    assert torch.equal(layer.weight, before)


def test_scales_and_shifts_reach_their_channels():
    layer = filled(nn.ConvTranspose2d(4, 6, 2, groups=2))
    scale, shift = torch.arange(6.0) - 2, 10 * torch.arange(6.0)
    x = maps(4)
    with torch.no_grad():
        want = scale.view(-1, 1, 1) * layer(x) + shift.view(-1, 1, 1)
        torch.testing.assert_close(scale_outputs(layer, scale, shift)(x), want)


@pytest.mark.parametrize("biases", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("settings", [{"padding": 1}, {"padding": 0, "output_padding": 1}])
def test_a_pointwise_convolution_after_it(biases, settings):
    layer = filled(nn.ConvTranspose2d(4, 6, 4, stride=2, bias=biases[0], **settings))
    pointwise = filled(nn.Conv2d(6, 3, 1, bias=biases[1]))
    x = maps(4)
    with torch.no_grad():
        merged = merge_pointwise(layer, pointwise)
        torch.testing.assert_close(merged(x), pointwise(layer(x)))  # borders included
    assert (layer.out_channels, merged.out_channels) == (6, 3)
    assert "3, kernel_size=(4, 4)" in repr(merged)


def test_what_is_not_pointwise_is_refused():
    layer = nn.ConvTranspose2d(4, 6, 4)
    for wrong in (nn.Conv2d(6, 3, 3), nn.Conv2d(6, 3, 1, stride=2), nn.Conv2d(6, 3, 1, groups=3)):
        with pytest.raises(AssertionError):
            merge_pointwise(layer, wrong)
