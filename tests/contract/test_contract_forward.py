"""Outputs: finite, of the documented shape at any size, independent of the rest of the batch."""

import copy
import pickle
import re

import pytest
import torch
from support import (
    CLASSIFIERS,
    PYRAMIDS,
    SMALLEST,
    axes,
    capability,
    difference,
    fresh,
    images,
    inputs,
    mean_difference,
    quick,
    shaken,
    shortened,
    tensors,
    trainable,
    with_hashes,
)

import zoo

IN_MULTIPLES = [name for name in SMALLEST if "multiple" in zoo.model_info(name)["input"]]
TINY = ((1, 1), (7, 5), (31, 33))


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize("which", [0, 1])
def test_logits_are_finite_and_depend_on_the_image(name, which):
    model = shaken(name)
    with torch.no_grad():
        y = model(inputs(name, which=which))
    assert y.shape == (2, model.num_classes)
    assert y.isfinite().all()
    assert (y[0] - y[1]).abs().mean() > 1e-3 * y.abs().mean()


@pytest.mark.parametrize(
    "name", [name for name in SMALLEST if name in zoo.list_models(dynamic_size=True)]
)
@pytest.mark.parametrize("size", TINY)
def test_the_smallest_images_work(name, size):
    least = capability(name, "smallest", capability(name, "patch", 1))
    if min(size) < least:
        with pytest.raises(zoo.BadInput, match=f"at least {least} x {least}"):
            shaken(name)(images(2, size))
        return
    with torch.no_grad():
        assert shaken(name)(images(2, size)).isfinite().all()


@pytest.mark.parametrize("name", IN_MULTIPLES)
def test_sides_are_multiples_and_others_are_refused_with_some_that_work(name):
    model, number = shaken(name), axes(name)
    multiple = zoo.model_info(name)["input"]["multiple"]
    with torch.no_grad():
        for size in ((multiple,) * number, (3 * multiple,) + (multiple,) * (number - 1)):
            assert model(images(2, size, model.in_chans)).isfinite().all()
        for axis in range(number):
            wrong = [2 * multiple] * number
            wrong[axis] += 1
            with pytest.raises(zoo.BadInput, match=rf"a multiple of {multiple}, such as") as caught:
                model(images(2, wrong, model.in_chans))
            work = [int(n) for n in re.findall(r"\d+", str(caught.value).split("such as")[1])]
            assert model(images(2, work, model.in_chans)).isfinite().all()


@pytest.mark.parametrize("name", SMALLEST)
def test_every_parameter_gets_a_gradient(name):
    model = fresh(name, num_classes=42).train()
    outputs = tensors(model(inputs(name, which=1)))  # every map of several positions
    assert outputs[0].shape[:2] == (2, 42)
    sum(out.square().mean() for out in outputs).backward()
    missing = [n for n, p in trainable(model).items() if p.grad is None or not p.grad.any()]
    assert not missing


@pytest.mark.parametrize("name", SMALLEST)
def test_evaluation_is_deterministic_and_changes_nothing(name):
    model, x = fresh(name), inputs(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        assert torch.equal(model(x), model(x))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", SMALLEST)
def test_a_batch_equals_its_images_one_by_one(name):
    model = fresh(name, torch.float64, **quick(name))
    x = inputs(name, 2, 1, dtype=torch.float64)
    with torch.no_grad():
        alone = torch.cat([model(x[:1]), model(x[1:])])
        assert difference(alone, model(x)) < 1e-10


@pytest.mark.parametrize("name", SMALLEST)
@pytest.mark.parametrize("in_chans", [1, 4])
def test_images_of_other_channels(name, in_chans):
    model = fresh(name, in_chans=in_chans, **quick(name))
    assert model.in_chans == in_chans
    x = inputs(name, channels=in_chans)
    with torch.no_grad():
        y = model(x)
        x[:, -1] += 1
        assert not torch.allclose(model(x), y, rtol=1e-3), "the last channel is not read"


@pytest.mark.parametrize("name", SMALLEST)
def test_bf16_autocast_is_finite_and_close(name):
    model, x = shaken(name), inputs(name)
    with torch.no_grad():
        want = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            have = model(x).float()
    assert mean_difference(have, want) < 0.25
    if name in CLASSIFIERS:  # among the values of a map, the largest error tells little
        assert difference(have, want) < 1.0


@pytest.mark.parametrize("name", SMALLEST)
def test_half_precision_holds_large_images(name):
    """With fresh weights: those of order one alone may exceed half precision."""
    torch.manual_seed(0)
    fewer = quick(name)
    blocks = fewer.pop("blocks", None)
    model = with_hashes(shortened(zoo.create_model(name, **fewer), blocks))
    x = 30 * inputs(name)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.no_grad(), torch.autocast("cpu", dtype):
            assert all(out.isfinite().all() for out in tensors(model.train()(x))), dtype
            have = model.eval()(x).float()
        with torch.no_grad():
            want = model(x)
        # Relative to the values: fresh networks hardly tell images apart.
        assert (have - want).abs().mean() < 0.1 * want.std(), dtype


@pytest.mark.parametrize("name", SMALLEST)
def test_bf16_autocast_trains(name):
    """All gradients are finite, and few vanish: those of a shift in front of a norm are small."""
    model = fresh(name).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = sum(out.float().square().mean() for out in tensors(model(inputs(name))))
    loss.backward()
    assert all(p.grad.isfinite().all() for p in trainable(model).values())
    missing = [n for n, p in trainable(model).items() if not p.grad.any()]
    assert len(missing) < 0.1 * len(trainable(model)), missing


@pytest.mark.parametrize("name", SMALLEST)
def test_copies_compute_the_same_and_share_nothing(name):
    for kwargs in ({}, {"features_only": True}) if name in PYRAMIDS else ({},):
        model, x = shaken(name, **kwargs, **quick(name)), inputs(name)
        ours = {p.data_ptr() for p in model.parameters()}
        with torch.no_grad():
            want = tensors(model(x))
            for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
                assert all(torch.equal(a, b) for a, b in zip(tensors(twin(x)), want, strict=True))
                assert not ours & {p.data_ptr() for p in twin.parameters()}


@pytest.mark.parametrize("name", SMALLEST)
def test_channels_last_computes_the_same(name):
    model, x = fresh(name), inputs(name)
    layout = torch.channels_last if axes(name) == 2 else torch.channels_last_3d
    with torch.no_grad():
        want = model(x)
        have = model.to(memory_format=layout)(x.contiguous(memory_format=layout))
    assert difference(have, want) < 1e-4


@pytest.mark.parametrize("name", SMALLEST)
def test_other_dtypes_and_the_wrong_number_of_channels(name):
    with torch.no_grad():
        x = inputs(name)
        have = fresh(name, torch.bfloat16)(x.bfloat16())
        assert have.dtype == torch.bfloat16
        assert mean_difference(have.float(), shaken(name)(x)) < 1.0
        with pytest.raises(RuntimeError, match="channels|size of tensor|shape|normalized_shape"):
            shaken(name)(inputs(name, channels=5))
