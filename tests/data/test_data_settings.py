"""Every invalid or ineffective setting raises a one-line error that names it."""

import math
import os

import pytest
from omegaconf import OmegaConf

from zoo.command_line.composition import compose
from zoo.data.create import create_datamodule
from zoo.data.presets import SETS, resolve
from zoo.errors import BadInput
from zoo.settings import DataConfig

INVALID = [
    ({"name": "digit"}, "unknown data set 'digit'; did you mean 'digits'"),
    ({"name": "imagnet"}, "did you mean 'imagenet'"),
    (
        {"name": "zzzz"},
        r"unknown data set 'zzzz'\. Choices: digits, digits_in_photos, folder, multilabel",
    ),
    ({"name": "hfds"}, "give hfds/<name>"),
    ({"name": "wds/"}, "give wds/<name>"),
    ({"name": "???"}, "data.name is not set"),
    ({"image_size": 0}, "data.image_size=0 must be a positive number"),
    ({"image_size": -8}, "data.image_size=-8"),
    ({"image_size": "big"}, "data.image_size='big'"),
    ({"image_size": 64.5}, "data.image_size=64.5"),
    ({"image_size": True}, "data.image_size=True"),
    ({"image_size": [64]}, r"data.image_size=\[64\]"),
    ({"image_size": [64, 0]}, r"data.image_size=\[64, 0\]"),
    ({"image_size": [8, 8, 8]}, r"data.image_size=\[8, 8, 8\]"),
    ({"in_chans": 2}, "data.in_chans=2 must be 1 .* or 3"),
    ({"in_chans": 0}, "data.in_chans=0"),
    ({"mean": [0.5]}, r"data.mean=\[0.5\] must have 3 numbers"),
    ({"mean": []}, "data.mean"),
    ({"std": [0.0, 1.0, 1.0]}, "data.std=.* above 0"),
    ({"mean": ["a", 1, 1]}, r"data.mean\[0\]: Value 'a'"),
    ({"std": [math.inf] * 3}, "data.std=.* must be finite"),
    ({"mean": [math.nan] * 3}, "data.mean=.* must be finite"),
    ({"mean": [-math.inf, 0, 0]}, "data.mean=.* must be finite"),
    ({"std": [1e-30] * 3}, "data.std=.* must be at least 0.0001"),
    ({"mean": [123.7, 116.3, 103.5]}, "data.mean=.* for pixel values in 0..1; divide it by 255"),
    ({"std": [58.4, 57.1, 57.4]}, "data.std=.* divide it by 255"),
    ({"image_size": 30000}, "data.image_size=30000 is larger than 8192 pixels a side"),
    ({"image_size": [64, 10**9]}, "data.image_size=.* is larger than 8192"),
    ({"crop_pct": 0.0001}, "data.crop_pct=0.0001 keeps almost nothing"),
    ({"crop_pct": math.nan}, "data.crop_pct=nan"),
    ({"ratio": [1.0, math.inf]}, "data.ratio=.* 0 < low <= high <= 100"),
    ({"ratio": [math.nan, 1.0]}, "data.ratio"),
    ({"ratio": [1e-9, 1.0]}, "data.ratio=.* must be at least 0.01"),
    ({"scale": [math.nan, 1.0]}, "data.scale"),
    ({"hflip": math.nan}, "data.hflip=nan"),
    ({"color_jitter": math.nan}, "data.color_jitter=nan must be one strength"),
    ({"color_jitter": math.inf}, "data.color_jitter=inf"),
    ({"color_jitter": [0.1, 0.1, 0.1, 0.7]}, "hue must be at most 0.5"),
    ({"re_prob": 0.5, "re_count": 10**9}, "data.re_count=1000000000 must be at most 100"),
    ({"name": "photos_superres", "train_images": 10**12}, "data.train_images=.* at most"),
    ({"interpolation": "cubic"}, "unknown data.interpolation 'cubic'; did you mean 'bicubic'"),
    ({"interpolation": "random"}, "unknown data.interpolation 'random'. Choices: nearest"),
    ({"train_interpolation": "x"}, "unknown data.train_interpolation 'x'"),
    ({"crop_pct": 0.0}, "data.crop_pct=0.0 must be above 0 and at most 1"),
    ({"crop_pct": 1.5}, "data.crop_pct=1.5"),
    ({"scale": [0.0, 1.0]}, "data.scale"),
    ({"scale": [0.9, 0.1]}, "data.scale"),
    ({"scale": [0.5, 1.5]}, "data.scale"),
    ({"scale": [0.5]}, "data.scale"),
    ({"ratio": [2.0, 1.0]}, "data.ratio"),
    ({"hflip": 1.1}, "data.hflip=1.1 must be a probability between 0 and 1"),
    ({"vflip": -0.1}, "data.vflip"),
    ({"color_jitter": -1}, "data.color_jitter=-1"),
    ({"color_jitter": "much"}, "data.color_jitter='much'"),
    ({"color_jitter": [0.1, 0.2]}, "data.color_jitter"),
    ({"auto_augment": "rnd-m9"}, "data.auto_augment='rnd-m9' is not a policy of timm"),
    ({"auto_augment": "rand-m9", "color_jitter": 0.4}, "data.color_jitter=0.4 has no effect"),
    ({"auto_augment": "rand-m9-n1000000"}, "data.auto_augment=.*: n must be at most 20"),
    ({"auto_augment": "augmix-m3-w1000000"}, "w must be at most 20"),
    ({"auto_augment": "rand-mx"}, "data.auto_augment='rand-mx': part 'mx' has no number"),
    ({"auto_augment": "rand-m9-mstdnan"}, "part 'mstdnan' has no number"),
    ({"auto_augment": "rand-m-9"}, "part 'm' has no number"),
    ({"re_prob": 2.0}, "data.re_prob"),
    ({"re_mode": "pixel"}, "data.re_mode has no effect without data.re_prob"),
    ({"re_count": 2}, "data.re_count has no effect without"),
    ({"re_prob": 0.5, "re_mode": "noise"}, "unknown data.re_mode 'noise'. Choices: const"),
    ({"re_prob": 0.5, "re_count": 0}, "data.re_count=0"),
    ({"num_workers": -1}, "data.num_workers=-1"),
    ({"root": "/data"}, "data.root=/data has no effect for data.name=digits"),
    ({"download": True}, "data.download=True has no effect"),
    ({"val_split": 0.2}, "data.val_split=0.2 has no effect"),
    ({"cache": True}, "data.cache=True has no effect"),
    ({"skip_corrupt": True}, "data.skip_corrupt=True has no effect"),
    ({"num_classes": 10}, "data.num_classes=10 has no effect"),
    ({"name": "folder", "target_key": "label"}, "data.target_key=label has no effect"),
    ({"name": "folder", "val_split": 0.0}, "data.val_split=0.0 must be between 0 and 1"),
    ({"name": "folder", "val_split": 1.0}, "data.val_split=1.0"),
    ({"name": "folder", "val_split": -0.2}, "data.val_split=-0.2"),
    ({"name": "folder", "val_split": 0.2, "val_split_name": "v"}, "exclude each other"),
    ({"name": "wds/x", "num_classes": 0}, "data.num_classes=0"),
    ({"hflp": 0.5}, "hflp"),
    ({"hflip": "often"}, "data.hflip: .*often"),
]


@pytest.mark.parametrize(("keys", "message"), INVALID, ids=[str(keys) for keys, _ in INVALID])
def test_invalid_settings_raise_one_line(keys, message):
    with pytest.raises(BadInput, match=message) as hit:
        create_datamodule(keys, batch_size=8)
    assert "\n" not in str(hit.value)


@pytest.mark.parametrize("sizes", [(0, None), (-1, None), (8, 0)])
def test_batch_sizes_below_one_raise(sizes):
    with pytest.raises(BadInput, match="batch_size=.* must be at least 1"):
        create_datamodule(DataConfig(), batch_size=sizes[0], eval_batch_size=sizes[1])


def test_a_batch_larger_than_the_training_split_raises(monkeypatch):
    data = create_datamodule(DataConfig(image_size=8), batch_size=1438)
    with pytest.raises(BadInput, match="batch_size=1438 exceeds the 1437 training images"):
        data.setup()
    data.setup("validate")  # evaluation has no such limit
    monkeypatch.setattr("zoo.data.samplers.rank_and_world", lambda: (0, 4))
    with pytest.raises(BadInput, match="batch_size=400 on each of 4 processes.* at most 359"):
        create_datamodule(DataConfig(image_size=8), batch_size=400).setup()


def test_unknown_splits_of_digits_raise():
    data = create_datamodule(DataConfig(image_size=8), batch_size=8)
    with pytest.raises(
        BadInput, match="unknown split 'test' of data set digits. Choices: train, val"
    ):
        data.eval_dataloader("test")


@pytest.mark.parametrize(
    "keys",
    [{"name": name + "/x" if name in ("hfds", "wds") else name} for name in SETS]
    + [
        {"name": "folder", "val_split": 0.3},
        {"name": "folder", "auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.25},
        {"name": "digits", "in_chans": 1, "image_size": [32, 48]},
    ],
    ids=str,
)
def test_a_resolved_configuration_resolves_to_itself(keys):
    once = resolve(keys)
    assert resolve(once) == once
    assert resolve(OmegaConf.structured(once)) == once


def test_the_composed_configuration_is_accepted():
    cfg = compose("train", ["data.image_size=[32,48]", "data.scale=[0.5,1]", "data.in_chans=1"])
    data = create_datamodule(cfg.data, batch_size=8)
    assert data.shape == (1, 32, 48)
    assert data.config.scale == [0.5, 1.0]


@pytest.mark.parametrize(
    "name", ["digits", "digits_in_photos", "folder", "imagenet", "cifar10", "cifar100"]
)
def test_each_yaml_names_its_data_set(name):
    assert compose("train", [f"data={name}"]).data.name == name


def test_a_batch_that_no_memory_can_hold_raises():
    with pytest.raises(BadInput, match=r"a batch of 512 images of data.image_size=\[8192, 8192\]"):
        create_datamodule(DataConfig(image_size=8192), batch_size=512)


def test_loader_processes_beyond_the_machine_are_capped(monkeypatch, caplog):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    assert resolve({"num_workers": 100_000}).num_workers == 24
    assert (
        "data.num_workers=100000 is too many for 6 cores: 24 processes are started" in caplog.text
    )
    caplog.clear()
    assert resolve({"num_workers": 24}).num_workers == 24
    assert not caplog.text


def test_more_processes_than_cores_are_no_warning(monkeypatch):
    """torch writes two lines in that case; warnings are errors in tests."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    data = create_datamodule(DataConfig(image_size=8, num_workers=16), batch_size=8)
    assert data.eval_dataloader("val").num_workers == 16
