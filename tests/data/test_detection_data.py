"""Detection: scenes, COCO folders, VOC boxes, and augmentation that moves boxes with the pixels."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from zoo.data import coco, scenes, torchvision_sets
from zoo.data.create import create_datamodule
from zoo.data.detection import DetectionData
from zoo.errors import BadInput


def opened(name="digits_detection", stage=None, **keys) -> DetectionData:
    keys = {"name": name, "num_workers": 0} | keys
    data = create_datamodule(keys, batch_size=2)
    data.setup(stage)
    return data


# -- scenes ---------------------------------------------------------------------------------------


def test_scenes_are_those_of_segmentation_with_the_boxes_of_the_ink():
    keys = {"image_size": [40, 56], "train_images": 4, "val_images": 4}
    boxed, masked = opened(**keys), opened("digits_segmentation", **keys)
    assert (boxed.task, boxed.num_classes) == ("detection", 10)
    assert boxed.class_names == list("0123456789")
    for index in range(4):
        image, rows = boxed.source("val").boxed(index)
        scene, mask = masked.source("val").pair(index)
        assert np.array_equal(np.asarray(image), np.asarray(scene))
        numbers = np.asarray(mask)
        inked = np.zeros(numbers.shape, bool)
        for digit, x1, y1, x2, y2, crowd in rows.astype(int):
            part = numbers[y1:y2, x1:x2]
            assert crowd == 0
            assert (part == digit + 1).any()
            inked[y1:y2, x1:x2] = True
        assert not numbers[~inked].any(), "no ink outside of the boxes"
        last = rows[-1].astype(int)  # on top of the others: its ink fills its box
        own = numbers[last[2] : last[4], last[1] : last[3]] == last[0] + 1
        assert own.any(axis=0).all()
        assert own.any(axis=1).all()


def test_batches_are_filled_up_and_do_not_depend_on_their_neighbours():
    data = opened(train_images=6, val_images=5)
    images, targets = data.val_dataloader().dataset.load([(0, i) for i in range(5)])
    assert images.shape == (5, 3, 48, 48)
    assert targets.dtype == torch.float32
    counts = [len(data.source("val").boxed(i)[1]) for i in range(5)]
    assert targets.shape == (5, max(counts), 6)
    assert (targets[..., 0] >= 0).sum(dim=1).tolist() == counts
    train = data.train_dataloader().dataset
    alone, together = train.load([(1, 3)]), train.load([(1, 0), (1, 3)])
    assert torch.equal(alone[0][0], together[0][1])
    assert torch.equal(alone[1][0], together[1][1][: alone[1].shape[1]])
    assert data.accepts((7, 14))
    assert not data.accepts((7, 13))
    assert not data.accepts((14,))


# -- augmentation ---------------------------------------------------------------------------------


def painted(folder: Path, boxes, size=(40, 30)) -> Path:
    """Write a black image with a white rectangle in each box x y w h, and its annotations."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    for x, y, w, h in boxes:
        pixels[y : y + h, x : x + w] = 255
    for split in ("train", "val"):
        (folder / split / "images").mkdir(parents=True)
        for name in ("a.png", "b.png"):
            Image.fromarray(pixels).save(folder / split / "images" / name)
        content = {
            "images": [{"id": i, "file_name": name} for i, name in ((3, "a.png"), (1, "b.png"))],
            "categories": [{"id": 9, "name": "box"}],
            "annotations": [
                {"id": 10 * i + n, "image_id": i, "category_id": 9, "bbox": list(box)}
                for i in (1, 3)
                for n, box in enumerate(boxes)
            ],
        }
        (folder / split / "annotations.json").write_text(json.dumps(content))
    return folder


STILL = {"mean": [0.0] * 3, "std": [1.0] * 3, "color_jitter": 0.0, "interpolation": "bilinear"}


@pytest.mark.parametrize(
    "keys",
    [
        {"scale": [1.0, 1.0], "ratio": [1.0, 1.0], "hflip": 1.0, "vflip": 1.0},
        {"scale": [0.2, 0.9], "ratio": [0.5, 2.0], "hflip": 0.5},
    ],
)
def test_boxes_move_with_the_pixels(keys, tmp_path):
    root = painted(tmp_path, [(6, 5, 12, 20)])
    data = opened("folder_detection", root=str(root), image_size=[60, 80], **STILL, **keys)
    train, seen = data.train_dataloader().dataset, 0
    for epoch in range(12):
        images, targets = train.load([(epoch, 0)])
        bright = images[0].amin(dim=0) > 0.5
        rows = targets[0][targets[0, :, 0] >= 0]
        if not len(rows):
            continue
        seen += 1
        ys, xs = bright.any(dim=1).nonzero(), bright.any(dim=0).nonzero()
        found = torch.tensor([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]).float()
        assert (rows[0, 1:5] - found).abs().max() <= 1.5, "the box is that of the white pixels"
    assert seen > 3


def test_boxes_that_a_crop_cuts_off_are_left_out_and_others_are_cut(tmp_path):
    root = painted(tmp_path, [(0, 0, 8, 30), (30, 0, 10, 30)])
    data = opened("folder_detection", root=str(root), image_size=32, scale=[0.1, 0.4], **STILL)
    train, counts = data.train_dataloader().dataset, []
    for epoch in range(30):
        _, targets = train.load([(epoch, 0)])
        rows = targets[0][targets[0, :, 0] >= 0]
        counts.append(len(rows))
        assert rows[:, 1:5].min() >= 0 if len(rows) else True
        assert rows[:, 1:5].max() <= 32 if len(rows) else True
        assert ((rows[:, 3:5] - rows[:, 1:3]) >= 1).all()
    assert {0, 1} <= set(counts)


def test_evaluation_fits_the_whole_image_and_scales_its_boxes(tmp_path):
    root = painted(tmp_path, [(6, 5, 12, 20)])
    data = opened("folder_detection", "validate", root=str(root), image_size=[60, 60], **STILL)
    images, targets = next(iter(data.val_dataloader()))
    assert targets[0].tolist() == [[0, 9, 7.5, 27, 37.5, 0]]
    assert images[:, :, 45:].abs().max() == 0, "padding"
    assert data.split_keys() is None


# -- COCO -----------------------------------------------------------------------------------------


def written(folder: Path, change=lambda content: None, text: str | None = None) -> Path:
    """Write a folder with two images, two categories and three boxes, after a change."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for name in ("a.png", "b.png"):
        Image.new("RGB", (20, 10)).save(folder / "images" / name)
    content = {
        "images": [
            {"id": 7, "file_name": "a.png", "width": 20, "height": 10},
            {"id": 8, "file_name": "b.png"},
        ],
        "categories": [{"id": 5, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 8, "category_id": 5, "bbox": [1, 2, 3.5, 4]},
            {"id": 2, "image_id": 8, "category_id": 2, "bbox": [0, 0, 20.5, 10], "iscrowd": 1},
            {"image_id": 7, "category_id": 2, "bbox": [-0.5, 1, 4, 4]},
        ],
    }
    change(content)
    (folder / "annotations.json").write_text(json.dumps(content) if text is None else text)
    return folder


def test_a_coco_folder_is_read(tmp_path):
    found = coco.read(written(tmp_path), 3)
    assert found.class_names == ["dog", "cat"], "in the order of their ids"
    assert [Path(path).name for path in found.images] == ["a.png", "b.png"]
    assert found.boxes(0).tolist() == [[0, 0, 1, 3.5, 5, 0]], "cut at the border"
    assert found.boxes(1).tolist() == [[1, 1, 2, 4.5, 6, 0], [0, 0, 0, 20, 10, 1]]
    assert found.key(0) == "a.png"
    assert found.files(1)[1].endswith("annotations.json")


def edit(key, index, **changes):
    return lambda content: content[key][index].update(changes)


BAD = [
    ("not JSON", "{", "annotations.json is not JSON"),
    ("a list", "[]", "must be a JSON object with images, annotations and categories"),
    ("no images", lambda c: c.pop("images"), "lacks images; give a list of objects"),
    ("a table", lambda c: c.update(categories={}), "has a wrong type for categories"),
    ("numbers", lambda c: c.update(annotations=[1]), "has a wrong type for annotations"),
    ("no category", lambda c: c.update(categories=[]), "categories is empty"),
    ("no box", lambda c: c.update(annotations=[]), "annotations has no box"),
    ("outside", edit("annotations", 0, bbox=[15, 2, 9, 4]),
     r"annotation 1 has bbox=\[15, 2, 9, 4\] outside of its image .*b.png of 20 x 10 pixels"),
    ("left of it", edit("annotations", 0, bbox=[-5, 2, 9, 4]), "outside of its image"),
    ("beside it", edit("annotations", 0, bbox=[20, 2, 0.5, 4]), "outside of its image"),
    ("zero area", edit("annotations", 0, bbox=[1, 2, 0, 4]), r"bbox=\[1, 2, 0, 4\] of zero area"),
    ("negative", edit("annotations", 0, bbox=[5, 5, -2, -2]), "of zero area; remove it"),
    ("three numbers", edit("annotations", 0, bbox=[1, 2, 3]), "give four finite numbers"),
    ("no numbers", edit("annotations", 0, bbox=[1, 2, 3, "4"]), "give four finite numbers"),
    ("not finite", edit("annotations", 0, bbox=[1, 2, 3, float("nan")]), "four finite numbers"),
    ("huge", edit("annotations", 0, bbox=[1, 2, 3, 10**400]), "four finite numbers"),
    ("true", edit("annotations", 0, bbox=[True, 2, 3, 4]), "give four finite numbers"),
    ("unknown image", edit("annotations", 0, image_id=9), "image_id=9, which images does not have"),
    ("text id", edit("annotations", 0, image_id="8"), "image_id='8', which images does not have"),
    ("a list as id", edit("annotations", 0, category_id=[5]), r"category_id=\[5\], which categori"),
    ("unknown category", edit("annotations", 2, category_id=1),
     "an annotation has category_id=1, which categories does not have"),
    ("crowd", edit("annotations", 0, iscrowd=2), "annotation 1 has iscrowd=2; give 0 or 1"),
    ("crowd text", edit("annotations", 0, iscrowd="no"), "iscrowd='no'; give 0 or 1"),
    ("same annotation", edit("annotations", 1, id=1), "annotations has the id 1 twice"),
    ("same image", edit("images", 1, id=7), "images has the id 7 twice"),
    ("same category", edit("categories", 1, id=5), "categories has the id 5 twice"),
    ("same name", edit("categories", 1, name="cat"), "two categories are named 'cat'"),
    ("no name", edit("categories", 1, name=" "), "category 2 has name=' '; give a text"),
    ("id of a kind", edit("images", 0, id=1.5), r"images\[0\] has id=1.5; give an integer"),
    ("missing", edit("images", 1, file_name="c.png"), "image 8 is missing: .*c.png is no file"),
    ("elsewhere", edit("images", 1, file_name="../b.png"), "give a path inside"),
    ("no text", edit("images", 1, file_name=3), "image 8 has file_name=3; give a path inside"),
    ("one file twice", edit("images", 1, file_name="a.png"), "images 7 and 8 have the same file_n"),
    ("other size", edit("images", 0, width=21), "image 7 has width=21, but .*a.png has 20"),
    ("size of a kind", edit("images", 0, height="10"), "image 7 has height='10'; give an integer"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), [x[1:] for x in BAD], ids=[x[0] for x in BAD])
def test_bad_annotations_give_one_line(change, message, tmp_path):
    is_text = isinstance(change, str)
    folder = written(tmp_path, text=change) if is_text else written(tmp_path, change)
    with pytest.raises(BadInput, match=message) as error:
        coco.read(folder, 3)
    assert "\n" not in str(error.value)
    assert "annotations.json" in str(error.value)


def test_splits_match_by_name_and_a_share_is_held_out(tmp_path):
    written(tmp_path / "both" / "train")

    def swapped(content):
        content["categories"] = [{"id": 5, "name": "dog"}, {"id": 2, "name": "cat"}]

    written(tmp_path / "both" / "val", swapped)
    data = opened("folder_detection", root=str(tmp_path / "both"), image_size=32)
    assert data.class_names == ["dog", "cat"]
    assert data.source("val").boxes(0)[:, 0].tolist() == [1], "the same name, not the same id"
    written(tmp_path / "one")
    keys = {"root": str(tmp_path / "one"), "val_split": 0.5, "image_size": 32}
    data = create_datamodule({"name": "folder_detection", "num_workers": 0, **keys}, batch_size=1)
    data.setup()
    assert len(data.source("train")) == len(data.source("val")) == 1
    assert len(data.fingerprint()["train"]["content"]) == 32
    with pytest.raises(BadInput, match="no folder 'train'; set data.val_split=0.2 to hold out"):
        opened("folder_detection", root=str(tmp_path / "one"))
    with pytest.raises(BadInput, match="needs data.root"):
        opened("folder_detection")


def test_edited_annotations_change_the_fingerprint(tmp_path):
    root = painted(tmp_path, [(6, 5, 12, 20)])
    before = opened("folder_detection", root=str(root)).fingerprint()
    path = root / "train" / "annotations.json"
    path.write_text(path.read_text().replace("12, 20", "12, 19"))
    assert opened("folder_detection", root=str(root)).fingerprint()["train"] != before["train"]


def test_corrupt_images_are_an_error_or_left_out(tmp_path, caplog):
    root = painted(tmp_path, [(6, 5, 12, 20)])
    (root / "train" / "images" / "b.png").write_bytes(b"no image")
    with pytest.raises(BadInput, match=r"cannot read image .*b.png .*data.skip_corrupt=true"):
        opened("folder_detection", root=str(root))
    keys = {"name": "folder_detection", "root": str(root), "skip_corrupt": True, "num_workers": 0}
    data = create_datamodule(keys, batch_size=1)
    data.setup()
    assert (len(data.source("train")), len(data.source("val"))) == (1, 2)
    assert "skipped 1 of 2" in caplog.text


# -- VOC ------------------------------------------------------------------------------------------

VOC = """<annotation><object><name>dog</name><difficult>{difficult}</difficult>
<bndbox><xmin>1</xmin><ymin>3</ymin><xmax>20</xmax><ymax>10</ymax></bndbox></object></annotation>"""


def test_voc_boxes_count_pixels_from_zero(tmp_path):
    file = tmp_path / "a.xml"
    file.write_text(VOC.format(difficult=1))
    number = torchvision_sets.VOC_NAMES.index("dog") - 1
    assert torchvision_sets._voc_rows(str(file)).tolist() == [[number, 0, 2, 20, 10, 1]]
    file.write_text(VOC.format(difficult=0).replace("dog", "dragon"))
    with pytest.raises(BadInput, match="cannot read the boxes in .*a.xml"):
        torchvision_sets._voc_rows(str(file))


def test_scenes_have_the_boxes_of_every_digit():
    source = scenes.open_boxed_scenes(opened(val_images=3).config, "val")
    assert (len(source), source.num_classes) == (3, 10)
    assert all(2 <= len(source.boxed(index)[1]) <= 10 for index in range(3))
