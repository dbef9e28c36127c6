"""What facts say of every variant is what the model is; built without memory."""

import functools

import pytest
import torch
from support import FINISHED, on_meta

import zoo
from zoo.download import Sums
from zoo.fetch import is_address

CAPABILITIES = {
    *("features", "reparam", "dynamic_size", "onnx", "distilled", "output_stride"),
    "class_token",  # the last map is the row of all tokens, the class token first
    "patch",  # the stem cuts patches of this side and drops what is left of an image
    "floors",  # from this reduction on, odd maps are halved with rounding down, not up
    "smallest",  # the least side of an image, where not 1 or that of a patch
    "factored",  # weights are products: fused, there are more parameters
    "drop_path",  # whether there are branches to drop, true unless stated otherwise
}
WEIGHTS = {
    *("tag", "keys", "licence", "url", "page", "mirrors", "megabytes", "sha256", "git_sha1"),
    "classes",  # of these weights, where not those of the variant
    "input",  # mean and std, where not those of the variant
    "branch",  # key of the weights in the file, where it has several
    "head",  # false: the file has no classifier
    "top1",
}
KNOWN_TASKS = {"classification", "segmentation", "super-resolution"}


whole = functools.cache(on_meta)


@pytest.mark.parametrize("name", FINISHED)
def test_parameters_and_classes_are_those_of_the_facts(name):
    facts = zoo.model_info(name)
    model = whole(name)
    assert sum(p.numel() for p in model.parameters()) == facts["params"]
    assert model.num_classes == facts.get("num_classes", 1000)
    assert [model.in_chans, *facts["input"]["size"][1:]] == facts["input"]["size"]


@pytest.mark.parametrize("name", FINISHED)
def test_published_parameters_agree_or_the_facts_say_why_not(name):
    facts = zoo.model_info(name)
    assert facts["published"], "a model without a published figure proves nothing"
    for row in facts["published"]:
        assert row["source"].strip()
        if "params_m" not in row:
            continue
        off = abs(facts["params"] / 1e6 / row["params_m"] - 1)
        assert off < 0.01 or row.get("why", {}).get("params_m"), (
            f"{row['source']}: off by {off:.1%}"
        )


@pytest.mark.parametrize("name", FINISHED)
def test_facts_are_complete(name):
    facts = zoo.model_info(name)
    assert facts["task"] in KNOWN_TASKS
    assert {"title", "arxiv", "year"} <= facts["paper"].keys()
    assert {"url", "commit", "licence"} <= facts["code"].keys()
    assert isinstance(facts.get("quirks"), list), "what is odd in the public code, none as []"
    expects = facts["input"]
    optional = {"multiple", "channel_order"}
    assert {"size", "mean", "std", "interpolation", "crop_pct"} == expects.keys() - optional
    assert expects.get("channel_order", "BGR") == "BGR", "RGB is the default"
    channels, *sides = expects["size"]
    assert len(expects["mean"]) == len(expects["std"]) == channels
    if "multiple" in expects:  # what every side must be a multiple of; another model takes any
        assert type(expects["multiple"]) is int
        assert expects["multiple"] > 1
        assert not [side for side in sides if side % expects["multiple"]]
        assert not facts["capabilities"].get("dynamic_size", False)
    assert facts["capabilities"].keys() <= CAPABILITIES, "a capability that no test knows"
    styles = {style.name for style in whole(name).key_styles}
    for entry in facts.get("weights", []):
        assert {"tag", "keys"} <= entry.keys() <= WEIGHTS
        assert "licence" in entry or "page" in entry
        assert ("url" in entry) != ("page" in entry), "an address to fetch from, or a page"
        assert entry["keys"] in styles, f"no conversion for keys of {entry['keys']}"
        assert entry.get("input", {}).keys() <= {"mean", "std"}
        for place in (entry, *entry.get("mirrors", ())):
            Sums(place.get("sha256"), place.get("git_sha1"))
            if "url" in place:
                assert is_address(place["url"])
                assert not place["url"].startswith("http:")
                assert "/blob/" not in place["url"]
    tags = [entry["tag"] for entry in facts.get("weights", [])]
    assert len(set(tags)) == len(tags)


@pytest.mark.parametrize("name", FINISHED)
def test_capabilities_hold_both_ways(name):
    stated = zoo.model_info(name)["capabilities"]
    model = whole(name)
    assert stated.get("distilled", False) == hasattr(model.head, "distilled_training")
    assert stated.get("class_token", False) == (model.num_prefix_tokens > 0)
    assert stated.get("features", False) == (len(model.feature_info) > 1)
    fuses = any(callable(getattr(module, "fused", None)) for module in model.modules())
    assert stated.get("reparam", False) == fuses
    if stated.get("drop_path", True):
        whole(name, drop_path_rate=0.1)
    else:
        with pytest.raises(zoo.BadInput, match="drop_path_rate"):
            zoo.create_model(name, drop_path_rate=0.1)
    if stated.get("output_stride", False):
        assert whole(name, output_stride=16).feature_info[-1]["reduction"] == 16
    else:
        with pytest.raises(zoo.BadInput, match="output_stride"):
            zoo.create_model(name, output_stride=16)


@pytest.mark.parametrize("name", FINISHED)
def test_the_reduction_is_that_of_the_facts(name):
    """Facts state it where the variants of a family differ."""
    strides = {
        zoo.model_info(other).get("reduction") or whole(other).feature_info[-1]["reduction"]
        for other in zoo.list_models(family=zoo.model_info(name)["family"])
    }
    stated = zoo.model_info(name).get("reduction")
    assert stated in (None, whole(name).feature_info[-1]["reduction"])
    assert stated or len(strides) == 1, "variants differ in their reduction: state it"


@pytest.mark.parametrize("name", FINISHED)
def test_sides_that_must_be_multiples_are_those_of_the_facts(name):
    facts = zoo.model_info(name)["input"]
    if "multiple" not in facts:
        return
    model, multiple = whole(name), facts["multiple"]
    size = [multiple * (3 if axis == 0 else 1) for axis in range(len(facts["size"]) - 1)]
    assert model(torch.empty(2, facts["size"][0], *size, device="meta")).shape[0] == 2
    for smaller in range(1, multiple):
        if multiple % smaller == 0:
            wrong = [smaller, *size[1:]]
            with pytest.raises(zoo.BadInput, match=f"a multiple of {multiple}, such as"):
                model(torch.empty(2, facts["size"][0], *wrong, device="meta"))


@pytest.mark.parametrize("name", zoo.list_models(output_stride=True))
@pytest.mark.parametrize("output_stride", [8, 16])
def test_output_stride_dilates_instead_of_shrinking(name, output_stride):
    model = whole(name, features_only=True, output_stride=output_stride)
    size = (96, 160)
    maps = model(torch.empty(1, 3, *size, device="meta"))
    assert model.feature_info.channels() == whole(name, features_only=True).feature_info.channels()
    for one, reduction in zip(maps, model.feature_info.reduction(), strict=True):
        assert tuple(one.shape[2:]) == tuple(side // reduction for side in size)
    assert model.feature_info.reduction()[-1] == output_stride
