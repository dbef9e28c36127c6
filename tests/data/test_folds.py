"""Cross-validation: parts of the training images, each class evenly, the same on every machine."""

import random
from collections import Counter

import pytest
from test_holdout import source_of

from zoo.data import holdout
from zoo.data.create import create_datamodule
from zoo.errors import BadInput
from zoo.settings import DataConfig

NAMES = [f"{kind}/{i}.png" for kind, n in (("cat", 17), ("dog", 9), ("eel", 5)) for i in range(n)]


def opened(**keys):
    data = create_datamodule(DataConfig(num_workers=0, image_size=16, **keys), batch_size=2)
    data.setup()
    return data


def test_the_folds_have_every_image_once_and_every_class_evenly():
    source, held = source_of(*NAMES), Counter()
    sizes = []
    for fold in range(4):
        train, val = holdout.fold_of(source, 4, fold)
        assert not set(train) & set(val)
        assert sorted(train + val) == list(range(len(NAMES)))
        held.update(val)
        sizes.append(len(val))
        for kind, n in (("cat", 17), ("dog", 9), ("eel", 5)):
            inside = sum(NAMES[index].startswith(kind) for index in val)
            assert n // 4 <= inside <= n // 4 + 1
    assert held == Counter(range(len(NAMES)))
    assert max(sizes) - min(sizes) <= 1


def test_the_folds_depend_on_the_names_alone():
    other = random.Random(0).sample(NAMES, len(NAMES))
    for fold in range(3):
        _, ours = holdout.fold_of(source_of(*NAMES), 3, fold)
        _, theirs = holdout.fold_of(source_of(*other, root="/elsewhere"), 3, fold)
        assert {NAMES[index] for index in ours} == {other[index] for index in theirs}


def test_a_folder_is_divided_and_its_validation_folder_is_left_alone(write_folder):
    root = write_folder(count=6)
    val = set()
    for fold in range(3):
        data = opened(name="folder", root=str(root), folds=3, fold=fold)
        keys = data.split_keys()
        assert len(keys["train"]) == 8
        assert len(keys["val"]) == 4
        val |= set(keys["val"])
    assert val == {f"{kind}/{i}.png" for kind in ("cat", "dog") for i in range(6)}
    whole = opened(name="folder", root=str(root / "train"), folds=2, fold=1)
    assert {name: len(keys) for name, keys in whole.split_keys().items()} == {"train": 6, "val": 6}


@pytest.mark.parametrize("name", ["digits", "digits_in_photos"])
def test_sets_with_splits_of_their_own_divide_their_training_images(name):
    keys = {} if name == "digits" else {"train_images": 60}
    size = {"image_size": 32} if keys else {"image_size": 16}
    data = create_datamodule(
        DataConfig(name=name, num_workers=0, folds=3, fold=0, **keys, **size), batch_size=2
    )
    data.setup()
    counts = [len(data.source(split)) for split in ("train", "val")]
    assert counts[0] + counts[1] == (60 if keys else 1437)
    assert abs(counts[0] - 2 * counts[1]) <= 2
    images = {data.source("val").key(index) for index in range(counts[1])}
    assert not images & {data.source("train").key(index) for index in range(counts[0])}


def test_masks_are_divided_too(tmp_path):
    from PIL import Image

    for kind, mode in (("images", "RGB"), ("masks", "L")):
        (tmp_path / kind).mkdir()
        for number in range(6):
            Image.new(mode, (16, 16), number % 2).save(tmp_path / kind / f"{number}.png")
    data = opened(name="folder_segmentation", root=str(tmp_path), num_classes=2, folds=3, fold=2)
    assert [len(keys) for keys in data.split_keys().values()] == [4, 2]


def test_a_run_remembers_its_fold_when_images_are_added():
    first = source_of(*NAMES)
    saved = {
        first.key(index): half
        for half, indices in zip(("train", "val"), holdout.fold_of(first, 3, 1), strict=True)
        for index in indices
    }
    more = source_of(*NAMES, "cat/x.png", "eel/y.png")
    train, val = holdout.fold_of(more, 3, 1, saved)
    assert {more.key(index): "val" for index in val} | {
        more.key(index): "train" for index in train
    } == saved


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"folds": 1, "fold": 0}, r"data\.folds=1 must be at least 2"),
        ({"folds": 5}, r"needs data\.fold=0 to 4.*train\.sweep"),
        ({"folds": 5, "fold": 5}, r"data\.fold=5 must be from 0 to 4"),
        ({"folds": 5, "fold": -1}, r"data\.fold=-1 must be from 0 to 4"),
        ({"fold": 1}, r"data\.fold=1 has no effect without data\.folds"),
        ({"folds": 1000, "fold": 0}, r"data\.folds=1000 is more than the \d+ images of class"),
        ({"name": "folder", "folds": 2, "fold": 0, "val_split": 0.2}, "exclude each other"),
        ({"name": "wds/x", "root": ".", "folds": 2, "fold": 0}, "has no effect"),
    ],
)
def test_mistakes(keys, message):
    with pytest.raises(BadInput, match=message):
        opened(**({"name": "digits"} | keys))
