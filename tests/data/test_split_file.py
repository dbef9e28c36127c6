"""A file that says which image is in which half."""

from pathlib import Path

import pytest
from PIL import Image

from zoo.data import holdout
from zoo.data.create import create_datamodule
from zoo.data.datamodule import ImageData
from zoo.errors import BadInput
from zoo.settings import DataConfig
from zoo.training.run_data import saved_split


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (8, 8), (30 * number, 0, 0)).save(
                tmp_path / "photos" / name / f"{number}.png"
            )
    return tmp_path / "photos"


def opened(root: Path, file: Path) -> ImageData:
    config = DataConfig(
        name="folder", root=str(root), split_file=str(file), image_size=8, num_workers=0
    )
    data = create_datamodule(config, batch_size=1)
    data.setup("fit")
    return data


def keys_of(data: ImageData, split: str) -> list[str]:
    source = data.source(split)
    return [source.key(index) for index in range(len(source))]


def test_the_file_decides_and_other_images_are_left_out(root: Path, tmp_path: Path) -> None:
    halves = {"train": ["a/0.png", "b/1.png", "b/0.png"], "val": ["b/3.png", "gone.png"]}
    holdout.write(tmp_path, halves)
    data = opened(root, tmp_path / holdout.FILE)
    assert keys_of(data, "train") == ["a/0.png", "b/0.png", "b/1.png"]
    assert keys_of(data, "val") == ["b/3.png"]
    assert data.split_keys() == {"train": keys_of(data, "train"), "val": ["b/3.png"]}
    run = tmp_path / "run"
    run.mkdir()
    holdout.write(run, data.split_keys() or {})
    trained_on = {"name": "folder", "val_split": None, "split_file": data.config.split_file}
    assert saved_split(run, trained_on, data.config) == holdout.read(run)
    assert saved_split(run, {**trained_on, "split_file": "another"}, data.config) is None


def test_a_file_that_cannot_be_used_is_an_error(root: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"data\.split_file=.*none\.csv does not exist"):
        opened(root, tmp_path / "none.csv")
    holdout.write(tmp_path, {"train": ["a/0.png"], "val": ["photos/b/0.png"]})
    with pytest.raises(BadInput, match="lists no image of the folder for val"):
        opened(root, tmp_path / holdout.FILE)
    (tmp_path / "odd.csv").write_text("split,image\nhalf,a/0.png\n")
    with pytest.raises(BadInput, match=r"odd\.csv is damaged"):
        opened(root, tmp_path / "odd.csv")
    config = DataConfig(name="folder", root=str(root), split_file="x.csv", val_split=0.2)
    with pytest.raises(BadInput, match=r"data\.val_split and data\.split_file exclude each other"):
        create_datamodule(config, batch_size=1)
