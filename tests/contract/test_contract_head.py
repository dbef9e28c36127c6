"""The classifier: what it reads, how it is replaced, and its dropout.

All but the names are checked on models with few blocks: a head does not see how many there are.
"""

import pytest
import torch
from support import CLASSIFIERS, build, difference, fresh, inputs, on_meta, quick, shaken
from torch import nn

import zoo
from zoo.blocks.heads import POOLS

DISTILLED = [name for name in CLASSIFIERS if name in zoo.list_models(distilled=True)]
SINGLE = [name for name in CLASSIFIERS if name not in DISTILLED]


def layers(model):
    classifier = model.get_classifier()
    return classifier if isinstance(classifier, tuple) else (classifier,)


def hidden(model):
    """Return whether there is a layer between pooling and classifier."""
    return hasattr(model.head, "hidden")


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_forward_is_features_then_head(name):
    model, x = shaken(name, **quick(name)), inputs(name, which=1)
    with torch.no_grad():
        features = model.forward_features(x)
        pre_logits = model.forward_head(features, pre_logits=True)
        assert features.shape[:2] == (2, model.num_features)
        assert pre_logits.shape == (2, model.head_hidden_size)
        assert torch.equal(model.forward_head(features), model(x))
        whole = {name.partition(".")[0] for name in model.head.classifiers()}  # with their norms
        by_hand = torch.stack([getattr(model.head, n)(pre_logits) for n in whole]).mean(0)
        assert difference(by_hand, model(x)) < 1e-5


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_and_first_convolution_are_where_the_names_say(name):
    model = shaken(name)
    named = dict(model.named_modules())
    for path, layer in zip(model.classifier_names(), layers(model), strict=True):
        assert named[path] is layer
        assert layer.out_features == model.num_classes
        assert layer.in_features == model.head_hidden_size
    assert named[model.first_conv_name()].in_channels == model.in_chans


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_reset_installs_a_new_classifier_or_removes_it(name):
    model, x = fresh(name, **quick(name)), inputs(name)
    with torch.no_grad():
        features = model.forward_features(x)
        pre_logits = model.forward_head(features, pre_logits=True)
        model.reset_classifier(7)
        assert (model.num_classes, model(x).shape) == (7, (2, 7))
        assert all(layer.out_features == 7 for layer in layers(model))
        model.reset_classifier(0)
        assert model.num_classes == 0
        assert all(isinstance(layer, nn.Identity) for layer in layers(model))
        assert torch.equal(model(x), pre_logits)
        model.reset_classifier(0, "")
        assert torch.equal(model(x), features)
        model.reset_classifier(5)  # restores the default pooling
        assert (model.head.pool, model(x).shape) == (model.head.pools[0], (2, 5))
        model.reset_classifier(3, "max")
        assert model(x).shape == (2, 3)
        seen = model.forward_head(features, pre_logits=True)
        assert seen.shape == (2, model.head_hidden_size)
        if not hidden(model):
            assert torch.equal(seen, features.amax((2, 3)))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_reset_keeps_mode_dtype_and_device(name):
    model = fresh(name, torch.float64, **quick(name))
    model.reset_classifier(7)
    assert not any(module.training for module in model.modules())
    assert model(inputs(name, 1, dtype=torch.float64)).dtype == torch.float64
    zoo.reparameterize(model)
    model.train().reset_classifier(5)
    assert all(module.training for module in model.modules())
    assert next(layers(model)[0].parameters()).requires_grad
    there = on_meta(name)
    there.reset_classifier(5)
    assert layers(there)[0].weight.is_meta


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_refused_reset_leaves_the_model_as_it_was(name):
    model = fresh(name, **quick(name))
    with torch.no_grad():
        features = model.forward_features(inputs(name, 1))
        before, classes = model.forward_head(features), model.num_classes
        for arguments in [(-1,), (2.5,), ("7",), (None,), (7, ""), (7, "mean")]:
            with pytest.raises(zoo.BadInput, match="num_classes|global_pool"):
                model.reset_classifier(*arguments)
            assert torch.equal(model.forward_head(features), before), arguments
            assert model.num_classes == classes


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_built_without_a_classifier(name):
    x = inputs(name)
    with torch.no_grad():
        whole = shaken(name, **quick(name))
        features = whole.forward_features(x)
        for pool in POOLS:
            model = build(name, num_classes=0, global_pool=pool, **quick(name)).eval()
            zoo.load_weights(model, whole.state_dict(), strict=False)
            want = {"avg": features.mean((2, 3)), "max": features.amax((2, 3)), "": features}[pool]
            if hidden(model) and pool:  # the layer stays: a new classifier would read it
                want = whole.head.hidden(want)
            else:
                assert not [key for key in model.state_dict() if key.startswith("head.")]
            assert torch.allclose(model(x), want)
    with pytest.raises(zoo.BadInput, match="global_pool"):
        zoo.create_model(name, num_classes=5, global_pool="")


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_dropout_drops_while_training_only(name):
    model = fresh(name, drop_rate=0.5, **quick(name))
    if model.head.drop_rate == 0:
        return drops_inside_the_blocks(model, inputs(name))
    ones = torch.ones(4, model.num_features, 2, 2)
    seen = model.forward_head(ones, pre_logits=True)
    if not hidden(model):
        assert torch.equal(seen, ones.mean((2, 3)))
    torch.manual_seed(0)
    left = model.train().forward_head(ones, pre_logits=True) != 0
    kept = left[seen != 0].float().mean().item()
    assert kept == pytest.approx(0.5, abs=0.06)


def drops_inside_the_blocks(model, x):
    """Check a model that applies `drop_rate` inside its blocks."""
    inside = [module for module in model.stages.modules() if isinstance(module, nn.Dropout)]
    assert {module.p for module in inside} == {0.5}
    assert model.head.drop.p == 0
    with torch.no_grad():
        assert torch.equal(model(x), model(x))
        for module in inside:
            module.train()
        assert not torch.equal(model(x), model(x))


@pytest.mark.parametrize("name", DISTILLED)
def test_a_distilled_model_returns_the_pair_only_while_training(name):
    model, x = fresh(name, **quick(name)), inputs(name)
    heads = layers(model)
    assert len(heads) == 2
    with torch.no_grad():
        mean = model(x)
        model.set_distilled_training(True)
        assert torch.equal(model(x), mean), "evaluation returns the mean"
        model.train()
        torch.manual_seed(0)
        pair = model(x)
        model.set_distilled_training(False)
        torch.manual_seed(0)
        single = model(x)
    assert isinstance(pair, tuple)
    assert not torch.allclose(*pair)
    assert difference(single, (pair[0] + pair[1]) / 2) < 1e-5


@pytest.mark.parametrize("name", SINGLE)
def test_a_single_head_cannot_be_distilled_into(name):
    with pytest.raises(zoo.BadInput, match="one classifier"):
        shaken(name, **quick(name)).set_distilled_training(True)
