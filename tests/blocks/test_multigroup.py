"""Several grouped convolutions and an identity as one convolution."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import zoo
from zoo.blocks.multigroup import MultiGroupConv, regrouped
from zoo.reparam import randomize_parameters


def made(*args, **kwargs):
    torch.manual_seed(0)
    block = randomize_parameters(MultiGroupConv(*args, **kwargs)).double().eval()
    return block, torch.randn(2, args[0], 7, 10, dtype=torch.float64)


@pytest.mark.parametrize(
    ("arguments", "options", "groups"),
    [
        ((12, 12, [(3, 12), (3, 4), (1, 2)]), {}, 2),
        ((12, 12, [(3, 12), (5, 6)]), {}, 6),
        ((12, 12, [(3, 4), (3, 6)]), {"identity": False}, 2),
        ((8, 16, [(3, 4), (1, 1)]), {"stride": 2}, 1),
        ((6, 6, [(3, 6)]), {}, 6),
    ],
)
def test_one_convolution_computes_the_sum(arguments, options, groups):
    block, x = made(*arguments, **options)
    fused = zoo.reparameterize(block)
    assert isinstance(fused, nn.Conv2d)
    assert fused.groups == groups
    with torch.no_grad():
        assert (fused(x) - block(x)).abs().max() < 1e-10


def test_the_identity_needs_equal_channels_and_stride_1():
    assert made(12, 12, [(3, 1)])[0].identity is not None
    for arguments, options in (((12, 6, [(3, 1)]), {}), ((12, 12, [(3, 1)]), {"stride": 2})):
        assert made(*arguments, **options)[0].identity is None


def test_a_grouped_kernel_is_block_diagonal_and_grows_at_its_edges():
    weight = torch.randn(6, 2, 3, 3)  # three groups of 2 inputs
    x = torch.randn(1, 6, 5, 5)
    dense = regrouped(weight, 3, 1, 5)
    assert dense.shape == (6, 6, 5, 5)
    assert not dense[:2, 2:].any()
    want = F.conv2d(x, weight, padding=1, groups=3)
    torch.testing.assert_close(F.conv2d(x, dense, padding=2), want, atol=1e-5, rtol=1e-5)
