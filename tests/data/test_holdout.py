"""The held-out images: a hash of each path decides, and a run's `split.csv` is kept."""

import logging
import re
import shutil
import unicodedata

import numpy as np
import pytest

from zoo.data import fingerprint, holdout
from zoo.data.create import create_datamodule
from zoo.data.sources import Files
from zoo.errors import BadInput
from zoo.settings import DataConfig


def source_of(*names, root="/root"):
    """Return a source of paths `<class>/<file>`, without files."""
    classes = sorted({name.split("/")[0] for name in names})
    labels = [classes.index(name.split("/")[0]) for name in names]
    paths = [f"{root}/{name}" for name in names]
    return Files(labels, len(classes), classes, paths=paths, root=root)


def held_keys(source, share=0.25, saved=None):
    _, val = holdout.halves(source, share, saved)
    return {source.key(index) for index in val}


NAMES = [f"{kind}/{i}.png" for kind in ("cat", "dog") for i in range(200)]


def test_the_share_is_held_out_of_each_class():
    held = held_keys(source_of(*NAMES))
    for kind in ("cat", "dog"):
        assert 30 <= sum(key.startswith(kind) for key in held) <= 70


def test_positions_are_uniform_and_the_same_everywhere():
    """Positions are SHA-256 of the name: https://csrc.nist.gov/pubs/fips/180-4/upd1/final."""
    assert holdout.position("abc") == 0xBA7816BF8F01CFEA / 2**64
    where = np.sort([holdout.position(name) for name in NAMES])
    assert np.abs(where - np.arange(400) / 400).max() < 0.08


def test_adding_and_removing_images_moves_no_other_image():
    before = held_keys(source_of(*NAMES))
    more = [f"{kind}/new{i}.png" for kind in ("bird", "cat", "eel") for i in range(30)]
    assert held_keys(source_of(*NAMES, *more)) & set(NAMES) == before
    fewer = NAMES[::3]
    assert held_keys(source_of(*fewer)) == before & set(fewer)
    assert held_keys(source_of(*NAMES[::-1])) == before


def test_the_name_of_the_root_and_the_form_of_unicode_do_not_matter():
    names = [unicodedata.normalize("NFC", f"café/ü{i}.png") for i in range(40)]
    here = holdout.halves(source_of(*names), 0.3)
    assert holdout.halves(source_of(*names, root="/an/other/place"), 0.3) == here
    decomposed = [unicodedata.normalize("NFD", name) for name in names]
    assert decomposed != names
    assert holdout.halves(source_of(*decomposed), 0.3) == here


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_both_halves_have_every_class(share):
    train, val = holdout.halves(source_of("a/0", "a/1", "b/0", "b/1", "b/2"), share)
    labels = np.array([0, 0, 1, 1, 1])
    assert set(labels[train]) == set(labels[val]) == {0, 1}
    assert sorted(train + val) == list(range(5))


def test_a_saved_split_decides_and_changes_are_reported(tmp_path, caplog):
    source = source_of("a/0", "a/1", "a/2", "b/0", "b/1")
    holdout.write(tmp_path, {"train": ["a/0", "b/0", "c/gone,\n"], "val": ["a/1", "b/1"]})
    saved = holdout.read(tmp_path)
    with caplog.at_level(logging.WARNING, "zoo.data"):
        assert holdout.halves(source, 0.9, saved) == ([0, 3], [1, 4])
    assert "1 image is new since training, left out: a/2" in caplog.text
    assert "1 image of the run is missing: c/gone" in caplog.text


def test_a_saved_split_of_other_data_is_not_used(caplog):
    source = source_of("a/0", "a/1", "b/0", "b/1")
    expected = holdout.halves(source, 0.5)
    with caplog.at_level(logging.WARNING, "zoo.data"):
        assert holdout.halves(source, 0.5, {"x/0": "train"}) == expected
    assert "split anew" in caplog.text
    with pytest.raises(BadInput, match="all validation images of the run"):
        holdout.halves(source, 0.5, {"a/0": "train", "x/0": "val"})


@pytest.mark.parametrize(
    "content", ["", "split,image\n", "split,image\nother,a\n", "a,b\n1,2\n", "split,image\ntrain\n"]
)
def test_a_damaged_split_file_raises(tmp_path, content):
    assert holdout.read(tmp_path) is None
    (tmp_path / holdout.FILE).write_text(content)
    with pytest.raises(BadInput, match=r"split\.csv is damaged"):
        holdout.read(tmp_path)


# -- fingerprints ---------------------------------------------------------------------------------


def opened(root, **keys):
    keys = {"name": "folder", "root": str(root), "image_size": 8, "num_workers": 0} | keys
    data = create_datamodule(DataConfig(**keys), batch_size=1)
    data.setup()
    return data


def test_a_fingerprint_does_not_depend_on_the_place(write_folder, tmp_path):
    root = write_folder(count=3)
    before = opened(root).fingerprint()
    assert before["train"]["classes"] == [3, 3]
    moved = tmp_path / "moved"
    shutil.move(root, moved)
    now = opened(moved).fingerprint()
    assert now == before
    assert fingerprint.differences(before, now) == ""


def swap_classes(root):
    cat, dog = root / "train" / "cat", root / "train" / "dog"
    cat.rename(root / "x"), dog.rename(cat), (root / "x").rename(dog)


def rename_class(root):
    for split in ("train", "val"):
        (root / split / "dog").rename(root / split / "wolf")


def add_class(root):
    for split in ("train", "val"):
        shutil.copytree(root / split / "dog", root / split / "eel")


def add_image(root):
    shutil.copy(root / "train" / "cat" / "0.png", root / "train" / "cat" / "new.png")


def rename_image(root):
    (root / "train" / "cat" / "0.png").rename(root / "train" / "cat" / "00.png")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swap_classes, r"files of split train have other contents \(exchanged or edited\)"),
        (rename_class, "split train has files of other names"),
        (add_class, "split train has 9 images instead of 6"),
        (add_image, "split train has 4 images of class cat instead of 3"),
        (rename_image, "split train has files of other names"),
    ],
)
def test_a_fingerprint_notices(write_folder, change, message):
    root = write_folder(count=3)
    before = opened(root).fingerprint()
    change(root)
    assert re.search(
        message, fingerprint.differences(before, opened(root).fingerprint(), ["cat", "dog"])
    )
