"""Image folders: layouts, splits, and every way in which they can be wrong."""

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


def refused(match, root, **keys):
    with pytest.raises(BadInput, match=match) as hit:
        folder(root, **keys)
    assert "\n" not in str(hit.value)


def test_train_and_val_folders(write_folder):
    root = write_folder()
    (root / "train" / ".cache").mkdir()
    (root / "train" / "cat" / "notes.txt").write_text("no image")
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
    assert np.bincount(data.source("val").labels).tolist() in ([2, 3], [3, 2])
    assert len(data.source("train")) == 7
    names = {data.source(s).name(i) for s in ("train", "val") for i in range(len(data.source(s)))}
    assert len(names) == 12


def test_a_share_of_train_is_held_out_where_there_is_no_val(write_folder):
    data = folder(write_folder(splits=("train",)), val_split=0.5)
    assert len(data.source("train")) == len(data.source("val")) == 6


def test_other_split_names_and_a_third_split(write_folder):
    root = write_folder(splits=("training", "validation", "test"))
    data = folder(root, train_split_name="training", val_split_name="validation")
    assert sum(len(labels) for _, labels in data.eval_dataloader("test")) == 12
    with pytest.raises(BadInput, match="no folder 'exam'; there are test, training, validation"):
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


def test_keeping_images_in_memory_changes_nothing(write_folder):
    root = write_folder()
    plain, kept = folder(root), folder(root, cache=True)
    shutil.rmtree(root)
    with pytest.raises(BadInput, match="the file is not there"):
        next(iter(plain.val_dataloader()))
    assert len(list(kept.val_dataloader())) == 3


def test_folders_that_cannot_work(write_folder, tmp_path):
    refused("needs data.root", None)
    refused("data.root=.*absent does not exist", tmp_path / "absent")
    (tmp_path / "file").write_text("")
    refused("data.root=.*file is not a folder", tmp_path / "file")
    (tmp_path / "empty" / "train").mkdir(parents=True)
    refused("train has no class folders", tmp_path / "empty")
    refused("no folder 'validation'", write_folder(), val_split_name="validation")
    root = tmp_path / "images"
    refused("data.val_split has no effect", root, val_split=0.2)
    refused("batch_size=13 is more than the 12 training images", root, batch_size=13)


def test_a_root_of_classes_asks_for_a_held_out_share(write_folder):
    refused("no folder 'train'; there are cat, dog.*data.val_split", write_folder(splits=("",)))


def test_a_root_without_subfolders_says_so(tmp_path):
    refused("it has no subfolders", tmp_path)


def test_a_class_without_images_is_named(write_folder):
    root = write_folder()
    (root / "train" / "eel").mkdir()
    (root / "train" / "eel" / "x.txt").write_text("")
    refused("no images .*class folder .*eel", root)


def test_val_with_other_classes_is_refused(write_folder):
    root = write_folder()
    (root / "val" / "dog").rename(root / "val" / "wolf")
    refused("split val are not those of split train: it lacks dog and also has wolf", root)


def test_a_class_too_small_to_split_is_refused(write_folder):
    refused("data.val_split=0.2 cannot be done", write_folder(splits=("",), count=1), val_split=0.2)


@pytest.fixture
def damaged(write_folder):
    """A folder with one image cut short and one that is text."""
    root = write_folder()
    cut = root / "train" / "cat" / "3.png"
    cut.write_bytes(cut.read_bytes()[:200])
    (root / "val" / "dog" / "1.png").write_text("no image")
    return root


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_image_stops_the_epoch_with_one_line(damaged, workers):
    data = folder(damaged, num_workers=workers, train_interpolation="bilinear")
    for loader, name in ((data.train_dataloader(), "cat/3"), (data.val_dataloader(), "dog/1")):
        with pytest.raises(BadInput, match=rf"cannot read image .*{name}\.png") as hit:
            list(loader)
        assert "\n" not in str(hit.value)


def test_corrupt_images_are_left_out_where_asked(damaged, caplog):
    with caplog.at_level(logging.WARNING, "zoo.data"):
        data = folder(damaged, skip_corrupt=True, num_workers=2)
    text = caplog.text
    assert "cat/3.png" in text
    assert "dog/1.png" in text
    assert "1 of 12 images of train are corrupt and left out" in text
    assert len(data.source("train")) == 11
    assert len(list(data.train_dataloader())) == 2
    assert sum(len(labels) for _, labels in data.val_dataloader()) == 11


def test_a_class_of_which_nothing_can_be_read_is_refused(write_folder):
    root = write_folder(count=1)
    (root / "train" / "cat" / "0.png").write_text("no image")
    refused("no image of class 'cat' in split train can be read", root, skip_corrupt=True)


def test_jpeg_and_upper_case_extensions_count(picture, write_folder):
    root = write_folder(count=1)
    picture(7).save(root / "train" / "cat" / "x.JPEG", format="JPEG")
    assert len(folder(root, batch_size=1).source("train")) == 3
