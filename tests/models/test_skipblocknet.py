"""SkipblockNet: what joins its first map to later stages, its public names, its head."""

import json
import re
from pathlib import Path

import pytest
import torch
from support import difference, fresh, images, shaken
from torch import nn
from torch.nn import functional as F

import zoo
from zoo.backbone import LinkedStage
from zoo.blocks.inverted_residual import InvertedResidual
from zoo.blocks.squeeze import SqueezeExcite
from zoo.models.skipblocknet import pool_like

NAME = "skipblocknet_m"
RECORD = Path(__file__).parents[1] / "reference" / "records" / f"{NAME}.json"


def public_state():
    generator = torch.Generator().manual_seed(0)
    return {
        key: torch.rand(shape, generator=generator)
        for key, shape, dtype in json.loads(RECORD.read_text())["state"]
        if "float" in dtype
    }


@pytest.mark.parametrize("prefix", ["", "module."])
def test_public_names(prefix):
    state = public_state()
    model = zoo.create_model(NAME)
    assert zoo.load_weights(model, {f"{prefix}{key}": value for key, value in state.items()}) == []
    places = {
        "first_layer.0.weight": model.stem.conv.weight,
        "base_block.conv.8.bias": model.stages[0].blocks[0].project.norm.bias,
        "blocks.0.1.conv.3.weight": model.stages[1].blocks[1].depthwise.conv.weight,
        "blocks.0.2.conv.0.weight": model.stages[2].blocks[0].expand.conv.weight,
        "blocks.1.3.conv.4.running_var": model.stages[3].blocks[3].depthwise.norm.running_var,
        "blocks.3.2.conv.7.weight": model.stages[5].blocks[2].project.conv.weight,
        "skip1.core_block.6.weight": model.stages[3].link.project.conv.weight,
        "skip2.core_block.1.bias": model.stages[4].link.expand.norm.bias,
        "classifier.0.bias": model.head.hidden[0].bias,
        "classifier.3.weight": model.head.fc.weight,
    }
    for key, ours in places.items():
        assert torch.equal(ours, state[key]), key
    gate = model.stages[2].blocks[0].gate
    assert torch.equal(gate.reduce.weight[:, :, 0, 0], state["blocks.0.2.conv.6.fc.0.weight"])


def test_weights_without_a_skip_block_are_refused():
    state = {key: value for key, value in public_state().items() if not key.startswith("skip2")}
    with pytest.raises(zoo.BadWeights, match=r"missing stages\.4\.link\."):
        zoo.load_weights(zoo.create_model(NAME), state)


@pytest.mark.parametrize("size", [(64, 64), (97, 130)])
def test_the_first_map_is_added_to_the_input_of_two_stages(size):
    model, x = shaken(NAME), images(2, size)
    with torch.no_grad():
        first = model.stages[0](model.stem(x))
        y = model.stages[2](model.stages[1](first))
        for i in (3, 4):
            stage = model.stages[i]
            assert isinstance(stage, LinkedStage)
            pooled = F.adaptive_avg_pool2d(first, y.shape[2:])
            y = stage.blocks(y + stage.link(pooled, y))
        y = model.norm(model.stages[5](y))
        assert difference(model.forward_features(x), y) < 1e-4


@pytest.mark.parametrize("size", [(16, 24), (15, 22), (3, 5)])
def test_pooling_is_adaptive_whatever_the_cells(size):
    x, like = torch.randn(1, 2, *size), torch.zeros(1, 2, size[0] // 2, size[1] // 2)
    want = F.adaptive_avg_pool2d(x, like.shape[2:])
    torch.testing.assert_close(pool_like(x, like, 2), want)


def test_the_public_sizes_of_the_skips():
    """The public code pools to 28 and 14, which is what an image of 217 to 224 pixels needs."""
    for side in (217, 224):
        with torch.device("meta"):
            model = zoo.create_model(NAME, features_only=True).eval()
            sides = [m.shape[2] for m in model(torch.empty(1, 3, side, side))]
        assert sides == [112 if side == 224 else 109, 56 if side == 224 else 55, 28, 14, 7]


def test_levels_and_what_is_cut_off():
    model = shaken(NAME, features_only=True)
    assert model.feature_info.channels() == [16, 24, 40, 112, 160]
    assert model.feature_info.reduction() == [2, 4, 8, 16, 32]
    cut = shaken(NAME, features_only=True, out_indices=(2,))
    assert not [key for key in cut.state_dict() if ".link." in key], "skips lead further on"
    whole, x = shaken(NAME), images(2)
    with torch.no_grad():
        assert torch.equal(cut(x)[0], whole.forward_intermediates(x)[1][2])


def test_the_published_blocks():
    model = zoo.create_model(NAME)
    blocks = [m for s in model.stages for m in s.blocks]
    assert all(isinstance(block, InvertedResidual) for block in blocks)
    widths = [block.depthwise.conv.out_channels for block in blocks]
    assert widths == [16, 64, 72, 72, 120, 240, 240, 200, 184, 184, 480, 672, 672, 960, 960]
    assert isinstance(blocks[0].expand.conv, nn.Conv2d), "it expands by a factor of one"
    squeezed = [isinstance(block.gate, SqueezeExcite) for block in blocks]
    assert squeezed == [False] * 3 + [True] * 3 + [False] * 4 + [True] * 5
    assert blocks[3].gate.reduce.out_channels == 24
    assert {type(b.depthwise.act) for b in blocks[1:5]} == {nn.ReLU}
    assert {type(b.depthwise.act) for b in [blocks[0], *blocks[5:]]} == {nn.Hardswish}
    links = [model.stages[i].link for i in (3, 4)]
    assert [link.depthwise.conv.out_channels for link in links] == [96, 40]
    assert {type(m) for m in links[0].modules() if "activation" in type(m).__module__} == {nn.ReLU}
    assert model.head_hidden_size == 1280


def test_the_hidden_layer_outlives_the_classifier():
    model, x = fresh(NAME), images(2)
    layer = model.head.hidden[0].weight.clone()
    with torch.no_grad():
        seen = model.forward_head(model.forward_features(x), pre_logits=True)
        model.reset_classifier(0)
        assert torch.equal(model(x), seen)
        model.reset_classifier(5)
        assert torch.equal(model.head.hidden[0].weight, layer)
        assert model(x).shape == (2, 5)


def test_fused_skips_keep_their_pooling():
    model = shaken(NAME, torch.float64)
    fused, x = zoo.reparameterize(model), images(2, (97, 130), dtype=torch.float64)
    with torch.no_grad():
        assert difference(fused(x), model(x)) < 1e-9
    assert not re.search("BatchNorm", str(fused))
