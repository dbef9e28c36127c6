"""Fusing: the same function with nothing left to fold, and the model as it was before."""

import copy
import functools

import pytest
import torch
from support import (
    CLASSIFIERS,
    PYRAMIDS,
    SMALLEST,
    build,
    difference,
    fresh,
    images,
    inputs,
    quick,
    shaken,
)
from torch import nn

import zoo
import zoo.timm_bridge  # noqa: F401 -- the names "tu-zoo_..." of segmentation_models_pytorch
from zoo.blocks.conv import ConvNorm
from zoo.blocks.folding import is_fixed_batch_norm
from zoo.blocks.heads import ClassifierHead
from zoo.blocks.scale import LayerScale
from zoo.profiling.fusing import FuseReport, report
from zoo.reparam import randomize_parameters

NAMES = [name for name in SMALLEST if name in zoo.list_models(reparam=True)]

FAMILIES = sorted({zoo.model_info(name)["family"] for name in NAMES})


@functools.cache
def both(name: str) -> tuple[nn.Module, nn.Module]:
    """Return a model with few blocks and its fused form, in single precision."""
    model = shaken(name, **quick(name))
    return model, zoo.reparameterize(model)


@pytest.mark.parametrize(
    ("name", "features_only"),
    [(name, False) for name in NAMES] + [(name, True) for name in NAMES if name in PYRAMIDS],
)
def test_outputs_stay(name, features_only):
    model = shaken(name, torch.float64, features_only=features_only, **quick(name, 1))
    fused = zoo.reparameterize(model)
    with torch.no_grad():
        for which in (0, 1):
            x = inputs(name, which=which, dtype=torch.float64)
            assert difference(fused(x), model(x)) < 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_fusing_in_float32_loses_no_more_than_float32_itself(name):
    (model, fused), exact = both(name), fresh(name, torch.float64, **quick(name))
    with torch.no_grad():
        for which in (0, 1):
            x = inputs(name, which=which)
            want = exact(x.double())
            loss = difference(model(x).double(), want)
            assert loss < 5e-3
            assert difference(fused(x).double(), want) < max(1e-5, 2 * loss)


@pytest.mark.parametrize("name", NAMES)
def test_every_door_gives_the_same(name):
    model, x = fresh(name, torch.float64, **quick(name)), inputs(name, dtype=torch.float64)
    fused = zoo.reparameterize(model)
    with torch.no_grad():
        features = model.forward_features(x)
        # An affine norm before the classifier may go into it: the head's outputs count then.
        assert difference(fused.forward_head(fused.forward_features(x)), model(x)) < 1e-9
        assert difference(fused.forward_features(x), features) < 1e-9
        if not model.no_features:
            last, maps = fused.forward_intermediates(x)
            want_last, want_maps = model.forward_intermediates(x)
            assert difference([last, *maps], [want_last, *want_maps]) < 1e-9
        if name in CLASSIFIERS:  # what draws maps may end in one layer for two
            pair = (m.forward_head(features, pre_logits=True) for m in (fused, model))
            assert difference(*pair) < 1e-9


def left_in_place(fused: nn.Module) -> dict[str, str]:
    """Return the norms and scales of a fused model that could be foldable, by their paths.

    Each has the name that facts give it in `unfused`: its path, or its attribute and class.
    """
    modules = dict(fused.named_modules())
    found = {}
    for path, module in modules.items():
        parent, _, attribute = path.rpartition(".")
        affine = isinstance(module, nn.LayerNorm) and module.weight is not None
        is_norm = is_fixed_batch_norm(module) or (affine and path.startswith("stages."))
        if is_fixed_batch_norm(module) and isinstance(modules[parent], nn.Sequential):
            found[path] = path
        elif is_norm or isinstance(module, LayerScale):
            found[path] = f"{attribute} of {type(modules[parent]).__name__}"
    return found


def stated_unfused(family: str) -> set[str]:
    name = zoo.list_models(family=family)[0]
    return {entry["part"] for entry in zoo.model_info(name).get("unfused", [])}


@pytest.mark.parametrize("name", NAMES)
def test_nothing_foldable_is_left(name):
    _, fused = both(name)
    stated = stated_unfused(zoo.model_info(name)["family"])
    for path, part in left_in_place(fused).items():
        assert part in stated, f"fold {path}, or state why not in `unfused` of the facts: {part}"
    assert isinstance(fused.head, ClassifierHead) == (name in CLASSIFIERS)
    assert len(fused.head.classifiers()) == 1, "one classifier"
    last = fused.get_classifier()
    classes = last.out_channels if hasattr(last, "out_channels") else last.out_features
    assert classes == fused.num_classes


@pytest.mark.parametrize("family", FAMILIES)
def test_what_facts_state_as_unfused_is_left(family):
    fused = [both(name)[1] for name in NAMES if name in zoo.list_models(family=family)]
    assert {part for model in fused for part in left_in_place(model).values()} == stated_unfused(
        family
    )
    for name in zoo.list_models(family=family):
        for entry in zoo.model_info(name).get("unfused", []):
            assert entry.keys() == {"part", "why"}
            assert entry["why"].strip()
            assert not entry["why"].endswith(".")


@pytest.mark.parametrize("name", NAMES)
def test_the_model_itself_is_left_alone(name):
    model, x = fresh(name, **quick(name)), inputs(name)
    before = copy.deepcopy(model.state_dict())
    addresses = {t.data_ptr() for t in model.state_dict().values()}
    with torch.no_grad():
        want = model(x)
        fused = zoo.reparameterize(model)
        assert not addresses & {t.data_ptr() for t in fused.state_dict().values() if t.numel()}
        for parameter in fused.parameters():
            parameter.zero_()
        assert torch.equal(model(x), want)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], value) for key, value in after.items())
    assert not hasattr(model, "reparameterized")


@pytest.mark.parametrize("name", NAMES)
def test_fusing_twice_changes_nothing(name):
    _, once = both(name)
    twice = zoo.reparameterize(once)
    a, b = once.state_dict(), twice.state_dict()
    assert list(a) == list(b)
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert str(once) == str(twice)


@pytest.mark.parametrize("name", NAMES)
def test_train_mode_is_refused(name):
    model = fresh(name, **quick(name))
    with pytest.raises(zoo.BadInput, match=r"the model is in training mode; call model\.eval\(\)"):
        zoo.reparameterize(model.train())
    model.eval()
    model.stages[-1].blocks[0].train()  # the first stage may have none
    with pytest.raises(zoo.BadInput, match=r"^stages\.\d+\.blocks\.0 is in training mode"):
        zoo.reparameterize(model)


# That every fused family costs less: tests/profiling/test_count_models.py.
@pytest.mark.parametrize("name", ["efficientformer_l1", "cvt_2_4_32", "lightm_unet_3d_8"])
def test_report_agrees_with_the_counts(name):
    two = tuple(inputs(name).shape)
    size = (1, *two[1:])
    model = shaken(name, **quick(name, 1))
    fused = zoo.reparameterize(model)
    found = report(model, fused, two, timed=False)
    counts = zoo.count(model, size), zoo.count(fused, size)
    assert isinstance(found, FuseReport)
    assert (counts[0].fused, counts[1].fused) == (False, True)
    assert found.params == tuple(c.params for c in counts)
    assert found.macs == tuple(c.macs for c in counts)
    assert found.flops == tuple(c.flops for c in counts)
    assert found.activations == tuple(c.activations for c in counts)
    assert found.nodes == tuple(c.operators for c in counts)
    assert found.layers[1] <= found.layers[0]  # a layer norm stays one without its affine
    assert 0 < found.error < 1e-9
    text = str(found)
    assert f"{found.macs[0]:,}" in text
    assert f"{found.params[1]:,}" in text


def test_report_times_both_forms():
    model = randomize_parameters(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    ).eval()
    found = report(model, zoo.reparameterize(model), (2, 3, 64, 64))
    assert found.latency.a.p50 > 0
    assert found.latency.b.p50 > 0
    assert found.nodes[1] == 2 < found.nodes[0]
    assert "fused / unfused latency: " in str(found)


def test_report_refuses_to_compare_nothing():
    class Constant(nn.Sequential):
        def forward(self, x):
            return self[1](self[0](x)) * 0 + 1

    model = Constant(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    with pytest.raises(zoo.BadInput, match="do not depend on the image"):
        report(model, zoo.reparameterize(model), (2, 3, 4, 4))


@pytest.mark.parametrize("name", NAMES)
def test_fused_weights_travel_as_a_state_dict(name):
    _, first = both(name)
    second = zoo.reparameterize(build(name, **quick(name)).eval())
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        assert torch.equal(second(inputs(name)), first(inputs(name)))


@pytest.mark.parametrize("freeze", [nn.SyncBatchNorm.convert_sync_batchnorm, "timm"])
def test_models_with_other_batch_norms(freeze):
    if freeze == "timm":
        from timm.layers import freeze_batch_norm_2d as freeze
    model = freeze(fresh("efficientformer_l1", torch.float64)).eval()
    fused, x = zoo.reparameterize(model), images(2, dtype=torch.float64)
    with torch.no_grad():
        assert difference(fused(x), model(x)) < 1e-9
    assert not [m for m in fused.modules() if is_fixed_batch_norm(m)]


def test_a_block_whose_norm_has_no_statistics_stays_whole():
    model = zoo.create_model("efficientformer_l1")
    for module in model.modules():
        if isinstance(module, ConvNorm):
            module.norm = nn.BatchNorm2d(module.conv.out_channels, track_running_stats=False)
    randomize_parameters(model.double()).eval()
    fused, x = zoo.reparameterize(model), images(2, dtype=torch.float64)
    with torch.no_grad():
        assert difference(fused(x), model(x)) < 1e-9


def test_half_precision_stays_half():
    model = fresh("mobilenetv2_035", torch.bfloat16)
    assert {p.dtype for p in zoo.reparameterize(model).parameters()} == {torch.bfloat16}


def test_shaking_makes_what_a_fresh_model_hides_visible():
    model = shaken("efficientformer_l1")
    for module in model.modules():
        if isinstance(module, LayerScale):
            assert 0.3 < module.gamma.abs().mean() < 0.7
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_var.std() > 0.1
    assert model.stages[3].blocks[3].attention.bias.table.std() > 0.05
    again, other = (
        randomize_parameters(zoo.create_model("efficientformer_l1"), seed) for seed in (0, 1)
    )
    same = model.state_dict()
    assert all(torch.equal(same[key], value) for key, value in again.state_dict().items())
    assert not torch.equal(same["stem.0.conv.weight"], other.state_dict()["stem.0.conv.weight"])
