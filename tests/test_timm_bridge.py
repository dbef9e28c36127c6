"""Every classifier as timm's: by a prefixed name, with timm's description, files and data."""

import pytest
import timm
import torch
from support import (
    CLASSIFIERS,
    FINISHED,
    PYRAMIDS,
    difference,
    inputs,
    on_meta,
    shaken,
    takes,
    with_hashes,
    without_initial_values,
)

import zoo
from zoo import timm_bridge
from zoo.reparam import randomize_parameters

BRIDGED = [name for name in FINISHED if zoo.model_info(name)["task"] == "classification"]


def level(name) -> tuple:
    """Return what decides the size of the last map within a family."""
    facts = zoo.model_info(name)
    return facts["family"], *facts["input"]["size"], facts.get("reduction"), facts["capabilities"]


DIFFERENT = sorted({str(level(name)): name for name in reversed(BRIDGED)}.values())


def test_every_classifier_is_there_and_nothing_of_timm_is_overwritten():
    ours = [f"zoo_{name}" for name in BRIDGED]
    assert set(timm.list_models("zoo_*")) == set(ours)
    assert not set(ours) & set(timm.list_models(exclude_filters="zoo_*"))
    assert type(timm.create_model("efficientformer_l1")).__module__.startswith("timm.")


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_it_is_the_same_model(name):
    ours = shaken(name)
    with without_initial_values():
        theirs = timm.create_model(f"zoo_{name}").eval()
    assert type(theirs) is type(ours)
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        assert torch.equal(theirs(inputs(name)), ours(inputs(name)))


@pytest.mark.parametrize("name", DIFFERENT)
def test_every_parameter_is_trained_and_files_are_the_same(name):
    ours = on_meta(name)
    with torch.device("meta"), without_initial_values():
        theirs = timm.create_model(f"zoo_{name}")
    assert all(parameter.requires_grad for parameter in theirs.parameters())
    assert theirs.state_dict().keys() == ours.state_dict().keys()
    fixed = {key for key, parameter in ours.named_parameters() if not parameter.requires_grad}
    assert dict(theirs.named_buffers()).keys() >= fixed


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_device_and_dtype(name):
    model = timm.create_model(f"zoo_{name}", device="meta", dtype=torch.bfloat16)
    values = [*model.parameters(), *model.buffers()]
    assert all(value.is_meta for value in values)
    assert {value.dtype for value in values if value.is_floating_point()} == {torch.bfloat16}


@pytest.mark.parametrize("name", BRIDGED)
def test_the_description_says_what_the_facts_say(name):
    cfg = timm.get_pretrained_cfg(f"zoo_{name}")
    facts = zoo.model_info(name)
    assert list(cfg.input_size) == facts["input"]["size"]
    assert cfg.num_classes == facts.get("num_classes", 1000)
    assert (list(cfg.mean), list(cfg.std)) == (facts["input"]["mean"], facts["input"]["std"])
    assert (cfg.crop_pct, cfg.interpolation) == (
        facts["input"]["crop_pct"],
        facts["input"]["interpolation"],
    )


@pytest.mark.parametrize("name", DIFFERENT)
def test_the_description_says_what_the_model_is(name):
    cfg = timm.get_pretrained_cfg(f"zoo_{name}")
    model = on_meta(name).eval()  # training norms refuse a single position
    features = model.forward_features(torch.empty(1, *cfg.input_size, device="meta"))
    assert tuple(features.shape[2:]) == cfg.pool_size
    assert (cfg.first_conv, cfg.classifier) == (model.first_conv_name(), model.classifier_names())


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_timm_prepares_the_data_for_it(name):
    model = timm.create_model(f"zoo_{name}", in_chans=3)
    config = timm.data.resolve_model_data_config(model)
    facts = zoo.model_info(name)["input"]
    assert list(config["input_size"]) == facts["size"]
    assert config["interpolation"] == facts["interpolation"]
    assert model.default_cfg["architecture"] == f"zoo_{name}"


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_arguments_and_checkpoints_of_timm(name, tmp_path):
    rates = {rate: 0.1 for rate in ("drop_rate", "drop_path_rate") if takes(name, rate)}
    with without_initial_values():
        model = timm.create_model(f"zoo_{name}", num_classes=5, in_chans=1, **rates)
    randomize_parameters(with_hashes(model))  # fresh networks may give the same for any image
    assert model.eval()(inputs(name, 1, channels=1)).shape == (1, 5)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "file.pth")
    with without_initial_values():
        again = timm.create_model(
            f"zoo_{name}", num_classes=5, in_chans=1, checkpoint_path=str(tmp_path / "file.pth")
        )
    with torch.no_grad():
        x = inputs(name, channels=1)
        assert difference(again.eval()(x), model(x)) == 0
    if name not in PYRAMIDS:
        return
    pyramid = timm.create_model(f"zoo_{name}", features_only=True, out_indices=(0, 1))
    assert len(with_hashes(pyramid)(inputs(name))) == 2


def test_mistakes_stay_ours():
    with pytest.raises(zoo.BadInput, match="drop_rate=2"):
        timm.create_model("zoo_mobilenetv2_035", drop_rate=2)
    with pytest.raises(TypeError, match="unknown argument 'patches' of mobilenetv2_035") as caught:
        timm.create_model("zoo_mobilenetv2_035", patches=3)
    assert isinstance(caught.value, zoo.BadInput)
    with pytest.raises(zoo.BadWeights, match="no published weights"):
        timm.create_model("zoo_vovnet27_slim", pretrained=True)


def test_names_have_the_prefix():
    assert timm_bridge.bridged_name("x") == "zoo_x"
