"""Each augmentation key has its effect."""

import functools
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import AugmentOp

from zoo.data.create import create_datamodule
from zoo.data.dataset import own_randomness, seed_sample
from zoo.data.transforms import _AtLeastOneBit, _steps
from zoo.settings import DataConfig

# No randomness: the whole square image, neither flipped nor recoloured.
DETERMINISTIC = {"image_size": 32, "scale": [1.0, 1.0], "ratio": [1.0, 1.0], "color_jitter": 0.0}


@pytest.fixture
def prepared(picture):
    """Return a function that augments a picture: C H W."""
    return functools.partial(prepare, picture)


def prepare(picture, number=1, mode="RGB", seed=0, **keys):
    data = create_datamodule(DataConfig(**DETERMINISTIC | keys), batch_size=1)
    out = torch.empty(data.shape)
    with own_randomness():
        seed_sample(seed)
        data._train.prepare_into(out, picture(number, (32, 32), mode))
    return out


def test_flips(prepared):
    plain = prepared()
    assert torch.equal(prepared(hflip=1.0), plain.flip(2))
    assert torch.equal(prepared(vflip=1.0), plain.flip(1))


def test_digits_are_not_flipped_by_default():
    data = create_datamodule(DataConfig(), batch_size=1)
    assert data.config.hflip == 0
    assert create_datamodule(DataConfig("folder"), batch_size=1).config.hflip == 0.5


def test_crops_follow_scale_and_ratio(prepared):
    assert not torch.equal(prepared(scale=[0.2, 0.3]), prepared())


@pytest.mark.parametrize("jitter", [0.4, [0.4, 0.4, 0.4], [0.1, 0.1, 0.1, 0.1]])
def test_colour_jitter(prepared, jitter):
    assert not torch.equal(prepared(color_jitter=jitter), prepared())


@pytest.mark.parametrize("count", [1, 3])
def test_random_erasing_fills_with_the_mean(prepared, count):
    erased = prepared(re_prob=1.0, re_count=count)
    plain = prepared()
    hit = (erased != plain).any(0)
    assert 0.01 < hit.float().mean() < 0.5
    assert (erased[:, hit] == 0).all(), "0 is the mean once normalised"


def test_random_erasing_modes(prepared):
    noisy = prepared(re_prob=1.0, re_mode="pixel")
    one = prepared(re_prob=1.0, re_mode="rand")
    hit = (noisy != prepared()).any(0)
    assert noisy[:, hit].unique().numel() > 100
    assert one[:, (one != prepared()).any(0)].unique().numel() == 3


@pytest.mark.parametrize("in_chans", [1, 3])
@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "rand-m0", "augmix-m3-w3", "original"])
def test_policies_survive_many_draws_and_change_images(picture, prepared, policy, in_chans):
    mode = "L" if in_chans == 1 else "RGB"
    keys = DETERMINISTIC | {"auto_augment": policy, "in_chans": in_chans}
    data = create_datamodule(DataConfig(**keys), batch_size=1)
    pickle.dumps(data._train)  # as for worker processes that are not forked
    out, plain = torch.empty(data.shape), prepared(mode=mode, in_chans=in_chans)
    changed = 0
    with own_randomness():
        for seed in range(300):
            seed_sample(seed)
            data._train.prepare_into(out, picture(1, (32, 32), mode))
            changed += not torch.equal(out, plain)
    assert changed > 100


@pytest.mark.parametrize("policy", ["rand-m10-inc1", "augmix-m10", "original"])
def test_timms_steps_call_the_function_that_is_replaced(policy):
    """`zoo.data.transforms` relies on timm's `name`, `level_fn` and the lists of steps.

    Without the replacement, timm's steps for posterising request 0 bits, which Pillow refuses.
    """
    data = create_datamodule(DataConfig(auto_augment=policy), batch_size=1)
    (found,) = [steps for t in data._train.transform.transforms if (steps := _steps(t))]
    posterizing = [step for step in found if step.name.startswith("Posterize")]
    assert posterizing, "timm renamed the steps or their lists"
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    for step in posterizing:
        step.prob = 1.0
        assert isinstance(step.level_fn, _AtLeastOneBit)
        for bits in (1, 3):
            step.level_fn = lambda *_, bits=bits: (bits,)
            assert np.unique(np.asarray(step(ramp))).size == 2**bits, "timm ignores level_fn"


def test_timm_still_posterizes_to_zero_bits():
    """If this fails, timm needs no replacement: delete it from `zoo.data.transforms`."""
    step = AugmentOp("PosterizeIncreasing", prob=1.0, magnitude=10)
    assert step.level_fn(10, step.hparams) == (0,)
    assert _AtLeastOneBit(step.level_fn)(10, step.hparams) == (1,)


def test_train_interpolation_defaults_to_that_of_evaluation(prepared):
    def crop(**keys):
        return prepared(scale=[0.3, 0.3], **keys)

    assert torch.equal(crop(), crop(train_interpolation="bicubic"))
    assert not torch.equal(crop(), crop(train_interpolation="nearest"))
    assert torch.equal(crop(interpolation="nearest"), crop(train_interpolation="nearest"))
    draws = [crop(train_interpolation="random", seed=seed) for seed in range(8)]
    assert any(not torch.equal(draw, crop(seed=seed)) for seed, draw in enumerate(draws))
