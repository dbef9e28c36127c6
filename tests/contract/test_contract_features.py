"""Feature pyramids: strides, channels, and the choice of levels, by three interfaces."""

import copy
import itertools

import pytest
import torch
from support import (
    CLASSIFIERS,
    KINDS,
    PYRAMIDS,
    axes,
    images,
    inputs,
    map_size,
    on_meta,
    quick,
    shaken,
    sizes,
    takes,
    tensors,
    trainable,
    with_hashes,
)
from timm.models import FeatureInfo

import zoo
from zoo.backbone import FeatureExtractor, take_levels

NAMES = PYRAMIDS


def short(name):
    """Return a model with few blocks: enough for what depends on levels, not on depth."""
    return shaken(name, **quick(name))


def narrow(name):
    """Return a size seven times as wide as it is high."""
    multiple = zoo.model_info(name)["input"].get("multiple")
    return (33, 224) if multiple is None else (multiple,) * (axes(name) - 1) + (7 * multiple,)


@pytest.mark.parametrize("name", NAMES)
def test_strides_and_channels_are_exact(name):
    model = FeatureExtractor(shaken(name))
    assert isinstance(model.feature_info, FeatureInfo)
    for size in (*sizes(name), narrow(name)):
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
    """All levels of an isotropic model, one without stages, have the same stride."""
    strides = on_meta(name, features_only=True).feature_info.reduction()
    factors = {b / a for a, b in itertools.pairwise(strides)}
    assert factors in ({2}, {1})


@pytest.mark.parametrize("name", KINDS)
def test_every_choice_of_levels_gives_those_levels(name):
    whole, x = short(name), inputs(name, 1)
    count = len(whole.feature_info)
    choices = [c for n in range(1, count + 1) for c in itertools.combinations(range(count), n)]
    choices += [(-1,), (0, -1), tuple(range(-count, 0)), (count - 1, 0), 1, count]
    with torch.no_grad():
        want = whole.forward_intermediates(x, intermediates_only=True)
        for choice in choices:
            model = FeatureExtractor(whole, choice)
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
    model = with_hashes(zoo.create_model(name, features_only=True, out_indices=(0, 1)))
    whole = on_meta(name)
    sum(m.square().mean() for m in model(inputs(name))).backward()
    assert all(p.grad is not None for p in trainable(model).values())
    ours, all_of_them = model.state_dict(), whole.state_dict()
    assert ours.keys() < all_of_them.keys()
    assert {k: v.shape for k, v in ours.items()} == {k: all_of_them[k].shape for k in ours}


@pytest.mark.parametrize("name", ["out_indices", "indices"])
@pytest.mark.parametrize(
    "wrong", [99, 5, 0, -1, (4,), (99,), (-5,), (), "abc", (0.5,), 1.5, (0, 4)]
)
def test_levels_that_do_not_exist_are_refused_by_name(name, wrong):
    with pytest.raises(zoo.BadInput, match=f"^{name}="):
        take_levels(4, wrong, name)


@pytest.mark.parametrize("name", NAMES)
def test_levels_are_checked_before_a_model_is_cut_or_run(name):
    with torch.device("meta"), pytest.raises(zoo.BadInput, match="^out_indices="):
        zoo.create_model(name, features_only=True, out_indices=(99,))
    with pytest.raises(zoo.BadInput, match="^indices="):
        short(name).forward_intermediates(inputs(name, 1), indices=(99,))


def test_out_indices_require_features_only():
    with pytest.raises(zoo.BadInput, match="features_only"):
        zoo.create_model("mobilenetv2_035", out_indices=(0, 1))


def closed(model, maps, x):
    """Return what follows the levels: the norm, or the decoder that merges them."""
    return model.decode(maps, x) if hasattr(model, "decode") else model.norm(maps[-1])


@pytest.mark.parametrize("name", NAMES)
def test_intermediates_equal_features_only_and_forward_features(name):
    model, x = short(name), inputs(name, which=1)
    with torch.no_grad():
        last, maps = model.forward_intermediates(x)
        assert torch.equal(last, model.forward_features(x))
        whole = maps
        if takes(name, "dense"):  # features_only=True implies it
            dense = shaken(name, dense=True, **quick(name))
            whole = dense.forward_intermediates(x, intermediates_only=True)
        pyramid = shaken(name, features_only=True, **quick(name))
        for have, want in zip(pyramid(x), whole, strict=True):
            assert torch.equal(have, want)
        have = closed(model, maps, x).flatten(2)  # with class tokens, `last` is a row of tokens
        assert torch.equal(have, last.flatten(2)[..., -have.shape[2] :])
        _, normed = model.forward_intermediates(x, norm=True)
        assert torch.equal(normed[-1], model.norm(maps[-1]))
        assert all(torch.equal(a, b) for a, b in zip(normed[:-1], maps[:-1], strict=True))


@pytest.mark.parametrize("name", KINDS)
def test_arguments_of_forward_intermediates(name):
    model, x = short(name), inputs(name, 1)
    count = len(model.feature_info)
    with torch.no_grad():
        last, every = model.forward_intermediates(x)
        for indices in (None, 2, [0], [0, 1], [-1], [1, 0]):
            chosen = {None: range(count), 2: range(count - 2, count)}.get(
                indices if not isinstance(indices, list) else "", indices
            )
            want = [every[i] for i in chosen]
            full = model.forward_intermediates(x, indices)
            early, maps = model.forward_intermediates(x, indices, stop_early=True)
            only = model.forward_intermediates(x, indices, intermediates_only=True)
            both = model.forward_intermediates(x, indices, intermediates_only=True, stop_early=True)
            assert torch.equal(full[0], last)
            for have in (full[1], maps, only, both):
                assert len(have) == len(want)
                assert all(torch.equal(a, b) for a, b in zip(have, want, strict=True)), indices
            deepest = max(i % count for i in chosen)
            to_the_end = deepest == count - 1 and not hasattr(model, "decode")
            assert torch.equal(early, last if to_the_end else every[deepest])
    with pytest.raises(zoo.BadInput, match="output_fmt"):
        model.forward_intermediates(x, output_fmt="NLC")


@pytest.mark.parametrize("name", NAMES)
def test_stopping_early_skips_the_stages_beyond(name):
    model = short(name)
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
    whole, x = short(name), inputs(name)
    last = len(whole.feature_info) - 1
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
    model = zoo.create_model(name, features_only=True, in_chans=in_chans, out_indices=(0,)).eval()
    assert model.in_chans == in_chans
    x = inputs(name, channels=in_chans)
    with torch.no_grad():
        y = tensors(model(x))[0]
        x[:, -1] *= -1
        assert not torch.allclose(model(x)[0], y, rtol=1e-3), "the last channel is not read"
