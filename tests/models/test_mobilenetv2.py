"""MobileNetV2 against timm's and torchvision's, whatever the width."""

import functools
import re

import pytest
import timm
import torch
import torchvision
from support import difference, images
from test_efficientformer import fill

import zoo
from zoo.blocks.inverted_residual import InvertedResidual

VARIANTS = zoo.list_models(family="mobilenetv2")
WIDTHS = {
    "mobilenetv2_035": 0.35,
    "mobilenetv2_050": 0.5,
    "mobilenetv2_075": 0.75,
    "mobilenetv2_100": 1.0,
    "mobilenetv2_140": 1.4,
}
SIZE = (97, 130)


@functools.cache
def of_timm(name):
    model = fill(timm.create_model(name))
    with torch.no_grad():
        return model.state_dict(), model(images(2, SIZE))


@functools.cache
def of_torchvision(name):
    model = fill(torchvision.models.mobilenet_v2(width_mult=WIDTHS[name]))
    with torch.no_grad():
        return model.state_dict(), model(images(2, SIZE))


@pytest.mark.parametrize("name", VARIANTS)
def test_weights_of_timm(name):
    state, want = of_timm(name)
    model = zoo.create_model(name).eval()
    assert zoo.load_weights(model, state) == []
    with torch.no_grad():
        assert difference(model(images(2, SIZE)), want) < 1e-5


@pytest.mark.parametrize("name", WIDTHS)
def test_weights_of_torchvision(name):
    state, want = of_torchvision(name)
    model = zoo.create_model(name).eval()
    assert zoo.load_weights(model, state) == []
    with torch.no_grad():
        assert difference(model(images(2, SIZE)), want) < 1e-5


def as_d_li14(state):
    """Name torchvision's tensors as d-li14 does: the layers of a block in one sequence."""
    last = max(int(key.split(".")[1]) for key in state if key.startswith("features."))

    def name(key):
        key = key.replace("classifier.1.", "classifier.").replace(f"features.{last}.", "conv.")
        expands = not key.startswith("features.1.")
        parts = (("0.0", 0), ("0.1", 1), ("1.0", 3), ("1.1", 4), ("2", 6), ("3", 7))
        parts = parts if expands else (("0.0", 0), ("0.1", 1), ("1", 3), ("2", 4))
        for old, new in parts:
            found = re.sub(
                rf"^(features\.\d+\.conv)\.{re.escape(old)}\.(?=[a-z])", rf"\1.{new}.", key
            )
            if found != key:
                return found
        return key

    return {name(key): tensor for key, tensor in state.items()}


@pytest.mark.parametrize("name", WIDTHS)
def test_weights_of_d_li14(name):
    state, want = of_torchvision(name)
    public = as_d_li14(state)
    assert {"features.1.conv.4.weight", "features.2.conv.7.weight", "conv.1.bias"} <= public.keys()
    model = zoo.create_model(name).eval()
    assert zoo.load_weights(model, public) == []
    with torch.no_grad():
        assert difference(model(images(2, SIZE)), want) < 1e-5


@pytest.mark.parametrize("published", [of_timm, of_torchvision])
@pytest.mark.parametrize("out_indices", [None, (0, 1), (2,)])
def test_weights_go_into_pyramids(published, out_indices):
    state, _ = published("mobilenetv2_035")
    whole = zoo.create_model("mobilenetv2_035").eval()
    zoo.load_weights(whole, state)
    model = zoo.create_model("mobilenetv2_035", features_only=True, out_indices=out_indices).eval()
    zoo.load_weights(model, state)
    x = images(2, SIZE)
    with torch.no_grad():
        want = whole.forward_intermediates(x, out_indices, intermediates_only=True)
        assert difference(model(x), want) == 0


def test_levels_are_those_of_timm():
    state, _ = of_timm("mobilenetv2_035")
    peer = timm.create_model("mobilenetv2_035", features_only=True).eval()
    peer.load_state_dict(state, strict=False)
    model = zoo.create_model("mobilenetv2_035", features_only=True).eval()
    zoo.load_weights(model, state)
    assert model.feature_info.channels() == peer.feature_info.channels()
    assert model.feature_info.reduction() == peer.feature_info.reduction()
    with torch.no_grad():
        assert difference(model(images(2, SIZE)), peer(images(2, SIZE))) < 1e-5


@pytest.mark.parametrize("output_stride", [8, 16])
def test_dilated_as_timm_dilates(output_stride):
    state, _ = of_timm("mobilenetv2_035")
    peer = timm.create_model("mobilenetv2_035", output_stride=output_stride).eval()
    peer.load_state_dict(state)
    model = zoo.create_model("mobilenetv2_035", output_stride=output_stride).eval()
    zoo.load_weights(model, state)
    x = images(2, (96, 128))
    with torch.no_grad():
        assert difference(model(x), peer(x)) < 1e-5
        assert model.forward_features(x).shape == peer.forward_features(x).shape


@pytest.mark.parametrize("other", ["mobilenetv2_050", "mobilenetv2_120d"])
def test_weights_of_another_width_are_refused(other):
    state, _ = of_timm(other)
    with pytest.raises(zoo.BadWeights, match="does not fit MobileNetV2: .*the model has"):
        zoo.load_weights(zoo.create_model("mobilenetv2_035"), state)


@pytest.mark.parametrize("wrong", [4, 64, 0, "16", 2.5])
def test_output_strides_that_there_are_not(wrong):
    with pytest.raises(zoo.BadInput, match="output_stride="):
        zoo.create_model("mobilenetv2_035", output_stride=wrong)


def test_a_residual_wherever_the_shape_stays():
    model = zoo.create_model("mobilenetv2_100")
    blocks = [module for module in model.modules() if isinstance(module, InvertedResidual)]
    assert (len(blocks), sum(block.residual for block in blocks)) == (17, 10)
    assert len(model.state_dict()) == 314
