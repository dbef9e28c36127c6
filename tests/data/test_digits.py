"""scikit-learn's digits: contents, repeatability, resuming and distribution over ranks."""

import random

import numpy as np
import pytest
import torch

from zoo.data.create import create_datamodule
from zoo.data.samplers import TrainBatches
from zoo.settings import DataConfig

SMALL = {"image_size": 16}


def digits(seed=0, batch_size=64, **keys):
    data = create_datamodule(DataConfig(**SMALL | keys), batch_size=batch_size, seed=seed)
    data.setup()
    return data


def epoch_of(data, epoch, **keys):
    loader = data.train_dataloader()
    loader.set_epoch(epoch)
    return list(loader)


def assert_same(ours, theirs):
    assert len(ours) == len(theirs) > 0
    for (x, y), (u, v) in zip(ours, theirs, strict=True):
        assert torch.equal(x, u)
        assert torch.equal(y, v)


def test_the_split_is_80_to_20_stratified_and_disjoint():
    data = digits(seed=1)
    train, val = data.source("train"), data.source("val")
    assert (len(train), len(val)) == (1437, 360)
    assert sorted([*train.indices, *val.indices]) == list(range(1797))
    counts = np.bincount(val.labels) / np.bincount([*train.labels, *val.labels])
    assert counts.min() > 0.18
    assert counts.max() < 0.22
    assert digits(seed=2).source("val").indices == val.indices, "the seed must not move the split"
    assert data.num_classes == 10
    assert data.class_names == list("0123456789")


def test_batches_are_normalised_and_have_the_requested_shape():
    data = digits(image_size=[16, 24], mean=[0.5, 0.5, 0.5], std=[0.25, 0.25, 0.25])
    images, labels = next(iter(data.val_dataloader()))
    assert (images.shape, images.dtype) == ((64, 3, 16, 24), torch.float32)
    assert (labels.shape, labels.dtype) == ((64,), torch.int64)
    assert images.min() == pytest.approx(-2)  # black: (0 - 0.5) / 0.25
    assert images.max() == pytest.approx(2)
    assert torch.equal(images[:, 0], images[:, 2]), "a grey image has three equal channels"
    assert data.eval_preprocessing() == {
        "size": [3, 16, 24],
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "channel_order": "RGB",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
    }


def test_evaluation_preprocessing_equals_timms():
    from timm.data.transforms_factory import create_transform

    data = digits(crop_pct=0.9, mean=[0.4, 0.5, 0.6])
    images, _ = next(iter(data.val_dataloader()))
    prepare = create_transform(
        (16, 16), interpolation="bicubic", crop_pct=0.9, mean=(0.4, 0.5, 0.6), std=data.std
    )
    theirs = torch.stack([prepare(data.source("val").image(i)) for i in range(len(images))])
    torch.testing.assert_close(images, theirs, rtol=0, atol=1e-5)


def test_grey_images_use_the_average_of_the_models_statistics():
    data = create_datamodule(
        DataConfig(in_chans=1, **SMALL), batch_size=8, mean=(0.3, 0.4, 0.5), std=(0.2, 0.2, 0.2)
    )
    data.setup()
    assert data.mean == pytest.approx([0.4])
    assert next(iter(data.train_dataloader()))[0].shape == (8, 1, 16, 16)


def test_the_configuration_overrides_the_model_and_the_model_the_data_set():
    data = create_datamodule(
        DataConfig(mean=[0.1, 0.2, 0.3]), batch_size=8, mean=(0.5,) * 3, std=(0.5,) * 3
    )
    assert data.mean == [0.1, 0.2, 0.3]
    assert data.std == [0.5, 0.5, 0.5]
    assert create_datamodule(DataConfig(), batch_size=8, crop_pct=0.8).crop_pct == 0.8


def test_epochs_differ_and_are_repeatable():
    data = digits()
    first, again, second = epoch_of(data, 0), epoch_of(data, 0), epoch_of(data, 1)
    assert_same(first, again)
    assert len(first) == 1437 // 64
    assert not torch.equal(first[0][1], second[0][1])
    assert not torch.equal(first[0][1], epoch_of(digits(seed=5), 0)[0][1])


def test_augmentation_depends_only_on_seed_epoch_and_index():
    from zoo.data.dataset import ImageSet

    data = digits(re_prob=0.5, re_mode="pixel", auto_augment="rand-m9-mstd0.5")
    images = data.train_dataloader().dataset
    assert isinstance(images, ImageSet)
    batched, _ = images.load([(3, index) for index in range(8)])
    single, _ = images.load([(3, 5)])
    other, _ = images.load([(4, 5)])
    assert torch.equal(batched[5], single[0])
    assert not torch.equal(single, other)


def test_worker_processes_change_nothing():
    keys = {"auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.3, "re_mode": "pixel"}
    plain, working = digits(batch_size=256, **keys), digits(batch_size=256, num_workers=2, **keys)
    loader = working.train_dataloader()
    for epoch in (0, 1):  # persistent workers must learn the next epoch
        loader.set_epoch(epoch)
        assert_same(epoch_of(plain, epoch), list(loader))


def test_loading_does_not_change_the_global_random_states():
    data = digits(re_prob=0.5, re_mode="pixel")
    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    expected = random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    epoch_of(data, 0)
    list(data.val_dataloader())
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected  # noqa: NPY002


def test_resuming_within_an_epoch_does_not_load_earlier_batches(monkeypatch):
    data = digits()
    whole = epoch_of(data, 2)
    loader = data.train_dataloader()
    loader.set_epoch(2)
    running = iter(loader)
    for _ in range(20):
        next(running)
    state = loader.state_dict()
    assert state == {"epoch": 2, "batch": 20}

    resumed = data.train_dataloader()
    resumed.load_state_dict(state)
    resumed.set_epoch(2)  # the same epoch: no restart
    loaded = []
    load = resumed.dataset.source.image
    monkeypatch.setattr(resumed.dataset.source, "image", lambda i: loaded.append(i) or load(i))
    assert_same(list(resumed), whole[20:])
    assert len(loaded) == 2 * 64
    resumed.set_epoch(3)
    assert len(list(resumed)) == len(whole), "the next epoch starts at its beginning"


def test_resuming_between_epochs_does_not_skip_the_next():
    data = digits(batch_size=512)
    loader = data.train_dataloader()
    epochs = [list(loader)]
    loader.set_epoch(1)
    state = loader.state_dict()
    resumed = data.train_dataloader()
    resumed.load_state_dict(state)
    assert list(resumed) == []
    resumed.set_epoch(1)
    assert len(list(resumed)) == len(epochs[0]) == 2


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_batch_of_one_process(monkeypatch, world):
    joint = list(TrainBatches(100, 8 * world, seed=3))
    shares = []
    for rank in range(world):
        monkeypatch.setattr("zoo.data.samplers.rank_and_world", lambda r=rank: (r, world))
        batches = TrainBatches(100, 8, seed=3)
        shares.append(list(batches))
        assert len(batches) == len(shares[-1]) == 100 // (8 * world)
    for step, batch in enumerate(joint):
        assert sum((share[step] for share in shares), []) == batch


def test_ranks_evaluate_every_image_once(monkeypatch):
    data = create_datamodule(DataConfig(**SMALL), batch_size=7, eval_batch_size=50)
    data.setup("validate")
    seen = []
    for rank in range(7):
        monkeypatch.setattr("zoo.data.samplers.rank_and_world", lambda r=rank: (r, 7))
        loader = data.val_dataloader()
        keys = [index for batch in loader.batch_sampler for _, index in batch]
        assert sum(len(labels) for _, labels in loader) == len(keys)
        assert len(loader) == len(list(loader.batch_sampler))
        seen += keys
    assert sorted(seen) == list(range(360))
