"""Image folders: layouts, splits and errors."""

import logging
import shutil

import numpy as np
import pytest
import torch

from zoo.data.create import create_datamodule
from zoo.errors import BadInput
from zoo.settings import DataConfig

SMALL = {"name": "folder", "image_size": 16, "num_workers": 0}


def folder(root, batch_size=4, **keys):
    keys = SMALL | {"root": root and str(root)} | keys
    data = create_datamodule(DataConfig(**keys), batch_size=batch_size)
    data.setup()
    return data


def raises(match, root, **keys):
    with pytest.raises(BadInput, match=match) as hit:
        folder(root, **keys)
    assert "\n" not in str(hit.value)


def test_train_and_val_folders(write_folder):
    root = write_folder()
    (root / "train" / ".cache").mkdir()
    (root / "train" / "cat" / "notes.txt").write_text("not an image")
    data = folder(root)
    assert data.class_names == ["cat", "dog"]
    assert data.num_classes == 2
    assert len(data.source("train")) == len(data.source("val")) == 12
    assert sum(len(labels) for _, labels in data.val_dataloader()) == 12
    labels = torch.cat([labels for _, labels in data.val_dataloader()])
    assert labels.tolist() == [0] * 6 + [1] * 6
    assert len(list(data.train_dataloader())) == 3


def test_a_share_of_each_class_is_held_out(write_folder):
    data = folder(write_folder(splits=("",)), val_split=0.34)
    for split in ("train", "val"):
        assert np.bincount(data.source(split).labels).min() >= 1
    names = {data.source(s).name(i) for s in ("train", "val") for i in range(len(data.source(s)))}
    assert len(names) == 12


def test_a_share_of_train_is_held_out_without_a_val_folder(write_folder):
    data = folder(write_folder(splits=("train",)), val_split=0.5)
    assert len(data.source("train")) + len(data.source("val")) == 12


def test_other_split_names_and_a_third_split(write_folder):
    root = write_folder(splits=("training", "validation", "test"))
    data = folder(root, train_split_name="training", val_split_name="validation")
    assert sum(len(labels) for _, labels in data.eval_dataloader("test")) == 12
    with pytest.raises(BadInput, match="no folder 'exam'. Choices: test, training, validation"):
        data.eval_dataloader("exam")


def test_evaluation_needs_no_train_folder(write_folder):
    data = create_datamodule(
        DataConfig(root=str(write_folder(splits=("val",))), **SMALL), batch_size=99
    )
    data.setup("validate")
    assert data.num_classes == 2
    assert len(list(data.val_dataloader())) == 1


def test_wordnet_ids_get_readable_names(write_folder):
    ids = ("n01440764", "n02012849", "n03126707", "n99999999")
    data = folder(write_folder(classes=ids, count=1), name="imagenet")
    assert data.class_names[0].startswith("tench")
    assert data.class_names[1:] == ["crane (n02012849)", "crane (n03126707)", "n99999999"]


def test_cached_images_need_no_files(write_folder):
    root = write_folder()
    plain, kept = folder(root), folder(root, cache=True)
    shutil.rmtree(root)
    with pytest.raises(BadInput, match="the file does not exist"):
        next(iter(plain.val_dataloader()))
    assert len(list(kept.val_dataloader())) == 3


def test_invalid_folders_raise(write_folder, tmp_path):
    raises("needs data.root", None)
    raises("data.root=.*absent does not exist", tmp_path / "absent")
    (tmp_path / "file").write_text("")
    raises("data.root=.*file is not a folder", tmp_path / "file")
    (tmp_path / "empty" / "train").mkdir(parents=True)
    raises("train has no class folders", tmp_path / "empty")
    raises("no folder 'validation'", write_folder(), val_split_name="validation")
    root = tmp_path / "images"
    raises("data.val_split=0.2 has no effect because", root, val_split=0.2)
    raises("batch_size=13 exceeds the 12 training images", root, batch_size=13)


def test_a_root_of_classes_without_a_share_raises(write_folder):
    raises("no folder 'train'. Choices: cat, dog.*data.val_split", write_folder(splits=("",)))


def test_a_root_without_subfolders_raises(tmp_path):
    raises("It has no subfolders", tmp_path)


def test_a_class_without_images_raises(write_folder):
    root = write_folder()
    (root / "train" / "eel").mkdir()
    (root / "train" / "eel" / "x.txt").write_text("")
    raises("no images .*class folder .*eel", root)


def test_splits_with_different_classes_raise(write_folder):
    root = write_folder()
    (root / "val" / "dog").rename(root / "val" / "wolf")
    raises("train and val have different classes: val lacks dog and also has wolf", root)


def test_a_class_too_small_to_split_raises(write_folder):
    raises("data.val_split=0.2: cannot split", write_folder(splits=("",), count=1), val_split=0.2)


@pytest.fixture
def damaged(write_folder):
    """Return a folder with one truncated image and one text file."""
    root = write_folder()
    truncated = root / "train" / "cat" / "3.png"
    truncated.write_bytes(truncated.read_bytes()[:200])
    (root / "val" / "dog" / "1.png").write_text("not an image")
    return root


def test_corrupt_images_raise_one_line_before_training(damaged):
    with pytest.raises(
        BadInput, match=r"cannot read image .*cat/3.png \(.*, .*dog/1.png \("
    ) as hit:
        folder(damaged)
    assert "\n" not in str(hit.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_breaks_later_raises_one_line(write_folder, workers):
    root = write_folder()
    data = folder(root, num_workers=workers, train_interpolation="bilinear")
    for split, loader in (("train", data.train_dataloader()), ("val", data.val_dataloader())):
        (root / split / "dog" / "1.png").write_text("not an image")
        with pytest.raises(BadInput, match=r"cannot read image .*dog/1\.png") as hit:
            list(loader)
        assert "\n" not in str(hit.value)


def test_corrupt_images_can_be_skipped(damaged, caplog):
    with caplog.at_level(logging.WARNING, "zoo.data"):
        data = folder(damaged, skip_corrupt=True, num_workers=2)
    text = caplog.text
    assert "cat/3.png" in text
    assert "dog/1.png" in text
    assert "corrupt images in split train: skipped 1 of 12" in text
    assert len(data.source("train")) == 11
    assert len(list(data.train_dataloader())) == 2
    assert sum(len(labels) for _, labels in data.val_dataloader()) == 11


def test_a_class_without_readable_images_raises(write_folder):
    root = write_folder(count=1)
    (root / "train" / "cat" / "0.png").write_text("not an image")
    raises("no image of class 'cat' in split train can be read", root, skip_corrupt=True)


def test_jpeg_and_upper_case_extensions_count(picture, write_folder):
    root = write_folder(count=1)
    picture(7).save(root / "train" / "cat" / "x.JPEG", format="JPEG")
    assert len(folder(root, batch_size=1).source("train")) == 3
