"""Linear layers start narrow; other layers are left alone."""

import pytest
import torch
from torch import nn

from zoo.blocks.init import init_linear


@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers_start_narrow(bias):
    layer = nn.Linear(256, 256, bias=bias)
    init_linear(layer)
    assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert layer.weight.mean().abs().item() < 1e-3
    assert not bias or not layer.bias.any()


def test_other_layers_are_left_as_they_are():
    conv = nn.Conv2d(3, 4, 3)
    before = conv.weight.clone()
    init_linear(conv)
    assert torch.equal(conv.weight, before)
