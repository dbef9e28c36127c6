"""Masks that no model can learn from are reported before training."""

import logging

import numpy as np
import pytest
from PIL import Image

from zoo.data.create import create_datamodule
from zoo.errors import BadInput
from zoo.settings import DataConfig

WAY_OUT = (
    r"255 means no class, so masks of 0 and 255 need data\.palette=\[\[0,0,0\],\[255,255,255\]\]"
)


@pytest.fixture
def opened(tmp_path, picture):
    """Return a function that writes masks of some values a split, and opens the data."""

    def build(train=(0, 1), val=(0, 1), stage="fit", **keys):
        for split, values in (("train", train), ("val", val)):
            for kind in ("images", "masks"):
                (tmp_path / split / kind).mkdir(parents=True, exist_ok=True)
            for i in range(2):
                mask = np.resize(np.array(values, np.uint8), (8, 8))
                Image.fromarray(mask).save(tmp_path / split / "masks" / f"{i}.png")
                picture(i, (8, 8)).save(tmp_path / split / "images" / f"{i}.png")
        base = {"name": "folder_segmentation", "root": str(tmp_path), "num_classes": 2}
        keys = base | {"image_size": 8, "num_workers": 0} | keys
        data = create_datamodule(DataConfig(**keys), batch_size=2)
        data.setup(stage)
        return data

    return build


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train": (0, 255), "val": (0, 255)}, "split train show only class 0; class 1 occurs in"),
        ({"train": (1, 255)}, "split train show only class 1; class 0 occurs in none"),
        ({"train": (255,)}, "no pixel of the masks of split train has a class"),
        ({"val": (255,)}, "no pixel of the masks of split val has a class"),
    ],
)
def test_unusable_masks_raise_with_the_way_out(opened, values, message, skip):
    with pytest.raises(BadInput, match=f"{message}.*; {WAY_OUT}") as hit:
        opened(**values, skip_corrupt=skip)
    assert "\n" not in str(hit.value)


def test_masks_of_one_class_raise(opened):
    with pytest.raises(BadInput, match="show only class 0; class 1 .*; check the masks and"):
        opened(train=(0,))


def test_the_way_out_works(opened):
    keys = {"palette": [[0, 0, 0], [255, 255, 255]], "num_classes": None}
    data = opened(train=(0, 255), val=(0, 255), **keys)
    assert next(iter(data.val_dataloader()))[1].unique().tolist() == [0, 1]


def test_absent_classes_are_named(opened, caplog):
    keys = {"num_classes": None, "class_names": ["sky", "sea", "road"]}
    with caplog.at_level(logging.WARNING, "zoo.data"):
        opened(train=(0, 1, 255), val=(0, 1, 2), **keys)
    assert "split train: class road occurs in no mask; 255 means no class" in caplog.text
    assert "split val" not in caplog.text


def test_evaluation_needs_a_judged_pixel_only(opened, caplog):
    opened(val=(0, 255), stage="validate")
    with pytest.raises(BadInput, match="no pixel of the masks of split val has a class"):
        opened(val=(255,), stage="validate")


@pytest.mark.parametrize("value", [0.5, np.nan, np.inf])
def test_masks_with_fractions_raise(opened, tmp_path, value):
    opened()
    (tmp_path / "val" / "masks" / "0.png").unlink()
    Image.fromarray(np.full((8, 8), value, np.float32)).save(tmp_path / "val" / "masks" / "0.tif")
    with pytest.raises(BadInput, match=r"0\.tif contains numbers that are not whole from 0 to 255"):
        create_datamodule(
            DataConfig(
                "folder_segmentation", str(tmp_path), num_classes=2, image_size=8, num_workers=0
            ),
            batch_size=2,
        ).setup()
