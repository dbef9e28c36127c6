"""SINet: the pooled branches, information blocking, one logit, Cityscapes."""

import pytest
import torch
from published import public_state
from support import difference, fresh, images, shaken

import zoo
from zoo.blocks.blocking import unsure
from zoo.keys import convert_keys
from zoo.models.sinet import SqueezeBlock, shuffle_halves
from zoo.reparam import randomize_parameters

# The record is of the network for portraits; that for Cityscapes has another layout.
OWN_LAYOUTS = ("sinet_cityscapes",)


def test_the_halves_are_interleaved():
    x = torch.arange(6.0).view(1, 6, 1, 1)
    assert shuffle_halves(x).flatten().tolist() == [0, 3, 1, 4, 2, 5]


def test_a_norm_moves_before_the_enlargement():
    block = randomize_parameters(SqueezeBlock(6, 8, (5, 2), crossed=True)).eval()
    fused, x = zoo.reparameterize(block), images(2, (8, 12), 6)
    assert isinstance(fused.norm, torch.nn.Identity)
    with torch.no_grad():
        assert difference(fused(x), block(x)) < 1e-5


def test_detail_counts_where_the_classes_are_unsure():
    logits = torch.tensor([[2.0, 0.0], [0.0, 0.0]]).t().reshape(2, 2, 1, 1)
    sure = torch.tensor([2.0, 0.0]).softmax(0)[0].item()
    assert unsure(logits).flatten().tolist() == pytest.approx([1 - sure, 0.5])
    one = torch.tensor([-2.0, 0.0]).reshape(2, 1, 1, 1)
    assert unsure(one).flatten().tolist() == pytest.approx([1 - sure, 0.5])


def test_a_new_number_of_classes_replaces_the_decoder():
    model, x = fresh("sinet_portrait"), images(1, (64, 96))
    model.reset_classifier(5)
    assert model(x).shape == (1, 5, 64, 96)
    model.reset_classifier(0)
    assert model(x).shape == (1, model.num_features, 8, 12)


def test_features_are_joined_at_the_smallest_size():
    model, x = shaken("sinet_portrait"), images(2, (64, 96))
    with torch.no_grad():
        maps = model.forward_intermediates(x, intermediates_only=True)
        features = model.forward_features(x)
    assert [tuple(m.shape[1:]) for m in maps] == [(64, 16, 24), (144, 8, 12)]
    detail = torch.nn.functional.pixel_shuffle(features[:, 144:], 2)
    assert torch.equal(detail, maps[0][:, 16:])


def test_street_scenes_have_the_size_of_the_image():
    with torch.device("meta"):
        model = zoo.create_model("sinet_cityscapes")
        assert model(torch.empty(1, 3, 128, 256)).shape == (1, 19, 128, 256)
        other = zoo.create_model("sinet_cityscapes", num_classes=4)
        assert other(torch.empty(1, 3, 128, 256)).shape == (1, 4, 128, 256)


def test_public_names_of_the_network_for_street_scenes():
    """The names of crossed convolutions, of which there is no record."""
    names = {
        "encoder.level3.1.d2.B_v.weight": "stages.1.blocks.1.branch2.depthwise.norm_v.weight",
        "encoder.level4.7.d1.B_h.bias": "stages.2.blocks.7.branch1.depthwise.norm_h.bias",
        "encoder.level4.6.d1.conv.1.weight": "stages.2.blocks.6.branch1.depthwise.norm.weight",
        "encoder.level2_0.conv.1.dense.0.bias": "stages.0.downsample.conv.gate.layers.0.bias",
        "encoder.BR3.act.weight": "stages.2.downsample.join.act.weight",
        "encoder.BR4.bn.weight": "norm.norm.weight",
        "level3_C.conv.weight": "head.fc.middle.conv.weight",
        "bn_4.weight": "head.fc.norm1.weight",
        "bn_3.weight": "head.fc.norm2.weight",
        "classifier.weight": "head.fc.last.weight",
    }
    with torch.device("meta"):
        model = zoo.create_model("sinet_cityscapes")
    own = model.state_dict()
    converted = convert_keys({key: own[name] for key, name in names.items()}, model)
    assert list(converted) == list(names.values())


def test_published_weights_expect_blue_first():
    image = zoo.model_info("sinet_portrait")["input"]
    assert image["channel_order"] == "BGR"
    assert image["mean"][0] < image["mean"][2]
    assert (
        zoo.load_weights(zoo.create_model("sinet_portrait"), public_state("sinet_portrait")) == []
    )
