"""`digits_in_photos`: seeded images whose digit is really there, and disjoint splits."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from zoo.data import digits_in_photos, photos
from zoo.data.create import create_datamodule
from zoo.errors import BadInput


def made(seed=0, batch_size=8, **keys):
    keys = {"name": "digits_in_photos", "train_images": 40, "val_images": 20} | keys
    data = create_datamodule(keys, batch_size=batch_size, seed=seed)
    data.setup()
    return data


def pixels(source, index):
    return np.asarray(source.image(index))


def test_facts_and_shapes():
    data = made()
    assert (data.task, data.num_classes) == ("classification", 10)
    assert data.class_names == list("0123456789")
    images, labels = next(iter(data.val_dataloader()))
    assert (images.shape, labels.shape) == ((8, 3, 32, 32), (8,))
    assert next(iter(made(in_chans=1).val_dataloader()))[0].shape == (8, 1, 32, 32)
    assert len(made(train_images=None, val_images=None).source("train")) == 4000
    assert sum(data.class_counts()) == 40


def test_images_depend_only_on_split_and_index():
    one, other = made(seed=1), made(seed=2, train_images=1000)
    for split in ("train", "val"):
        assert one.source(split).labels == other.source(split).labels[: len(one.source(split))]
        for index in (0, 7):
            assert np.array_equal(
                pixels(one.source(split), index), pixels(other.source(split), index)
            )
    train, val = one.source("train"), one.source("val")
    assert not np.array_equal(pixels(train, 0), pixels(val, 0))
    assert not np.array_equal(pixels(train, 0), pixels(train, 1))


def test_the_labels_are_never_changed_by_a_release():
    """Published accuracies are of these images."""
    source = made().source("train")
    assert source.labels[:10] == [2, 0, 5, 4, 4, 6, 5, 9, 6, 4]


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_digit_of_the_label_is_in_the_image(split):
    """Its ink, drawn again from scikit-learn's pixels, is where the image differs from before."""
    digits = load_digits()
    source = made().source(split)
    for index in range(len(source)):
        drawing = source.draw(index)
        changed = np.abs(drawing.pixels - drawing.behind).max(axis=2)
        assert not changed[drawing.ink == 0].any(), "nothing else is drawn after the digit"
        number = source.digits.indices[source.chosen[index]]
        assert digits.target[number] == source.labels[index]
        small = Image.fromarray(np.round(digits.images[number] * (255 / 16)).astype(np.uint8))
        rows, columns = (np.flatnonzero(drawing.ink.any(axis=axis)) for axis in (1, 0))
        shown = drawing.ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert is_drawn_from(small, shown, source.side), f"image {index}"
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        painted = drawing.pixels[drawing.ink >= 0.9].mean()
        assert painted - drawing.behind[box].mean() > 0.1, "it is lighter than what is behind it"


def is_drawn_from(small, shown, image_side):
    """Whether `shown` is the ink of the 8 x 8 digit at one of the possible sizes."""
    low, high = (round(image_side * share) for share in digits_in_photos.SIDES)
    for side in range(low, high + 1):
        ink = np.asarray(small.resize((side, side), Image.Resampling.BICUBIC)) / 255
        for top in range(side - shown.shape[0] + 1):
            row = ink[top : top + shown.shape[0]]
            for left in range(side - shown.shape[1] + 1):
                if np.array_equal(row[:, left : left + shown.shape[1]], shown):
                    return True
    return False


def test_digits_take_turns():
    source = made(train_images=2 * 1437 + 5).source("train")
    counts = np.bincount(source.chosen, minlength=1437)
    assert set(counts.tolist()) == {2, 3}
    assert counts.sum() == 2 * 1437 + 5


def test_splits_share_neither_digits_nor_photographed_pixels():
    train, val = (made().source(split) for split in ("train", "val"))
    assert len({*train.digits.indices, *val.digits.indices}) == 1797
    assert set(train.digits.indices).isdisjoint(val.digits.indices)
    numbered = np.arange(427 * 640).reshape(427, 640)
    parts = [photos.part(numbered, split) for split in ("train", "val")]
    assert np.intersect1d(*parts).size == 0
    for source, split in ((train, "train"), (val, "val")):
        for area, name in zip(source.areas, (photos.CHINA, photos.FLOWER), strict=True):
            assert np.array_equal(area, photos.part(photos.photograph(name), split))


def test_sizes_and_contrasts_vary():
    source = made(train_images=200).source("train")
    sides, steps = [], []
    for index in range(200):
        drawing = source.draw(index)
        sides.append(np.flatnonzero(drawing.ink.any(axis=1)).size / source.side)
        step = (drawing.pixels - drawing.behind).mean(axis=2)[drawing.ink >= 0.9]
        steps.append(np.median(step))
    assert min(sides) < 0.55
    assert max(sides) > 0.8
    assert min(steps) < 0.2
    assert max(steps) > 0.4


def test_worker_processes_change_nothing():
    plain, working = made(batch_size=20), made(batch_size=20, num_workers=2)
    for (x, y), (u, v) in zip(plain.train_dataloader(), working.train_dataloader(), strict=True):
        assert torch.equal(x, u)
        assert torch.equal(y, v)


def test_training_shows_whole_images_by_default():
    data = made(mean=[0.0] * 3, std=[1.0] * 3)
    batch, labels = data.train_dataloader().dataset.load([(0, 3), (1, 3)])
    assert labels.tolist() == [data.source("train").labels[3]] * 2
    shown = torch.from_numpy(pixels(data.source("train"), 3).copy()).permute(2, 0, 1) / 255
    torch.testing.assert_close(batch[0], shown, rtol=0, atol=1e-6)
    assert torch.equal(batch[0], batch[1])


@pytest.mark.parametrize("size", [[32, 64], 31])
def test_sizes_that_cannot_work_raise(size):
    with pytest.raises(BadInput, match=r"data.image_size=.* a square of at least 32 pixels"):
        made(image_size=size)


def test_unknown_splits_and_keys_raise():
    with pytest.raises(BadInput, match="unknown split 'test' of data set digits_in_photos"):
        made().eval_dataloader("test")
    with pytest.raises(BadInput, match="data.root=/data has no effect"):
        made(root="/data")
