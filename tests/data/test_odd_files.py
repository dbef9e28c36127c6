"""What lies in image folders besides images, and images that are turned, thin or damaged."""

import logging
import os
import socket

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps
from timm.data.transforms_factory import create_transform

from zoo import images
from zoo.data import integrity
from zoo.data.create import create_datamodule
from zoo.data.transforms import CentreCrop, RandomCrop
from zoo.errors import BadInput
from zoo.settings import DataConfig

PLAIN = {"mean": [0.0] * 3, "std": [1.0] * 3, "num_workers": 0}


def opened(root, stage=None, **keys):
    keys = {"name": "folder", "root": str(root), "image_size": 8} | PLAIN | keys
    data = create_datamodule(DataConfig(**keys), batch_size=1)
    data.setup(stage)
    return data


# -- EXIF orientation -----------------------------------------------------------------------------


def turned(image, orientation):
    """Return an image as a camera stores it, and its EXIF data: upright it equals `image`."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    back = {6: 8, 8: 6}.get(orientation, orientation)  # the other turns undo themselves
    stored = images._TURNS.get(back)
    return (image if stored is None else image.transpose(stored)), exif


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "tif", "webp"])
def test_all_orientations_are_read_upright(picture, tmp_path, kind, orientation):
    stored, exif = turned(picture(1, (7, 5)), orientation)
    path = str(tmp_path / f"x.{kind}")
    stored.save(path, exif=exif, **({"lossless": True} if kind == "webp" else {}))
    read = images.read_image(path, 3, path)
    assert np.array_equal(np.asarray(read), np.asarray(picture(1, (7, 5))))
    assert images.image_size(path) == (7, 5)
    with Image.open(path) as image:  # Pillow's own function
        theirs = ImageOps.exif_transpose(image)
        assert np.array_equal(np.asarray(theirs.convert("RGB")), np.asarray(read))


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_invalid_orientations_are_ignored(picture, tmp_path, value):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = value
    picture(1, (7, 5)).save(tmp_path / "x.png", exif=exif)
    assert images.read_image(str(tmp_path / "x.png"), 3, "x").size == (7, 5)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_data_is_ignored(picture, tmp_path):
    picture(1, (7, 5)).save(tmp_path / "x.jpg", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    assert images.read_image(str(tmp_path / "x.jpg"), 3, "x").size == (7, 5)


@pytest.mark.parametrize("orientation", [3, 5, 6, 8])
def test_training_evaluation_and_masks_are_upright(picture, tmp_path, orientation):
    upright = picture(1, (12, 9))
    mask = Image.fromarray((np.asarray(upright)[:, :, 0] // 90).astype(np.uint8))
    for split in ("train", "val"):
        for kind, image in (("images", upright), ("masks", mask)):
            (tmp_path / split / kind).mkdir(parents=True)
            stored, exif = turned(image, orientation)
            stored.save(tmp_path / split / kind / "a.png", exif=exif)
    still = {"scale": [1, 1], "ratio": [1, 1], "hflip": 0.0, "color_jitter": 0.0}
    data = opened(tmp_path, name="folder_segmentation", image_size=[9, 12], num_classes=3, **still)
    for loader in (data.train_dataloader(), data.val_dataloader()):
        pixels, numbers = next(iter(loader))
        shown = (pixels[0] * 255).round().byte().permute(1, 2, 0).numpy()
        assert np.array_equal(shown, np.asarray(upright))
        assert np.array_equal(numbers[0].numpy(), np.asarray(mask))


def test_a_mask_that_lies_beside_a_turned_image_raises(picture, tmp_path):
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (tmp_path / split / kind).mkdir(parents=True)
        stored, exif = turned(picture(1, (12, 9)), 6)
        stored.save(tmp_path / split / "images" / "a.jpg", exif=exif)
        numbers = np.arange(stored.height * stored.width).reshape(stored.height, -1) % 2
        Image.fromarray(numbers.astype(np.uint8)).save(tmp_path / split / "masks" / "a.png")
    with pytest.raises(BadInput, match="make the sizes equal .both are turned as their EXIF"):
        opened(tmp_path, name="folder_segmentation", num_classes=2)


# -- thin and large images ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(
    ("given", "size", "crop_pct"),
    [
        ((40, 30), (16, 16), 0.875),
        ((30, 41), (16, 24), 0.9),
        ((7, 5), (32, 32), 1.0),
        ((300, 20), (16, 16), 0.5),
        ((16, 16), (16, 16), 1.0),
        ((9, 100), (31, 17), 0.77),
    ],
)
def test_evaluation_images_equal_those_of_timm(picture, name, given, size, crop_pct):
    theirs = create_transform(size, use_prefetcher=True, interpolation=name, crop_pct=crop_pct)
    ours = CentreCrop(size, crop_pct, Image.Resampling[name.upper()])
    image = picture(1, given)
    assert torch.equal(ours(image), theirs(image))


@pytest.mark.parametrize("shape", [(2, 600), (600, 3)])
@pytest.mark.parametrize("size", [(16, 16), (16, 12)])
def test_thin_images_are_cropped_before_they_are_resized(shape, size):
    """A smooth image, since Pillow rounds between its two passes: within one level."""
    ramp = np.fromfunction(lambda y, x: 100 + 60 * np.sin((x + y) / 30), shape[::-1])
    image = Image.fromarray(ramp.astype(np.uint8)).convert("RGB")
    theirs = create_transform(size, use_prefetcher=True, interpolation="bilinear", crop_pct=0.8)
    ours = images.resize_and_crop(image, size, 0.8, Image.Resampling.BILINEAR)
    difference = np.asarray(ours).astype(int) - theirs(image).permute(1, 2, 0).numpy()
    assert np.abs(difference).max() <= 1


class Counted(Image.Image):
    """An image that counts the pixels of the images that it is resized to."""

    made = 0

    def resize(self, size, *args, **kwargs):
        Counted.made += size[0] * size[1]
        return super().resize(size, *args, **kwargs)


@pytest.mark.parametrize("shape", [(1, 65000), (65000, 1), (1, 20000)])
def test_thin_images_take_no_memory(shape, monkeypatch):
    image = Image.new("RGB", shape, (10, 20, 30))
    monkeypatch.setattr(image, "__class__", Counted)
    for size in ((64, 64), (64, 48)):
        cropped = images.resize_and_crop(image, size, 0.875, Image.Resampling.BICUBIC)
        assert cropped.size == size[::-1]
        assert cropped.getextrema() == ((10, 10), (20, 20), (30, 30))
    assert Counted.made <= 64 * 64 + 64 * 48
    Counted.made = 0


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (2, 3)])
def test_a_random_crop_of_a_tiny_image_has_pixels(shape):
    image = Image.new("RGB", shape, (10, 20, 30))
    crop = RandomCrop((8, 8), (0.08, 0.1), (3.0, 5.0), "bicubic")
    for _ in range(50):
        assert crop(image).getextrema() == ((10, 10), (20, 20), (30, 30))


# -- files that are no images ---------------------------------------------------------------------


def test_what_is_left_out_is_reported_and_never_opened(write_folder, picture, caplog):
    root = write_folder(count=2)
    cat = root / "train" / "cat"
    os.mkfifo(cat / "x.jpg")
    (cat / "y.jpg").symlink_to("/dev/zero")
    (cat / "nowhere.png").symlink_to("absent.png")
    (cat / "self.png").symlink_to("self.png")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(os.path.relpath(cat / "z.jpg"))
    (cat / "._0.png").write_bytes(b"\0\5\x16\7")
    (cat / ".DS_Store").write_bytes(b"")
    (cat / ".checkpoints").mkdir()
    picture(1).save(cat / ".checkpoints" / "0.png")
    (cat / "folder.png").mkdir()
    picture(1).save(cat / "0.gif")
    (cat / "phone.HEIC").write_bytes(b"")
    with caplog.at_level(logging.WARNING, "zoo.data"):
        data = opened(root)
    assert len(data.source("train")) == 4
    assert "x.jpg (a FIFO)" in caplog.text
    assert "and 2 more" in caplog.text
    assert "left out images of other formats (1 .gif, 1 .heic)" in caplog.text


@pytest.mark.parametrize("kind", ["FIFO", "device", "folder"])
def test_read_image_opens_only_regular_files(tmp_path, kind):
    path = tmp_path / "x.jpg"
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path = "/dev/zero"
    for read in (
        lambda: images.read_image(str(path), 3, "x"),
        lambda: images.image_size(str(path)),
    ):
        with pytest.raises(BadInput, match=f"a {kind}, not a regular file"):
            read()


@pytest.mark.parametrize("target", [".", "..", "../..", "../../.."])
def test_links_that_lead_back_are_left_out(write_folder, target, caplog):
    root = write_folder(count=2)
    (root / "train" / "cat" / "again").symlink_to(target)
    with caplog.at_level(logging.WARNING, "zoo.data"):
        data = opened(root)
    assert len(data.source("train")) == 4
    assert "left out links to folders that are listed already: " in caplog.text
    assert "cat/again" in caplog.text


def test_links_to_folders_elsewhere_are_followed(write_folder, tmp_path):
    root = write_folder(count=2)
    (root / "train" / "dog").rename(tmp_path / "dogs")
    (root / "train" / "dog").symlink_to(tmp_path / "dogs")
    assert len(opened(root).source("train")) == 4
    (root / "train" / "wolf").symlink_to(tmp_path / "dogs")
    with pytest.raises(BadInput, match="no images .* in class folder .*wolf"):
        opened(root)


def test_odd_files_beside_masks_are_left_out(picture, tmp_path, caplog):
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            folder = tmp_path / split / kind
            folder.mkdir(parents=True)
            (folder / "b.png").mkdir()
            os.mkfifo(folder / "c.png")
            (folder / "._a.png").write_bytes(b"")
        picture(1, (8, 8)).save(tmp_path / split / "images" / "a.png")
        numbers = np.arange(64).reshape(8, 8) % 2
        Image.fromarray(numbers.astype(np.uint8)).save(tmp_path / split / "masks" / "a.png")
    with caplog.at_level(logging.WARNING, "zoo.data"):
        data = opened(tmp_path, name="folder_segmentation", num_classes=2)
    assert len(data.source("train")) == 1
    assert "c.png (a FIFO)" in caplog.text


# -- damaged images -------------------------------------------------------------------------------


def test_broken_images_are_listed_before_training(write_folder):
    root = write_folder(count=4)
    for i in range(3):
        (root / "train" / "cat" / f"{i}.png").write_bytes(b"")
    for i in range(4):
        (root / "val" / "dog" / f"{i}.png").write_text("not an image")
    message = r"cat/0.png \(the file is empty\), .*cat/1.png .* and 2 more; repair or remove"
    with pytest.raises(BadInput, match=message) as hit:
        opened(root)
    assert "\n" not in str(hit.value)
    with pytest.raises(BadInput, match=r"dog/0.png \(not an image\)"):
        opened(root, stage="validate")


def test_large_sets_are_checked_by_their_headers_only(write_folder, monkeypatch):
    root = write_folder(count=3)
    path = root / "val" / "dog" / "1.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(BadInput, match=r"dog/1.png"):
        opened(root)
    monkeypatch.setattr(integrity, "PIXELS", 10)
    opened(root)
    path.write_bytes(b"")
    with pytest.raises(BadInput, match=r"dog/1.png \(the file is empty\)"):
        opened(root)
    monkeypatch.setattr(integrity, "HEADERS", 2)  # the first and the seventh of twelve files
    opened(root)


def test_a_single_class_raises(write_folder):
    root = write_folder(classes=("cat",))
    with pytest.raises(BadInput, match="a single class 'cat', so there is nothing to tell apart"):
        opened(root)
    with pytest.raises(BadInput, match="a single class"):
        opened(root, stage="validate")


def test_names_with_line_feeds_stay_in_one_line(write_folder):
    root = write_folder()
    (root / "train" / "cat" / "a\nb.png").write_text("not an image")
    with pytest.raises(BadInput, match=r"cat/a\\nb\.png") as hit:
        opened(root)
    assert "\n" not in str(hit.value)


@pytest.mark.parametrize("root", ["x" * 5000, "~nobody_of_that_name/x"])
def test_roots_that_are_no_paths_raise(root):
    with pytest.raises(BadInput, match="data.root=.* is not a path") as hit:
        opened(root)
    assert len(str(hit.value)) < 300


def test_one_folder_for_both_splits_is_a_warning(write_folder, caplog):
    root = write_folder(splits=("train",))
    (root / "val").symlink_to("train")
    with caplog.at_level(logging.WARNING, "zoo.data"):
        opened(root)
    assert "train and val are the same folder" in caplog.text
