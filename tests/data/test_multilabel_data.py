"""Images with several labels, from a table and from folders; faults of a table are one line."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from zoo.data.create import create_datamodule
from zoo.data.multilabel import MultiLabelData
from zoo.errors import BadInput


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png", "c.png", "sub/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (10, 20, 30)).save(tmp_path / name)
    return tmp_path


def opened(stage: str = "fit", **config: object) -> MultiLabelData:
    data = create_datamodule(
        {"name": "multilabel", "image_size": 8, "num_workers": 0, **config}, batch_size=1
    )
    data.setup(stage)
    assert isinstance(data, MultiLabelData)
    return data


def table(folder: Path, *lines: str, heading: str = "image,labels,split") -> str:
    path = folder / "labels.csv"
    path.write_text("\n".join([heading, *lines]) + "\n", encoding="utf-8")
    return str(path)


GOOD = (
    "a.png,sun;sea,train",
    '"b.png","sea, sand",train',
    "c.png,-,val",
    "./sub/d.png,sun|sea,val",
)


def test_a_table_names_the_labels_and_the_split_of_each_image(photos: Path) -> None:
    data = opened(labels=table(photos, *GOOD))
    assert data.task == "multi-label"
    assert data.class_names == ["sand", "sea", "sun"]
    assert data.source("train").targets == [[0, 1, 1], [1, 1, 0]]
    assert [data.source("val").key(index) for index in range(2)] == ["c.png", "sub/d.png"]
    batches = list(data.val_dataloader())
    assert torch.cat([targets for _, targets in batches]).tolist() == [[0, 0, 0], [0, 1, 1]]
    assert data.describe().endswith("2 + 2 images, 3 classes, 1.5 labels an image")


def test_changed_labels_change_the_fingerprint(photos: Path) -> None:
    before = opened(labels=table(photos, *GOOD)).fingerprint()
    after = opened(labels=table(photos, "a.png,sun,train", *GOOD[1:])).fingerprint()
    assert before["val"] == after["val"]
    assert before["train"]["names"] != after["train"]["names"]


def test_a_share_can_be_held_out(photos: Path) -> None:
    lines = [line.rsplit(",", 1)[0] for line in GOOD]
    path = table(photos, *lines, heading="\ufeff image , labels")
    data = opened(labels=path, val_split=0.5)
    held = data.split_keys()
    assert held is not None
    assert sorted(held["train"] + held["val"]) == ["a.png", "b.png", "c.png", "sub/d.png"]
    with pytest.raises(BadInput, match=r"does not say which images to validate on; add a column"):
        opened(labels=path)


def test_a_file_in_several_folders_has_all_their_labels(photos: Path, tmp_path: Path) -> None:
    root = tmp_path / "folders"
    for name, files in {"sea": "12", "sun": "23"}.items():
        (root / name).mkdir(parents=True)
        for file in files:
            Image.new("RGB", (8, 8), (int(file), 0, 0)).save(root / name / f"{file}.png")
    data = opened(root=str(root), val_split=0.4)
    rows = {
        data.source(split).key(index): row
        for split in ("train", "val")
        for index, row in enumerate(data.source(split).targets)
    }
    assert rows == {"1.png": [1, 0], "2.png": [1, 1], "3.png": [0, 1]}
    Image.new("RGB", (8, 8), (99, 0, 0)).save(root / "sun" / "2.png")
    with pytest.raises(BadInput, match=r"have one name but are different images"):
        opened(root=str(root), val_split=0.4)


def test_labels_are_matched_by_name_with_those_of_weights(
    photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = create_datamodule(
        {"name": "multilabel", "image_size": 8, "num_workers": 0, "labels": table(photos, *GOOD)},
        batch_size=2,
    )
    data.expect_classes(3, ["sun", "moon", "sea"], "the weights")
    data.setup("validate")
    assert data.class_names == ["sun", "moon", "sea"]
    assert data.source("val").targets == [[0, 0, 0], [1, 0, 1]]
    assert "sand" in caplog.text


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a.png,sun,train", "z.png,sun,val"], r"1 of 2 images do not exist below .*: z\.png"),
        (["a.png,sun,train", ",,"], r"line 3: the column image is empty"),
        (["a.png,,train"], r"line 2: a\.png has no labels; write - for an image of no class"),
        (["a.png,sun;-,train"], r"has the label -, which means none, and others"),
        (["a.png,sun,train", "./a.png,sea,val"], r"line 3: \./a\.png is also in line 2"),
        (["a.png,sun,train", "b.png,Sun,val"], r"labels 'Sun' and 'sun' differ only in case"),
        (["a.png,sun,test"], r"line 2: split 'test' is neither train nor val"),
        (["a.png,sun,sea,train"], r"line 2: it has more cells than the first line"),
        (["a.png"], r"line 2: it has fewer cells than the first line"),
        (["a.png,sun,train"], r"has no row with split val"),
        (["a.png,-,train", "b.png,-,val"], r"has no label at all"),
        ([], r"has no rows below its first line"),
    ],
)
def test_a_bad_table_is_one_line(lines: list[str], message: str, photos: Path) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        opened(labels=table(photos, *lines))
    assert "\n" not in str(caught.value)


def test_unknown_labels_and_columns_are_named(photos: Path) -> None:
    path = table(photos, *GOOD)
    with pytest.raises(BadInput, match=r"line 3: unknown label 'sand'; did you mean 'sands'\?"):
        opened(labels=path, class_names=["sands", "sea", "sun"])
    assert opened(labels=path, class_names=["sun", "sea", "sand"]).class_names[0] == "sun"
    with pytest.raises(BadInput, match=r"has no column labels; .*\(found: image, tags, split\)"):
        opened(labels=table(photos, *GOOD, heading="image,tags,split"))
    with pytest.raises(BadInput, match=r"data\.labels=.*gone\.csv: No such file"):
        opened(labels=str(photos / "gone.csv"))
    (photos / "binary.csv").write_bytes(b"image,labels\n\xff\xfe")
    with pytest.raises(BadInput, match=r"is not a CSV in UTF-8"):
        opened(labels=str(photos / "binary.csv"))
    path = table(photos, *GOOD)
    with pytest.raises(BadInput, match=r"data\.val_split=0\.5 has no effect: .* a column split"):
        opened(labels=path, val_split=0.5)
    with pytest.raises(BadInput, match=r"data\.labels"):
        create_datamodule({"name": "digits", "labels": path}, batch_size=2)
