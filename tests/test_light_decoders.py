"""LR-ASPP and Mobile DeepLabv3: the papers' arithmetic, any backbone, and an export."""

import pytest
import torch
from support import images
from torch import nn
from torchvision.models.segmentation.lraspp import LRASPPHead

import zoo
from zoo.light_decoders import LRASPP, levels_of

NAMES = ("lraspp", "mobile_deeplabv3")


def test_lraspp_computes_what_torchvision_computes():
    """A 1x1 convolution of both levels is the sum of torchvision's two."""
    torch.manual_seed(0)
    theirs = LRASPPHead(6, 10, 4, 128).eval()
    ours, last = LRASPP([6, 10]).eval(), nn.Conv2d(134, 4, 1)
    ours.project.load_state_dict(theirs.cbr.state_dict())
    ours.gate.load_state_dict(theirs.scale.state_dict())
    with torch.no_grad():
        weights = [theirs.high_classifier.weight, theirs.low_classifier.weight]
        last.weight.copy_(torch.cat(weights, dim=1))
        last.bias.copy_(theirs.high_classifier.bias + theirs.low_classifier.bias)
        fine, deep = torch.randn(2, 6, 12, 10), torch.randn(2, 10, 3, 2)
        want = theirs({"low": fine, "high": deep})
        torch.testing.assert_close(last(ours([fine, deep])), want)


def test_mobile_deeplab_has_no_dilated_branch():
    model = zoo.create_model("mobile_deeplabv3", encoder="simplenet_cifar_310k", num_classes=3)
    convolutions = [m for m in model.decoder.modules() if isinstance(m, nn.Conv2d)]
    assert [c.kernel_size for c in convolutions] == [(1, 1)] * 3
    assert [c.out_channels for c in convolutions] == [256] * 3
    assert convolutions[-1].in_channels == 512


@pytest.mark.parametrize(
    ("strides", "levels"),
    [([2, 4, 8, 16, 32], [2, 4]), ([16, 32, 64], [0, 2]), ([4, 4, 4, 4], [2, 3]), ([16], [0])],
)
def test_lraspp_takes_the_deepest_level_of_stride_8(strides, levels):
    assert levels_of("lraspp", strides) == levels


@pytest.mark.parametrize(
    ("name", "encoder"), [("lraspp", "mobilemamba_t2"), ("mobile_deeplabv3", "timm/resnet10t")]
)
def test_light_decoders_take_any_backbone(name, encoder):
    model = zoo.create_model(name, encoder=encoder, num_classes=5).eval()
    with torch.no_grad():
        assert model(images(1, (64, 96))).shape == (1, 5, 64, 96)
    model.reset_classifier(2)
    assert model.get_classifier().weight.shape[0] == model.num_classes == 2


def test_light_decoders_need_no_extra_and_have_no_settings(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert zoo.create_model("lraspp", encoder="simplenet_cifar_310k").num_classes == 1
    with pytest.raises(zoo.BadInput, match="width=4 has no effect on lraspp; leave it out"):
        zoo.create_model("lraspp", encoder="simplenet_cifar_310k", width=4)
    with pytest.raises(zoo.BadInput, match="lraspp needs a backbone: set encoder"):
        zoo.create_model("lraspp")


@pytest.mark.parametrize("name", NAMES)
def test_a_light_decoder_is_counted_and_exported(name, tmp_path):
    torch.manual_seed(0)
    model = zoo.create_model(name, encoder="simplenet_cifar_310k", num_classes=4).eval()
    assert zoo.count(model, (1, 3, 32, 48)).macs > 1e6
    artefact = zoo.export(model, "onnx", tmp_path, input_size=(1, 3, 32, 48))
    assert artefact.agreement.max_abs_error <= artefact.agreement.allowed
