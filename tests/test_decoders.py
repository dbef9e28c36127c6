"""Decoders on backbones: built by every road, trained, and refused where strides do not allow."""

import contextlib

import pytest
import torch
from support import images

import zoo
from zoo import encoders
from zoo.command_line.composition import compose, parse
from zoo.commands.resolve import model_arguments
from zoo.registry import DECODERS

pytest.importorskip("segmentation_models_pytorch")

LADDERS = {  # the kinds of strides that there are, and one backbone of each
    "efficientformer_l1": [4, 8, 16, 32],
    "mobilenetv2_035": [2, 4, 8, 16, 32],
    "efficientvmamba_tiny": [4, 8, 16, 32],
    "timm/resnet10t": [2, 4, 8, 16, 32],
}


def build(name="unet", encoder="mobilenetv2_035", **kwargs):
    return zoo.create_model(name, encoder=encoder, num_classes=5, **kwargs)


@pytest.mark.parametrize("encoder", LADDERS)
def test_unets_on_backbones_of_every_kind(encoder):
    assert encoders.strides_of(encoder) == LADDERS[encoder]
    model = build(encoder=encoder)
    logits = model(images(2, (64, 96)))
    assert logits.shape == (2, 5, 64, 96)
    logits.square().mean().backward()
    first, last = (p.grad for p in list(model.parameters())[:: len(list(model.parameters())) - 1])
    assert first.abs().sum() > 0
    assert last.abs().sum() > 0


@pytest.mark.parametrize("name", DECODERS)
def test_every_decoder_draws_at_the_size_of_the_image(name):
    with torch.no_grad():
        model = build(name).eval()
        assert model(images(1, (128, 160))).shape == (1, 5, 128, 160)
    assert (model.num_classes, model.in_chans) == (5, 3)


@pytest.mark.parametrize("name", ["linknet", "fpn"])
def test_sizes_that_cannot_work_name_those_that_do(name):
    with pytest.raises(zoo.BadInput, match=r"\[65, 96\] pixels: .* multiple of 32"):
        build(name)(images(1, (65, 96)))
    assert build("unet").eval()(images(1, (65, 97))).shape == (1, 5, 65, 97)


@pytest.mark.parametrize("name", DECODERS)
def test_small_images_work_or_name_the_size_that_does(name):
    """Sides from 1 to 128 pixels, also unequal ones: never an error of PyTorch."""
    model = build(name).eval()
    for size in [(1, 1), (8, 8), (16, 16), (32, 32), (64, 96), (33, 64), (32, 128), (100, 127)]:
        with torch.no_grad(), contextlib.suppress(zoo.BadInput):
            assert model(torch.zeros(1, 3, *size)).shape[2:] == size
    if name == "pan":
        with pytest.raises(zoo.BadInput, match=r"\[96, 128\] pixels: .* at least 128"):
            model(torch.zeros(1, 3, 96, 128))


def test_what_trainers_ask_of_a_model():
    model = build(encoder="efficientformer_l1", in_chans=4)
    assert model.in_chans == 4
    names = dict(model.named_parameters())
    tables = model.no_weight_decay()
    assert tables
    assert tables <= set(names), "the encoder's, under the names that they have here"
    assert model.get_classifier().weight.shape[0] == 5
    model.reset_classifier(3)
    model.set_grad_checkpointing()
    assert model(images(2, channels=4)).shape == (2, 3, 64, 64)
    assert model.num_classes == 3


def test_parameters_have_the_names_of_segmentation_models_pytorch():
    import segmentation_models_pytorch as smp

    theirs = smp.create_model("unet", "tu-zoo_mobilenetv2_035", encoder_weights=None, classes=5)
    model, x = build().eval(), images(2)
    zoo.load_weights(model, theirs.state_dict())
    with torch.no_grad():
        assert torch.equal(model(x), theirs.eval()(x))


def test_fusing_keeps_the_logits():
    model, x = build().eval(), images(2)
    with torch.no_grad():
        want, have = model(x), zoo.reparameterize(model)(x)
    torch.testing.assert_close(have, want, rtol=0, atol=1e-4 * want.std().item())


def test_settings_of_a_decoder_reach_it():
    narrow = build(decoder_channels=[32, 16, 8, 8, 8])
    assert sum(p.numel() for p in narrow.decoder.parameters()) < 1e6
    with pytest.raises(zoo.BadInput, match="unet with encoder=mobilenetv2_035 cannot be built"):
        build(decoder_channels=[32, 16])


def test_weights_of_a_whole_network_can_be_loaded(tmp_path):
    model, x = build().eval(), images(1)
    torch.save(model.state_dict(), tmp_path / "unet.pt")
    again = build(checkpoint_path=str(tmp_path / "unet.pt")).eval()
    with torch.no_grad():
        assert torch.equal(again(x), model(x))


REFUSED = [
    (
        {"encoder": "mobilemamba_t2"},
        r"encoder=mobilemamba_t2 has feature strides 16, 32, 64; unet needs 4, 8, 16, 32"
        r" \(and optionally 2\): choose a backbone such as mobilenetv2_100$",
    ),
    ({"encoder": None}, r"unet needs a backbone: set encoder"),
    ({"encoder": "lightm_unet_2d"}, "encoder=lightm_unet_2d is for segmentation"),
    ({"encoder": "wavemix_192_16_l3"}, "l3 has feature strides 4, 4, 4, 4; unet nee"),
    ({"encoder": "mobilenetv2_03"}, "unknown model 'mobilenetv2_03'; did you mean 'mobilenetv2_0"),
    ({"encoder": "timm/resnet10x"}, "unknown model 'timm/resnet10x'; did you mean 'timm/resnet10"),
    (
        {"name": "deeplabv3", "encoder": "efficientformer_l1"},
        "deeplabv3 needs an encoder with output_stride, .* does not support; choose one of mobilen",
    ),
    ({"features_only": True}, "features_only=True has no effect on unet"),
    ({"drop_rate": 0.1}, "drop_rate=0.1 has no effect on unet"),
    ({"global_pool": "avg"}, "global_pool='avg' has no effect on unet"),
    ({"img_size": 64}, "img_size=64 has no effect on unet"),
    ({"name": "mobilenetv2_035"}, "encoder=mobilenetv2_035 has no effect on mobilenetv2_035"),
    ({"name": "timm/resnet10t"}, "encoder=mobilenetv2_035 has no effect on timm/resnet10t"),
    ({"name": "unett"}, "unknown model 'unett'; did you mean 'unet'"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=[m for _, m in REFUSED])
def test_refused_in_one_line(arguments, message):
    with pytest.raises(zoo.ZooError, match=message) as hit:
        build(**arguments)
    assert "\n" not in str(hit.value)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(zoo.BadInput, match=r"pip install 'zoo-vision\[dense\]'"):
        build()


def test_the_command_line_names_the_encoder():
    settings, _ = parse("train", ["model=unet", "model.encoder=mobilenetv2_035"])
    assert model_arguments(settings.model) == {"name": "unet", "encoder": "mobilenetv2_035"}
    with pytest.raises(zoo.UnknownModel, match="did you mean 'mobilenetv2_035'"):
        compose("train", ["model=unet", "model.encoder=mobilenetv2_0355"])
    compose("train", ["model=unet", "model.encoder=timm/resnet10t"])


def test_decoders_are_not_listed_among_models():
    assert not set(DECODERS) & set(zoo.list_models())
    assert zoo.model_info("unet")["task"] == "segmentation"
