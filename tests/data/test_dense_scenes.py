"""The generated scenes: contents, disjoint splits, masks that match the images."""

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


def test_facts_and_shapes():
    data = made()
    assert (data.task, data.num_classes) == ("segmentation", 11)
    assert data.class_names == ["background", *"0123456789"]
    images, masks = next(iter(data.val_dataloader()))
    assert (images.shape, images.dtype) == ((8, 3, 48, 48), torch.float32)
    assert (masks.shape, masks.dtype) == ((8, 48, 48), torch.int64)
    assert data.eval_preprocessing()["size"] == [3, 48, 48]
    assert (len(data.source("train")), len(data.source("val"))) == (40, 20)


def test_scenes_depend_only_on_split_and_index():
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


def test_splits_share_neither_digits_nor_photographed_pixels():
    whole = sources.digits((8, 8), 1)
    data = made(val_images=40)
    train, val = data.source("train"), data.source("val")
    assert set(train.digits.indices).isdisjoint(val.digits.indices)
    assert len({*train.digits.indices, *val.digits.indices}) == len(whole) == 1797

    used = {"train": np.zeros(2), "val": np.zeros(2)}
    numbered = np.arange(427 * 640, dtype=np.int64).reshape(427, 640)
    for split in used:
        ours = photos.part(numbered, split)
        used[split] = np.unique(ours)
        expected = [photos.part(photos.photograph(name), split) for name in ("china", "flower")]
        for area, photo in zip(data.source(split).areas, expected, strict=True):
            assert np.array_equal(area, photo)
    assert np.intersect1d(used["train"], used["val"]).size == 0
    assert sum(len(part) for part in used.values()) == 427 * 640


def test_masks_show_where_digits_are_painted():
    """Without digits, pixels change where the mask has a digit and hardly elsewhere."""
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
        assert drawn > 0.25 * 255, "digits are clearly visible"
        assert (change[mask == 0] == 0).mean() > 0.6, "the photograph is unchanged elsewhere"
        assert same.shape == mask.shape
    assert (seen > 0).all(), "every class occurs"
    assert 0.6 < seen[0] / seen.sum() < 0.9


COUNTS = {(32, 32): (3, 4), (48, 48): (6, 10), (48, 96): (12, 20), (128, 128): (43, 71)}


@pytest.mark.parametrize("size", COUNTS)
def test_scenes_have_several_digits_that_hardly_overlap(size, monkeypatch):
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
    fewest, most = scenes.digit_counts(size)
    assert (fewest, most) == COUNTS[size]
    assert fewest <= min(counts) <= fewest + (most - fewest) // 4
    assert most - (most - fewest) // 4 <= max(counts) <= most
    overlaps = [scenes._overlap(box, other) for taken, box in boxes for other in taken]
    assert 0 < max(overlaps) <= scenes.MAX_OVERLAP


def test_every_digit_has_ink_at_every_size():
    whole = sources.digits((8, 8), 1)
    for index in range(0, len(whole), 7):
        for side in (9, 20, 51):
            ink = scenes.ink_of(whole.image(index), side)
            assert (ink >= 0.5).any()
            assert max(ink.shape) > 0.6 * side


def test_augmentation_differs_between_epochs_and_is_repeatable():
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


def test_colour_jitter_changes_images_but_not_masks():
    data = made(color_jitter=0.5)
    batch = data.train_dataloader().dataset
    images, masks = batch.load([(0, 3), (1, 3)])
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(images[0], images[1])
    plain, _ = made(color_jitter=0.0).train_dataloader().dataset.load([(0, 3), (1, 3)])
    assert torch.equal(plain[0], plain[1])


def test_worker_processes_change_nothing():
    plain, working = made(batch_size=20), made(batch_size=20, num_workers=1)
    for (x, y), (u, v) in zip(plain.train_dataloader(), working.train_dataloader(), strict=True):
        assert torch.equal(x, u)
        assert torch.equal(y, v)


def test_grey_scenes():
    images, _ = next(iter(made(in_chans=1).val_dataloader()))
    assert images.shape == (8, 1, 48, 48)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"image_size": 16},
            r"data.image_size=\[16, 16\] is too small .*; digits_segmentation needs at least 32",
        ),
        ({"train_images": 0}, "data.train_images=0 must be at least 1"),
        ({"val_images": -1}, "data.val_images=-1 must be at least 1"),
        ({"crop_pct": 0.9}, "data.crop_pct=0.9 has no effect for data.name=digits_segmentation"),
        ({"auto_augment": "rand-m9"}, "data.auto_augment=rand-m9 has no effect"),
        ({"re_prob": 0.5}, "data.re_prob=0.5 has no effect"),
        ({"root": "/data"}, "data.root=/data has no effect"),
        ({"num_classes": 11}, "data.num_classes=11 has no effect"),
        ({"color_jitter": [0.1, 0.1, 0.1, 0.9]}, "data.color_jitter=.*0.9"),
        ({"scale": [0.5, 2.0]}, "data.scale"),
        ({"name": "digits_segmentaton"}, "did you mean 'digits_segmentation'"),
    ],
    ids=str,
)
def test_invalid_settings_raise_one_line(keys, message):
    with pytest.raises(BadInput, match=message) as hit:
        made(**keys)
    assert "\n" not in str(hit.value)


def test_a_batch_larger_than_the_training_split_raises():
    with pytest.raises(BadInput, match="batch_size=41 exceeds the 40 training images"):
        made(batch_size=41)


def test_unknown_splits_raise():
    with pytest.raises(BadInput, match="unknown split 'test' of data set digits_segmentation"):
        made().eval_dataloader("test")
