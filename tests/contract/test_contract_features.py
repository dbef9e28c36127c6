"""Pyramids: exact strides and channels, in the order asked for, and one truth by three ways."""

import itertools

import pytest
import torch
from support import PYRAMIDS, SIZES, ceil_div, images, shaken
from timm.models import FeatureInfo

import zoo

NAMES = PYRAMIDS
ODD = SIZES[1]


def levels(name):
    return len(shaken(name).feature_info)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [*SIZES, (33, 224)])
def test_strides_and_channels_are_exact(name, size):
    model = shaken(name, features_only=True)
    assert isinstance(model.feature_info, FeatureInfo)
    with torch.no_grad():
        maps = model(images(1, size))
    assert isinstance(maps, list)
    assert [m.shape[1] for m in maps] == model.feature_info.channels()
    patch = zoo.model_info(name)["capabilities"].get("patch", 1)
    whole = [side - side % patch for side in size]
    assert [tuple(m.shape[2:]) for m in maps] == [
        ceil_div(whole, stride) for stride in model.feature_info.reduction()
    ]
    assert all(m.isfinite().all() for m in maps)


@pytest.mark.parametrize("name", NAMES)
def test_levels_double_their_stride(name):
    strides = shaken(name, features_only=True).feature_info.reduction()
    assert all(b == 2 * a for a, b in itertools.pairwise(strides))


@pytest.mark.parametrize("name", NAMES)
def test_every_choice_of_levels_gives_those_levels(name):
    whole, count = shaken(name), levels(name)
    x = images(1, ODD)
    choices = [c for n in range(1, count + 1) for c in itertools.combinations(range(count), n)]
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
    sum(m.square().mean() for m in model(images(2))).backward()
    assert all(p.grad is not None for p in model.parameters())
    ours, all_of_them = model.state_dict(), whole.state_dict()
    assert ours.keys() < all_of_them.keys()
    assert {k: v.shape for k, v in ours.items()} == {k: all_of_them[k].shape for k in ours}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wrong", [99, 0, -1, (99,), (-99,), (), "abc", (0.5,), 1.5])
def test_levels_that_there_are_not(name, wrong):
    with pytest.raises(zoo.BadInput, match="out_indices="):
        zoo.create_model(name, features_only=True, out_indices=wrong)
    with pytest.raises(zoo.BadInput, match="^indices="):
        shaken(name).forward_intermediates(images(1), indices=wrong)


@pytest.mark.parametrize("name", NAMES)
def test_out_indices_without_features_only_is_an_error(name):
    with pytest.raises(zoo.BadInput, match="features_only"):
        zoo.create_model(name, out_indices=(0, 1))


@pytest.mark.parametrize("name", NAMES)
def test_intermediates_equal_features_only_and_forward_features(name):
    model, x = shaken(name), images(2, ODD)
    with torch.no_grad():
        last, maps = model.forward_intermediates(x)
        assert torch.equal(last, model.forward_features(x))
        for have, want in zip(shaken(name, features_only=True)(x), maps, strict=True):
            assert torch.equal(have, want)
        assert torch.equal(model.norm(maps[-1]), last)
        _, normed = model.forward_intermediates(x, norm=True)
        assert torch.equal(normed[-1], last)
        assert all(torch.equal(a, b) for a, b in zip(normed[:-1], maps[:-1], strict=True))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("indices", [None, 2, [0], [0, 2], [-1], [2, 0]])
def test_arguments_of_forward_intermediates(name, indices):
    model, x = shaken(name), images(1)
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
    assert torch.equal(early, last if deepest == count - 1 else every[deepest])
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
            model.forward_intermediates(images(1), [0], stop_early=True)
    finally:
        for handle in handles:
            handle.remove()
    assert ran == list(range(model.feature_info[0]["stage"] + 1))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("in_chans", [1, 4])
def test_features_of_other_channels(name, in_chans):
    model = shaken(name, features_only=True, in_chans=in_chans)
    assert model.in_chans == in_chans
    with torch.no_grad():
        assert model(images(1, channels=in_chans))[0].isfinite().all()
