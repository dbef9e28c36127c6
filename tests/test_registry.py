"""Names and facts: found without building, refused twice, helped when misspelt."""

import fnmatch
import pickle

import pytest
from torch import nn

import zoo
from zoo import registry

NAMES = zoo.list_models()


def test_names_come_in_alphabetical_order_and_once():
    assert sorted(set(NAMES)) == NAMES
    assert {"efficientformer_l1", "efficientformer_l3", "efficientformer_l7"} <= set(NAMES)
    assert len(zoo.list_models(family="mobilenetv2")) == 7


@pytest.mark.parametrize(
    "kwargs",
    [
        {"filter": "mobilenetv2_*"},
        {"filter": ["*_l1", "*_l3"]},
        {"filter": "*", "exclude": "mobile*"},
        {"filter": ("*",), "exclude": ("mobile*", "*_l7")},
    ],
)
def test_globs(kwargs):
    wanted = kwargs["filter"] if not isinstance(kwargs["filter"], str) else [kwargs["filter"]]
    unwanted = kwargs.get("exclude", ())
    unwanted = [unwanted] if isinstance(unwanted, str) else unwanted
    assert zoo.list_models(**kwargs) == [
        name
        for name in NAMES
        if any(fnmatch.fnmatch(name, g) for g in wanted)
        and not any(fnmatch.fnmatch(name, g) for g in unwanted)
    ]


def test_filters_by_facts():
    assert zoo.list_models("no such*") == []
    assert zoo.list_models(family="efficientformer") == [
        f"efficientformer_{size}" for size in ("l1", "l3", "l7")
    ]
    for task in ("classification", "segmentation"):
        listed = zoo.list_models(task=task)
        assert all(zoo.model_info(name)["task"] == task for name in listed)
    fetched = zoo.list_models(pretrained=True)
    assert sorted([*fetched, *zoo.list_models(pretrained=False)]) == NAMES
    assert "lightm_unet_2d" not in fetched
    assert "mobilenetv2_100" in fetched
    distilled = zoo.list_models(distilled=True)
    assert "efficientformer_l1" in distilled
    assert sorted([*distilled, *zoo.list_models(distilled=False)]) == NAMES


def test_the_smallest_of_each_family():
    smallest = zoo.list_models(smallest_of_family=True)
    families = [zoo.model_info(name)["family"] for name in smallest]
    assert len(set(families)) == len(families)
    assert set(families) == {zoo.model_info(name)["family"] for name in NAMES}
    for name, family in zip(smallest, families, strict=True):
        others = zoo.list_models(family=family)
        least = min(zoo.model_info(other)["params"] for other in others)
        assert zoo.model_info(name)["params"] == least


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("efficientformer_l2", "efficientformer_l"),
        ("mobilnetv2_100", "mobilenetv2_100"),
        ("EfficientFormer_L1", "efficientformer_l1"),
        ("timm/mobilnetv2_100", "mobilenetv2_100"),
    ],
)
def test_a_spelling_mistake_gets_a_suggestion(wrong, near):
    with pytest.raises(zoo.UnknownModel, match=near) as caught:
        zoo.create_model(wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", ["", "qqqqqq", "timm/", "timm/qqqqqq"])
def test_a_name_like_no_other(wrong):
    with pytest.raises(zoo.UnknownModel, match="unknown model"):
        zoo.create_model(wrong)


@pytest.mark.parametrize("wrong", ["", "qqqqqq", "efficientformer_l2"])
def test_facts_of_no_model(wrong):
    with pytest.raises(zoo.UnknownModel, match="unknown model"):
        zoo.model_info(wrong)


def test_facts_of_a_variant_complete_those_of_its_family():
    info = zoo.model_info("mobilenetv2_035")
    assert info["name"] == "mobilenetv2_035"
    assert info["family"] == "mobilenetv2"
    assert info["input"]["size"] == [3, 224, 224]
    assert info["params"] == 1677128


@pytest.mark.usefixtures("registry_as_it_was")
def test_models_of_other_packages():
    def build(num_classes=3, in_chans=3, drop_rate=0.0, drop_path_rate=0.0):
        return nn.Conv2d(in_chans, num_classes, 1)

    zoo.register("mine_tiny", build, family="mine", facts={"params": 12, "paper": {"title": "t"}})
    assert "mine_tiny" in zoo.list_models()
    assert zoo.list_models(family="mine", smallest_of_family=True) == ["mine_tiny"]
    assert zoo.model_info("mine_tiny")["task"] == "classification"
    assert zoo.create_model("mine_tiny", num_classes=5).out_channels == 5
    with pytest.raises(zoo.BadInput, match="unknown argument 'depth' of mine_tiny"):
        zoo.create_model("mine_tiny", depth=3)
    with pytest.raises(ValueError, match="'mine_tiny' is registered twice"):
        zoo.register("mine_tiny", build, facts={})
    with pytest.raises(ValueError, match="part of this package"):
        zoo.register("mobilenetv2_035", build, facts={})
    with pytest.raises(ValueError, match="no entry in zoo/facts"):
        zoo.register("stranger", build)
    assert not registry.is_model("stranger")


@pytest.mark.usefixtures("registry_as_it_was")
def test_registering_one_of_the_package_twice_is_an_error():
    zoo.create_model("mobilenetv2_035")
    with pytest.raises(ValueError, match="registered twice"):
        zoo.register("mobilenetv2_035", lambda: None)


def test_every_variant_has_a_builder_and_its_own_facts():
    for name in NAMES:
        assert callable(registry.get_spec(name).builder())
        assert registry.is_packaged(name)
        assert pickle.loads(pickle.dumps(registry.get_spec(name))) == registry.get_spec(name)


def test_facts_cannot_be_spoilt_by_a_caller():
    zoo.model_info("mobilenetv2_035")["params"] = 0
    zoo.model_info("mobilenetv2_035")["input"]["size"][0] = 99
    assert zoo.model_info("mobilenetv2_035")["params"] == 1677128
    assert zoo.model_info("mobilenetv2_035")["input"]["size"] == [3, 224, 224]
