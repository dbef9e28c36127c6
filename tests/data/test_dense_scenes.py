"""The generated scenes: what they hold, that splits share nothing, that masks follow images."""

import numpy as np
import pytest
import torch

from zoo.data import photos, scenes, sources
from zoo.data.create import create_datamodule
from zoo.data.scenes import Scenes
from zoo.errors import BadInput
from zoo.settings import DataConfig


def made(batch_size=8, seed=0, **keys):
    keys = {"name": "digits_segmentation", "train_images": 40, "val_images": 20} | keys
    data = create_datamodule(DataConfig(**keys), batch_size=batch_size, seed=seed)
    data.setup()
    return data


def pixels(source, index):
    return tuple(np.asarray(image) for image in source.pair(index))


def test_the_set_says_what_it_is():
    data = made()
    assert (data.task, data.num_classes) == ("segmentation", 11)
    assert data.class_names == ["background", *"0123456789"]
    images, masks = next(iter(data.val_dataloader()))
    assert (images.shape, images.dtype) == ((8, 3, 48, 48), torch.float32)
    assert (masks.shape, masks.dtype) == ((8, 48, 48), torch.int64)
    assert data.eval_preprocessing()["size"] == [3, 48, 48]
    assert (len(data.source("train")), len(data.source("val"))) == (40, 20)


def test_scenes_are_a_function_of_split_and_number_alone():
    one, other = made(seed=1), made(seed=2, train_images=1000)
    for split in ("train", "val"):
        for index in (0, 7):
            for ours, theirs in zip(
                pixels(one.source(split), index), pixels(other.source(split), index), strict=True
            ):
                assert np.array_equal(ours, theirs)
    train, val = (pixels(one.source(split), 0)[0] for split in ("train", "val"))
    assert not np.array_equal(train, val)
    assert not np.array_equal(train, pixels(one.source("train"), 1)[0])


def test_training_and_validation_share_neither_digits_nor_photographed_pixels(monkeypatch):
    whole = sources.digits((8, 8), 1)
    data = made(val_images=40)
    train, val = data.source("train"), data.source("val")
    assert set(train.digits.indices).isdisjoint(val.digits.indices)
    assert len({*train.digits.indices, *val.digits.indices}) == len(whole) == 1797

    used = {"train": np.zeros(2), "val": np.zeros(2)}
    numbered = np.arange(427 * 640, dtype=np.int64).reshape(427, 640)
    for split in used:
        ours = scenes._side(numbered, split)
        used[split] = np.unique(ours)
        expected = [scenes._side(photos.photograph(name), split) for name in ("china", "flower")]
        for area, photo in zip(data.source(split).areas, expected, strict=True):
            assert np.array_equal(area, photo)
    assert np.intersect1d(used["train"], used["val"]).size == 0
    assert sum(len(part) for part in used.values()) == 427 * 640


def test_masks_show_where_digits_are_painted():
    """The background of a scene comes back where the mask is 0, and nowhere else."""
    source = made(val_images=60).source("val")
    blank = Scenes(**{**vars(source), "count": 60})
    seen = np.zeros(11, int)
    for index in range(60):
        image, mask = pixels(source, index)
        assert mask.max() <= 10
        seen += np.bincount(mask.ravel(), minlength=11)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(scenes, "_paint", lambda *_: None)
            plain, same = pixels(blank, index)
        drawn = np.zeros(11)
        change = np.abs(image.astype(int) - plain.astype(int)).max(axis=2)
        drawn = change[mask > 0].mean()
        assert drawn > 0.25 * 255, "digits stand out"
        assert (change[mask == 0] == 0).mean() > 0.6, "the photograph is left alone elsewhere"
        assert same.shape == mask.shape
    assert (seen > 0).all(), "every class occurs"
    assert 0.6 < seen[0] / seen.sum() < 0.9


COUNTS = {(32, 32): (3, 4), (48, 48): (6, 10), (48, 96): (12, 20), (128, 128): (43, 71)}


@pytest.mark.parametrize("size", COUNTS)
def test_scenes_hold_several_digits_that_hardly_overlap(size, monkeypatch):
    boxes = []
    place = scenes._place

    def watch(shape, area, taken, rng):
        found = place(shape, area, taken, rng)
        if found is not None:
            boxes.append(([*taken], found))
        return found

    monkeypatch.setattr(scenes, "_place", watch)
    source = made(image_size=list(size)).source("train")
    counts = []
    for index in range(20):
        before = len(boxes)
        image, _ = source.pair(index)
        counts.append(len(boxes) - before)
        assert image.size == (source.size[1], source.size[0])
    fewest, most = scenes.digits_in(size)
    assert (fewest, most) == COUNTS[size]
    assert fewest <= min(counts) <= fewest + (most - fewest) // 4
    assert most - (most - fewest) // 4 <= max(counts) <= most
    overlaps = [scenes._overlap(box, other) for taken, box in boxes for other in taken]
    assert 0 < max(overlaps) <= scenes.OVERLAP


def test_every_digit_has_ink_at_every_size():
    whole = sources.digits((8, 8), 1)
    for index in range(0, len(whole), 7):
        for side in (9, 20, 51):
            ink = scenes._ink(whole.image(index), side)
            assert (ink >= 0.5).any()
            assert max(ink.shape) > 0.6 * side


def test_training_draws_anew_each_epoch_and_repeats_itself():
    data = made(color_jitter=0.3)

    def epoch(number, source=data):
        loader = source.train_dataloader()
        loader.set_epoch(number)
        return list(loader)

    first, again, second, other = epoch(0), epoch(0), epoch(1), epoch(0, made(seed=3))
    assert len(first) == 5
    for (x, y), (u, v) in zip(first, again, strict=True):
        assert torch.equal(x, u)
        assert torch.equal(y, v)
    assert not torch.equal(first[0][0], second[0][0])
    assert not torch.equal(first[0][1], other[0][1])


def test_colours_change_and_masks_stay_without_geometry():
    data = made(color_jitter=0.5)
    batch = data.train_dataloader().dataset
    images, masks = batch.load([(0, 3), (1, 3)])
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(images[0], images[1])
    plain, _ = made(color_jitter=0.0).train_dataloader().dataset.load([(0, 3), (1, 3)])
    assert torch.equal(plain[0], plain[1])


def test_worker_processes_change_nothing():
    alone, working = made(batch_size=20), made(batch_size=20, num_workers=1)
    for (x, y), (u, v) in zip(alone.train_dataloader(), working.train_dataloader(), strict=True):
        assert torch.equal(x, u)
        assert torch.equal(y, v)


def test_grey_scenes():
    images, _ = next(iter(made(in_chans=1).val_dataloader()))
    assert images.shape == (8, 1, 48, 48)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"image_size": 16}, r"data.image_size=\[16, 16\]: digits_segmentation needs at least 32"),
        ({"train_images": 0}, "data.train_images=0 must be 1 or more"),
        ({"val_images": -1}, "data.val_images=-1 must be 1 or more"),
        ({"crop_pct": 0.9}, "data.crop_pct=0.9 has no effect for data.name=digits_segmentation"),
        ({"auto_augment": "rand-m9"}, "data.auto_augment=rand-m9 has no effect"),
        ({"re_prob": 0.5}, "data.re_prob=0.5 has no effect"),
        ({"root": "/data"}, "data.root=/data has no effect"),
        ({"num_classes": 11}, "data.num_classes=11 has no effect"),
        ({"color_jitter": [0.1, 0.1, 0.1, 0.9]}, "data.color_jitter=.*0.9"),
        ({"scale": [0.5, 2.0]}, "data.scale"),
        ({"name": "digits_segmentaton"}, "did you mean digits_segmentation"),
    ],
    ids=str,
)
def test_refused_in_one_line(keys, message):
    with pytest.raises(BadInput, match=message) as hit:
        made(**keys)
    assert "\n" not in str(hit.value)


def test_a_batch_larger_than_the_train_set_is_refused():
    with pytest.raises(BadInput, match="batch_size=41 is more than the 40 training images"):
        made(batch_size=41)


def test_other_splits_are_refused():
    with pytest.raises(BadInput, match="digits_segmentation has no split 'test'"):
        made().eval_dataloader("test")
