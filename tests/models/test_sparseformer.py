"""SparseFormer: boxes, samples, encodings, heads, and the refusal of feature maps."""

import math
import re

import pytest
import torch
from published import public_state
from support import images
from torch import nn

import zoo
from zoo.blocks.focusing import AdaptiveMixing, Sampling, adjusted, encode_boxes, sampled
from zoo.keys import convert_keys
from zoo.models.sparseformer import VARIANTS, Focusing

# Their transformers have other numbers of blocks, and their tokens other widths.
OWN_LAYOUTS = ("sparseformer_btsp_augreg_large", "sparseformer_btsp_openai_clip_*")
TINY = dict(tokens=9, dims=(64, 128), depth=1)


def test_a_box_is_moved_by_shares_of_its_size_and_scaled():
    box = torch.tensor([[[0.2, 0.4, 0.6, 0.5]]])
    change = torch.tensor([[[0.5, -1.0, math.log(2), 0.0]]])
    want = [0.4 + 0.5 * 0.4 - 0.4, 0.45 - 0.1 - 0.05, 0.4 + 0.5 * 0.4 + 0.4, 0.45 - 0.1 + 0.05]
    assert adjusted(box, change)[0, 0].tolist() == pytest.approx(want)


@pytest.mark.parametrize("border", [True, False])
def test_samples_are_bilinear_values_at_points_of_the_box(border):
    ramp = torch.arange(8.0).expand(1, 1, 4, 8).clone()  # values grow with x: 8 x - 0.5
    box = torch.tensor([[[0.25, 0.0, 0.75, 1.0]]])
    offsets = torch.tensor([[-1.0, 0.0], [1.0, 0.0]]).view(1, 1, 2, 2)
    deviation = 3 * (offsets[..., 0].std() + 1e-5)
    values = sampled(ramp, box, offsets, border)[0, 0, :, 0]
    want = [8 * (0.5 + sign / deviation.item() * 0.5) - 0.5 for sign in (-1, 1)]
    assert values.tolist() == pytest.approx(want, abs=1e-4)
    outside = sampled(ramp, box + 5, offsets, border)
    assert outside.abs().max().item() == (7.0 if border else 0.0)


def test_the_encoding_of_a_box_has_no_gradient():
    boxes = torch.tensor([[[0.1, 0.2, 0.3, 0.4]]], requires_grad=True)
    encoded = encode_boxes(boxes, 16)
    factors = [128 ** (j / 3) for j in range(4)]
    first = [math.sin(math.pi * 0.1 * factors[j]) for j in (0, 2)]
    first += [math.cos(math.pi * 0.1 * factors[j]) for j in (1, 3)]
    assert encoded[0, 0, :4].tolist() == pytest.approx(first, abs=1e-4)
    assert not encoded.requires_grad


def test_mixing_multiplies_channels_then_points():
    torch.manual_seed(0)
    mixing = AdaptiveMixing(8, 3, 4, hidden=5, biased=True)
    for bias in (mixing.channel_bias, mixing.point_bias):
        nn.init.normal_(bias)
    samples, x = torch.randn(1, 2, 4, 3), torch.randn(1, 2, 8)
    numbers = mixing.expand(mixing.reduce(mixing.norm(x)))[0, 1]
    m, n = numbers[:9].view(3, 3), numbers[9:].view(32, 4)
    y = nn.functional.gelu(samples[0, 1] @ m + mixing.channel_bias)
    z = nn.functional.gelu(n @ y + mixing.point_bias[:, None])
    torch.testing.assert_close(mixing(samples, x)[0, 1], mixing.proj(z.flatten()))


def test_boxes_start_as_a_grid_of_halves_and_whole_images():
    focusing = Focusing(8, 6, (64, 64), bootstrapped=True, drop_path=0.0)
    focusing.init()
    boxes = focusing.start_boxes.tolist()
    assert boxes[:2] == [[0, 0, 0.5, 0.5], [0, 0.5, 0.5, 1]]
    assert boxes[3:] == [[0.5, 0.5, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1]]


def test_points_start_as_a_grid():
    sampling = Sampling(8, 4, 4, hidden=4, biased=False, border=True, drop_path=0.0)
    sampling.init()
    points = sampling.start.view(4, 2).tolist()
    assert points == [[-0.25, -0.25], [0.25, -0.25], [-0.25, 0.25], [0.25, 0.25]]


@pytest.mark.parametrize("name", ["sparseformer_v1_tiny", "sparseformer_btsp_augreg_base"])
def test_feature_maps_are_refused_with_the_reason(name):
    with pytest.raises(zoo.BadInput, match="tokens with boxes, not feature maps"):
        zoo.create_model(name, **TINY, features_only=True)
    model = zoo.create_model(name, **TINY)
    with pytest.raises(zoo.BadInput, match="tokens with boxes, not feature maps"):
        model.forward_intermediates(images(1))


def test_the_network_of_clip_has_no_bias_in_its_head():
    model = zoo.create_model("sparseformer_btsp_openai_clip_base", **TINY).eval()
    assert model.head.fc.linear.bias is None
    assert model(images(1, (32, 48))).shape == (1, 512)
    assert model.forward_features(images(1, (32, 48))).shape == (1, 128, 1, 10)
    model.reset_classifier(5)
    assert model.head.fc.linear.bias is None


def test_public_names_of_the_bootstrapped_network():
    state = public_state("sparseformer_btsp_augreg_base")
    model = zoo.create_model("sparseformer_btsp_augreg_base")
    assert zoo.load_weights(model, state) == []
    first = model.stages[0].downsample.first
    assert torch.equal(first.boxes.linear.weight, state["layers.0.roi_adjust_module.3.weight"])
    token = model.stages[0].downsample.last.token
    assert torch.equal(token[0], state["cls_embedding.weight"])


@pytest.mark.parametrize("name", zoo.list_models("sparseformer_btsp_*"))
def test_public_names_of_the_other_bootstrapped_networks(name):
    record = public_state("sparseformer_btsp_augreg_base", lambda key: "layers.10." not in key)
    last = {key: key.removeprefix("layers.3.") for key in record if key.startswith("layers.3.")}
    known = [key for key in record if not re.match(r"layers\.[3-9]\.", key)]
    known += [
        f"layers.{3 + i}.{rest}" for rest in last.values() for i in range(VARIANTS[name]["depth"])
    ]
    known = [key for key in known if key != "proj.bias" or "clip" not in name]
    with torch.device("meta"):
        model = zoo.create_model(name)
        state = {key: torch.empty(1) for key in known}
    assert convert_keys(state, model).keys() == model.state_dict().keys()
