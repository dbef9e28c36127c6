"""The one door: arguments reach the model or are refused, timm's models come through it too."""

import pytest
import timm
import torch
from support import images

import zoo
from zoo.backbone import FeatureExtractor

NAME = "mobilenetv2_035"


def test_arguments_reach_the_model():
    model = zoo.create_model(
        NAME, num_classes=7, in_chans=4, drop_rate=0.25, drop_path_rate=0.5, global_pool="max"
    )
    assert (model.num_classes, model.in_chans) == (7, 4)
    assert (model.head.drop.p, model.head.pool) == (0.25, "max")
    assert model.stages[-1].blocks[-1].drop_path.drop_prob == pytest.approx(0.5)
    assert zoo.create_model(NAME, width=0.5).head.num_features == 1280


def test_a_model_starts_in_train_mode_and_in_float32():
    model = zoo.create_model(NAME)
    assert model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_what_a_model_does_not_take_is_said_with_what_it_takes():
    with pytest.raises(zoo.BadInput, match="unknown argument 'widht' .* did you mean 'width'"):
        zoo.create_model(NAME, widht=0.5)
    with pytest.raises(zoo.BadInput, match="no parameters that depend on img_size"):
        zoo.create_model(NAME, img_size=224)
    with pytest.raises(TypeError):
        zoo.create_model(NAME, False, 10)  # keyword-only from the third argument on


def test_the_seed_alone_decides_the_weights():
    states = []
    for _ in range(2):
        torch.manual_seed(5)
        states.append(zoo.create_model("efficientformer_l1").state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_models_of_timm_come_through_the_same_door():
    model = zoo.create_model("timm/mobilenetv2_035", num_classes=7, in_chans=1, drop_path_rate=0.1)
    assert type(model) is type(timm.create_model(NAME))
    assert model(images(2, channels=1)).shape == (2, 7)
    pyramid = zoo.create_model("timm/mobilenetv2_035", features_only=True, out_indices=(0, 2))
    assert pyramid.feature_info.channels() == [8, 16]
    sized = zoo.create_model("timm/vit_tiny_patch16_224", img_size=64)
    assert sized(images(1)).shape == (1, 1000)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("timm/mobilenetv2_035", {"img_size": 64}, "timm cannot build 'mobilenetv2_035'"),
        ("timm/mobilenetv2_035", {"nonsense": 1}, "nonsense"),
        ("timm/mobilenetv2_035", {"num_classes": -1}, "num_classes=-1"),
        ("timm/mobilenetv2_035", {"drop_rate": 2.0}, "drop_rate=2.0"),
        ("timm/mobilenetv2_035", {"pretrained": True}, "timm cannot build"),
        ("timm/mobilenetv2_100.no_such_tag", {}, "no_such_tag"),
        ("timm/vit_tiny_patch16_224", {"img_size": "large"}, "timm cannot build"),
    ],
)
def test_what_timm_cannot_build_is_one_line(name, kwargs, message):
    with pytest.raises(zoo.BadInput, match=message) as caught:
        zoo.create_model(name, **kwargs)
    assert "\n" not in str(caught.value)


def test_out_indices_without_features_only():
    for name in (NAME, "timm/mobilenetv2_035"):
        with pytest.raises(zoo.BadInput, match="no effect without features_only=True"):
            zoo.create_model(name, out_indices=(1,))


def test_a_pyramid_is_an_extractor_with_the_names_of_the_whole():
    pyramid = zoo.create_model(NAME, features_only=True, out_indices=2)
    assert isinstance(pyramid, FeatureExtractor)
    assert pyramid.feature_info.reduction() == [16, 32]
    assert not hasattr(pyramid, "head")


def test_a_sequence_of_widths_is_the_own_argument_of_wavemix():
    model = zoo.create_model("wavemix_sisr_144_4_l1", dim=16, depth=1, widths=[8])
    assert model(torch.zeros(1, 3, 8, 8)).shape == (1, 3, 16, 16)
    with pytest.raises(zoo.BadInput, match=r"widths=\[8\] must be a table"):
        zoo.create_model("mobilenetv2_035", widths=[8])
