"""Classes are matched by name: between splits, and with those of weights."""

import logging
import shutil

import numpy as np
import pytest
from PIL import Image

from zoo.data.classes import KnownClasses
from zoo.data.create import create_datamodule
from zoo.errors import BadInput
from zoo.settings import DataConfig


def folder(root, stage="validate", expected=None, **keys):
    keys = {"name": "folder", "root": str(root), "image_size": 8, "num_workers": 0} | keys
    data = create_datamodule(DataConfig(**keys), batch_size=2)
    if expected is not None:
        data.expect_classes(len(expected), expected, "the run")
    data.setup(stage)
    return data


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        (["a", "b", "c"], [0, 1, 2]),
        (["c", "a", "b"], [2, 0, 1]),
        (["b"], [1]),
        (["b", "x"], [1, None]),
        (["x", "c", "y"], [None, 2, None]),
    ],
)
def test_known_classes_are_found_by_name(names, numbers):
    known = KnownClasses(3, ["a", "b", "c"], "the run", leaves_out=True)
    assert known.numbers("val", len(names), names) == numbers


def test_without_names_the_counts_must_agree(caplog):
    unnamed = KnownClasses(3, None, "the run", "folder", leaves_out=True)
    for split in ("train", "val"):
        assert unnamed.numbers(split, 3, ["a", "b", "c"]) == [0, 1, 2]
    assert caplog.text.count("matched by position") == 1
    named = KnownClasses(3, ["a", "b", "c"], "the run", "wds/x", leaves_out=True)
    for known, names in ((unnamed, ["a", "b"]), (named, None)):
        with pytest.raises(BadInput, match=r"the run has 3 classes, but data\.name=.* has 2"):
            known.numbers("val", 2, names)


def test_labels_and_names_are_those_of_the_weights(write_folder, caplog):
    root = write_folder(splits=("val",), classes=("bird", "cat", "dog"), count=2)
    with caplog.at_level(logging.WARNING, "zoo.data"):
        data = folder(root, expected=["dog", "ant", "bird"])
    assert (data.num_classes, data.class_names) == (3, ["dog", "ant", "bird"])
    assert data.source("val").labels == [2, 2, 0, 0]
    labels = np.concatenate([labels.numpy() for _, labels in data.val_dataloader()])
    assert labels.tolist() == [2, 2, 0, 0]
    assert "split val: left out the images of class cat, unknown to the run" in caplog.text
    assert "split val has no images of class ant" in caplog.text
    assert data.describe() == "folder: 4 images, 2 a class"


def test_no_known_class_raises(write_folder):
    root = write_folder(splits=("val",))
    with pytest.raises(BadInput, match="the run has none of the classes of the data"):
        folder(root, expected=["ant", "bee"])


def test_a_validation_folder_may_lack_a_class(write_folder, caplog):
    root = write_folder(classes=("ant", "bee", "cat"), count=2)
    shutil.rmtree(root / "val" / "ant")
    with caplog.at_level(logging.WARNING, "zoo.data"):
        data = folder(root, stage="fit")
    assert data.num_classes == 3
    assert data.source("val").labels == [1, 1, 2, 2]
    assert "split val has no images of class ant" in caplog.text
    assert data.describe() == "folder: 6 + 4 images, 2 to 4 a class"


def test_parts_of_imagenet_have_the_names_of_the_whole(write_folder):
    """Two classes of ImageNet are called crane; a folder of one of them uses the same name."""
    ids = ("n01440764", "n02012849")
    data = folder(write_folder(splits=("val",), classes=ids, count=1), name="imagenet")
    assert data.class_names[1] == "crane (n02012849)"


def test_masks_are_matched_by_name(tmp_path):
    numbers = np.arange(64, dtype=np.uint8).reshape(8, 8) % 3
    for kind, shown in (("images", Image.new("RGB", (8, 8))), ("masks", Image.fromarray(numbers))):
        (tmp_path / "val" / kind).mkdir(parents=True)
        shown.save(tmp_path / "val" / kind / "a.png")
    keys = {"name": "folder_segmentation", "class_names": ["sky", "sea", "road"]}
    data = folder(tmp_path, expected=["road", "car", "sky"], **keys)
    assert data.class_names == ["road", "car", "sky"]
    _, masks = next(iter(data.val_dataloader()))
    assert np.array_equal(masks[0].numpy(), np.array([2, 255, 0])[numbers])
