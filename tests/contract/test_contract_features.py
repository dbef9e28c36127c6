"""Pyramids: exact strides and channels, in the order asked for, and one truth by three ways."""

import copy
import itertools

import pytest
import torch
from support import (
    CLASSIFIERS,
    PYRAMIDS,
    axes,
    images,
    inputs,
    map_size,
    shaken,
    sizes,
    takes,
    trainable,
)
from timm.models import FeatureInfo

import zoo

NAMES = PYRAMIDS


def levels(name):
    return len(shaken(name).feature_info)


def narrow(name):
    """A size that is seven times as long as it is wide."""
    multiple = zoo.model_info(name)["input"].get("multiple")
    return (33, 224) if multiple is None else (multiple,) * (axes(name) - 1) + (7 * multiple,)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("which", [0, 1, 2])
def test_strides_and_channels_are_exact(name, which):
    model = shaken(name, features_only=True)
    assert isinstance(model.feature_info, FeatureInfo)
    size = (*sizes(name), narrow(name))[which]
    with torch.no_grad():
        maps = model(images(1, size, model.in_chans))
    assert isinstance(maps, list)
    assert [m.shape[1] for m in maps] == model.feature_info.channels()
    assert [tuple(m.shape[2:]) for m in maps] == [
        map_size(name, size, stride) for stride in model.feature_info.reduction()
    ]
    assert all(m.isfinite().all() for m in maps)


@pytest.mark.parametrize("name", NAMES)
def test_levels_double_their_stride_or_share_it(name):
    """Levels of one stride, all of them, are those of a model without stages (isotropic)."""
    strides = shaken(name, features_only=True).feature_info.reduction()
    factors = {b / a for a, b in itertools.pairwise(strides)}
    assert factors in ({2}, {1})


@pytest.mark.parametrize("name", NAMES)
def test_every_choice_of_levels_gives_those_levels(name):
    whole, count = shaken(name), levels(name)
    x = inputs(name, 1, 1)
    # All of a pyramid's; of a model that calls each of its blocks a level, those of up to two.
    most = count if count <= 6 else 2
    choices = [c for n in range(1, most + 1) for c in itertools.combinations(range(count), n)]
    choices.append(tuple(range(count)))
    choices += [(-1,), (0, -1), tuple(range(-count, 0)), (count - 1, 0), 1, count]
    with torch.no_grad():
        want = whole.forward_intermediates(x, intermediates_only=True)
        for choice in choices:
            # The extractor of the shaken model itself: built anew for each choice, weights shared.
            model = zoo.backbone.FeatureExtractor(whole, choice)
            taken = range(count - choice, count) if isinstance(choice, int) else choice
            maps = model(x)
            assert len(maps) == len(taken)
            assert all(torch.equal(m, want[i]) for m, i in zip(maps, taken, strict=True)), choice
            assert [m.shape[1] for m in maps] == model.feature_info.channels()
            assert (
                len(model.stages) == 1 + whole.feature_info[max(i % count for i in taken)]["stage"]
            )


@pytest.mark.parametrize("name", NAMES)
def test_a_cut_model_has_no_dead_parameters(name):
    model = zoo.create_model(name, features_only=True, out_indices=(0, 1))
    whole = zoo.create_model(name)
    sum(m.square().mean() for m in model(inputs(name))).backward()
    assert all(p.grad is not None for p in trainable(model).values())
    ours, all_of_them = model.state_dict(), whole.state_dict()
    assert ours.keys() < all_of_them.keys()
    assert {k: v.shape for k, v in ours.items()} == {k: all_of_them[k].shape for k in ours}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wrong", [99, 0, -1, (99,), (-99,), (), "abc", (0.5,), 1.5])
def test_levels_that_there_are_not(name, wrong):
    with pytest.raises(zoo.BadInput, match="out_indices="):
        zoo.create_model(name, features_only=True, out_indices=wrong)
    with pytest.raises(zoo.BadInput, match="^indices="):
        shaken(name).forward_intermediates(inputs(name, 1), indices=wrong)


@pytest.mark.parametrize("name", NAMES)
def test_out_indices_without_features_only_is_an_error(name):
    with pytest.raises(zoo.BadInput, match="features_only"):
        zoo.create_model(name, out_indices=(0, 1))


def closed(model, maps):
    """What follows the levels: a norm, or a decoder that draws them together."""
    return model.decode(maps) if hasattr(model, "decode") else model.norm(maps[-1])


@pytest.mark.parametrize("name", NAMES)
def test_intermediates_equal_features_only_and_forward_features(name):
    model, x = shaken(name), inputs(name, which=1)
    with torch.no_grad():
        last, maps = model.forward_intermediates(x)
        assert torch.equal(last, model.forward_features(x))
        dense = {"dense": True} if takes(name, "dense") else {}  # what pyramids are cut from
        whole = shaken(name, **dense).forward_intermediates(x, intermediates_only=True)
        for have, want in zip(shaken(name, features_only=True)(x), whole, strict=True):
            assert torch.equal(have, want)
        have = closed(model, maps).flatten(2)  # `last` is a row with class tokens, if there are any
        assert torch.equal(have, last.flatten(2)[..., -have.shape[2] :])
        _, normed = model.forward_intermediates(x, norm=True)
        assert torch.equal(normed[-1], model.norm(maps[-1]))
        assert all(torch.equal(a, b) for a, b in zip(normed[:-1], maps[:-1], strict=True))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("indices", [None, 2, [0], [0, 2], [-1], [2, 0]])
def test_arguments_of_forward_intermediates(name, indices):
    model, x = shaken(name), inputs(name, 1)
    count = levels(name)
    with torch.no_grad():
        last, every = model.forward_intermediates(x)
        chosen = {None: range(count), 2: range(count - 2, count)}.get(
            indices if not isinstance(indices, list) else "", indices
        )
        want = [every[i] for i in chosen]
        full = model.forward_intermediates(x, indices)
        early, maps = model.forward_intermediates(x, indices, stop_early=True)
        alone = model.forward_intermediates(x, indices, intermediates_only=True)
        both = model.forward_intermediates(x, indices, intermediates_only=True, stop_early=True)
    assert torch.equal(full[0], last)
    for have in (full[1], maps, alone, both):
        assert len(have) == len(want)
        assert all(torch.equal(a, b) for a, b in zip(have, want, strict=True))
    deepest = max(i % count for i in chosen)
    to_the_end = deepest == count - 1 and not hasattr(model, "decode")
    assert torch.equal(early, last if to_the_end else every[deepest])
    with pytest.raises(zoo.BadInput, match="output_fmt"):
        model.forward_intermediates(x, output_fmt="NLC")


@pytest.mark.parametrize("name", NAMES)
def test_stopping_early_skips_the_stages_beyond(name):
    model = shaken(name)
    ran = []
    handles = [
        stage.register_forward_hook(lambda *_, i=i: ran.append(i))
        for i, stage in enumerate(model.stages)
    ]
    try:
        with torch.no_grad():
            model.forward_intermediates(inputs(name, 1), [0], stop_early=True)
    finally:
        for handle in handles:
            handle.remove()
    assert ran == list(range(model.feature_info[0]["stage"] + 1))


@pytest.mark.parametrize("name", [name for name in NAMES if name in CLASSIFIERS])
def test_pruned_models_end_at_a_level_and_keep_nothing_beyond(name):
    whole, x = shaken(name), inputs(name, which=1)
    last = levels(name) - 1
    with torch.no_grad():
        logits, maps = whole(x), whole.forward_intermediates(x, intermediates_only=True)
        model = copy.deepcopy(whole)
        assert model.prune_intermediate_layers([0, -1], prune_head=False) == [0, last]
        assert torch.equal(model(x), logits)
        assert model.prune_intermediate_layers(1) == [last]
        assert torch.equal(model(x), whole.forward_features(x))
        assert model.prune_intermediate_layers(1, prune_norm=True) == [last]
        assert torch.equal(model(x), maps[last])
        with pytest.raises(zoo.BadInput, match="^indices="):
            model.prune_intermediate_layers([last + 1])
    assert model.prune_intermediate_layers([0]) == [0]
    assert (model.num_features, model.num_classes) == (maps[0].shape[1], 0)
    assert torch.equal(model(x), maps[0])
    assert torch.equal(model.forward_intermediates(x, [0], intermediates_only=True)[0], maps[0])
    assert not whole.training
    model.train()(x).square().mean().backward()
    assert all(p.grad is not None for p in trainable(model).values())
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("in_chans", [1, 4])
def test_features_of_other_channels(name, in_chans):
    model = shaken(name, features_only=True, in_chans=in_chans)
    assert model.in_chans == in_chans
    with torch.no_grad():
        assert model(inputs(name, 1, channels=in_chans))[0].isfinite().all()
