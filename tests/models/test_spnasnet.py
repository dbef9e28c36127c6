"""Single-Path NAS against timm's, and the table of the searched network."""

import functools

import pytest
import timm
import torch
from support import difference, images
from test_efficientformer import fill
from torch import nn

import zoo
from zoo.blocks.inverted_residual import InvertedResidual

SIZE = (97, 130)


@functools.cache
def of_timm():
    model = fill(timm.create_model("spnasnet_100"))
    with torch.no_grad():
        return model.state_dict(), model(images(2, SIZE))


@pytest.mark.parametrize("wrapper", ["none", "ema", "module."])
def test_weights_of_timm(wrapper):
    state, want = of_timm()
    if wrapper == "ema":  # the averaged weights are taken where there are both
        noise = {key: torch.randn_like(value.float()) for key, value in state.items()}
        state = {"state_dict": noise, "state_dict_ema": state, "epoch": 1}
    elif wrapper == "module.":
        state = {"state_dict": {f"module.{key}": value for key, value in state.items()}}
    model = zoo.create_model("spnasnet_100").eval()
    assert zoo.load_weights(model, state) == []
    with torch.no_grad():
        assert difference(model(images(2, SIZE)), want) < 1e-5


def test_levels_are_those_of_timm():
    state, _ = of_timm()
    peer = timm.create_model("spnasnet_100", features_only=True).eval()
    peer.load_state_dict(state, strict=False)
    model = zoo.create_model("spnasnet_100", features_only=True).eval()
    zoo.load_weights(model, state)
    assert model.feature_info.channels() == peer.feature_info.channels() == [16, 24, 40, 96, 320]
    assert model.feature_info.reduction() == peer.feature_info.reduction() == [2, 4, 8, 16, 32]
    with torch.no_grad():
        assert difference(model(images(2, SIZE)), peer(images(2, SIZE))) < 1e-5


# In, between, kernel, stride, out, residual: the network found for the Pixel 1, row by row.
# fmt: off
ROWS = [
    (32, 32, 3, 1, 16, False),
    (16, 48, 3, 2, 24, False), *[(24, 72, 3, 1, 24, True)] * 2,
    (24, 144, 5, 2, 40, False), *[(40, 120, 3, 1, 40, True)] * 3,
    (40, 240, 5, 2, 80, False), *[(80, 240, 3, 1, 80, True)] * 3,
    (80, 480, 5, 1, 96, False), *[(96, 288, 5, 1, 96, True)] * 3,
    (96, 576, 5, 2, 192, False), *[(192, 1152, 5, 1, 192, True)] * 3,
    (192, 1152, 3, 1, 320, False),
]
# fmt: on


def test_the_searched_network():
    with torch.device("meta"):
        model = zoo.create_model("spnasnet_100").eval()
        blocks = [module for module in model.modules() if isinstance(module, InvertedResidual)]
        found = []
        for block in blocks:
            conv = block.depthwise.conv
            first = block.expand.conv if block is not blocks[0] else conv
            found.append(
                (first.in_channels, conv.out_channels, conv.kernel_size[0], conv.stride[0],
                 block.project.conv.out_channels, block.residual)
            )  # fmt: skip
        assert found == ROWS
        assert len(model.state_dict()) == 386
        x, sides = model.stem(torch.empty(1, 3, 224, 224)), []
        for stage in model.stages:
            x = stage(x)
            sides.append(x.shape[2])
        assert sides == [112, 56, 28, 14, 14, 7, 7]
    kinds = {type(m) for m in model.modules()}
    assert nn.ReLU in kinds
    assert nn.ReLU6 not in kinds
