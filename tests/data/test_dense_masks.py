"""Images and masks in folders, VOC and the pets: pairing, numbers, colours, geometry, errors."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from zoo.command_line.composition import compose
from zoo.data import integrity
from zoo.data.create import create_datamodule
from zoo.errors import BadInput
from zoo.settings import DataConfig

COLOURS = [[0, 0, 0], [200, 10, 10], [0, 0, 255]]


def stripes(size=(36, 27), numbers=(0, 1, 2)):
    """Return vertical stripes of the class numbers, H W; `size` is (width, height)."""
    columns = np.arange(size[0]) * len(numbers) // size[0]
    return np.broadcast_to(np.array(numbers, np.uint8)[columns], (size[1], size[0])).copy()


@pytest.fixture
def write_masks(tmp_path, picture):
    """Write `<root>/<split>/images/<i>.jpg` and `masks/<i>.png`; split "" gives `<root>/images`."""

    def write(splits=("train", "val"), count=4, save=None, size=(36, 27)) -> Path:
        root = tmp_path / "set"
        for split in splits:
            for kind in ("images", "masks"):
                (root / split / kind).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                picture(i, size).save(root / split / "images" / f"{i}.jpg")
                mask = (save or Image.fromarray)(stripes(size))
                mask.save(root / split / "masks" / f"{i}.png")
        return root

    return write


def opened(root, batch_size=2, **keys):
    keys = {"name": "folder_segmentation", "image_size": [27, 36], "num_workers": 0} | keys
    if not {"num_classes", "class_names", "palette"} & keys.keys():
        keys["num_classes"] = 3
    data = create_datamodule(DataConfig(root=str(root), **keys), batch_size=batch_size)
    data.setup()
    return data


def first_mask(data):
    return next(iter(data.val_dataloader()))[1][0].numpy()


def test_files_are_paired_by_stem(write_masks, picture):
    root = write_masks(count=3)
    Image.fromarray(np.full((27, 36), 2, np.uint8)).save(root / "val/masks/1.png")
    picture(7, (36, 27)).save(root / "val/images/.hidden.jpg")
    (root / "val/images/notes.txt").write_text("not an image")
    data = opened(root, batch_size=3)
    assert (data.task, data.num_classes, data.class_names) == ("segmentation", 3, None)
    images, masks = next(iter(data.val_dataloader()))
    assert images.shape == (3, 3, 27, 36)
    assert [Path(path).stem for path in data.source("val").images] == ["0", "1", "2"]
    assert np.array_equal(masks[0].numpy(), stripes())
    assert (masks[1] == 2).all()


def test_a_share_of_flat_folders_is_held_out(write_masks):
    root = write_masks(splits=("",), count=10)
    data = opened(root, val_split=0.3)
    train, val = data.source("train"), data.source("val")
    assert len(train) > len(val) > 0
    assert sorted([*train.indices, *val.indices]) == list(range(10))
    assert opened(root, val_split=0.3).source("val").indices == val.indices
    assert val.name(0).endswith(f"{val.indices[0]}.jpg")


def test_a_share_of_the_train_folder_is_held_out(write_masks):
    data = opened(write_masks(splits=("train",), count=10), val_split=0.2)
    assert len(data.source("train")) + len(data.source("val")) == 10


def test_splits_can_have_other_names(write_masks):
    root = write_masks(splits=("a", "b"))
    data = opened(root, train_split_name="a", val_split_name="b")
    assert "/b/" in data.source("val").images[0]
    assert len(list(data.eval_dataloader("a"))) == 2


def palette_file(numbers):
    image = Image.fromarray(numbers)
    image.putpalette(sum(COLOURS, []) + [0] * (768 - 9))  # makes it mode P
    assert image.mode == "P"
    return image


def coloured(numbers):
    return Image.fromarray(np.array(COLOURS, np.uint8)[numbers])


def sixteen_bits(numbers):
    return Image.fromarray(numbers.astype(np.uint16))


@pytest.mark.parametrize(
    ("save", "keys"),
    [
        (Image.fromarray, {"num_classes": 3}),
        (sixteen_bits, {"num_classes": 3}),
        (palette_file, {"class_names": ["a", "b", "c"]}),
        (palette_file, {"palette": COLOURS}),
        (coloured, {"palette": COLOURS}),
        (coloured, {"palette": COLOURS, "class_names": ["a", "b", "c"], "num_classes": 3}),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),  # repr would contain addresses
)
def test_masks_of_every_kind_give_the_same_class_numbers(write_masks, save, keys):
    data = opened(write_masks(save=save), **keys)
    assert data.num_classes == 3
    assert data.class_names == keys.get("class_names")
    assert np.array_equal(first_mask(data), stripes())


def test_black_and_white_masks_with_a_palette(write_masks):
    black_and_white = write_masks(save=lambda m: Image.fromarray((m > 0).astype(np.uint8) * 255))
    data = opened(black_and_white, palette=[[0, 0, 0], [255, 255, 255]])
    assert np.array_equal(first_mask(data), stripes() > 0)


def test_255_means_no_class(write_masks):
    data = opened(write_masks(save=lambda m: Image.fromarray(np.where(m == 1, 255, m))))
    assert set(np.unique(first_mask(data))) == {0, 2, 255}


def test_evaluation_pads_the_whole_image(write_masks):
    data = opened(write_masks(), image_size=[60, 60])
    images, masks = next(iter(data.val_dataloader()))
    assert (masks[:, 45:] == 255).all()
    assert (masks[:, :45] != 255).all()
    assert torch.allclose(images[:, :, 45:], torch.zeros(()), atol=0.02), "the mean colour"
    kept = masks[0, :45].numpy()
    assert np.array_equal(kept, stripes((60, 45))), "resized without a crop"


def agreement(data, batches):
    """Return the share of pixels where an image of value class * 80 agrees with its mask."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (data.mean, data.std))
    agree = []
    for images, masks in batches:
        shown = ((images * std + mean) * 255 / 80).mean(dim=1)
        counted = masks != 255
        agree.append((shown[counted] - masks[counted]).abs() < 0.3)
    return torch.cat(agree).float().mean().item()


def write_pictures_of_masks(root, edge=90):
    for split in ("train", "val"):
        for i in range(12):
            mask = np.random.default_rng(i).integers(0, 3, (3, 3)).repeat(edge // 3, 0)
            mask = mask.repeat(edge // 3, 1).astype(np.uint8)
            for kind, shown in (
                ("images", Image.fromarray(mask * 80).convert("RGB")),
                ("masks", Image.fromarray(mask)),
            ):
                (root / split / kind).mkdir(parents=True, exist_ok=True)
                shown.save(root / split / kind / f"{i}.png")


def test_images_and_masks_are_transformed_together(tmp_path):
    write_pictures_of_masks(tmp_path)
    keys = {"image_size": 60, "color_jitter": 0.0, "interpolation": "nearest"}
    data = opened(tmp_path, batch_size=12, scale=[0.2, 0.6], hflip=0.5, vflip=0.5, **keys)
    assert agreement(data, data.train_dataloader()) > 0.99
    loader = data.train_dataloader()
    first = torch.stack([masks for _, masks in loader])
    loader.set_epoch(1)
    assert not torch.equal(first, torch.stack([masks for _, masks in loader]))
    shifted = [(images.roll(3, dims=3), masks) for images, masks in loader]
    assert agreement(data, shifted) < 0.97, "the check detects a shift of three pixels"


def test_enlarged_masks_are_aligned_with_enlarged_images(tmp_path):
    """A shift of the masks by half a pixel would give a non-zero mean difference."""
    ramp = np.tile(np.arange(0, 240, 10, dtype=np.uint8), (24, 1))
    for split in ("train", "val"):
        for kind, shown in (
            ("images", Image.fromarray(ramp).convert("RGB")),
            ("masks", Image.fromarray(ramp // 10)),
        ):
            (tmp_path / split / kind).mkdir(parents=True)
            shown.save(tmp_path / split / kind / "a.png")
    keys = {"num_classes": 24, "mean": [0.0] * 3, "std": [1.0] * 3, "color_jitter": 0.0}
    data = opened(
        tmp_path, batch_size=1, image_size=100, scale=[0.5, 0.5], ratio=[1, 1], hflip=0.0, **keys
    )
    for loader in (data.train_dataloader(), data.val_dataloader()):
        images, masks = next(iter(loader))
        difference = images[0, 0] * 25.5 - masks[0]
        assert difference[:, 10:-10].mean().abs() < 0.05


def test_flips_can_be_forced_and_disabled(tmp_path):
    write_pictures_of_masks(tmp_path)
    whole = {"image_size": 90, "scale": [1, 1], "ratio": [1, 1], "color_jitter": 0.0}
    flipped = opened(tmp_path, batch_size=12, hflip=1.0, vflip=1.0, **whole)
    plain = opened(tmp_path, batch_size=12, hflip=0.0, **whole)
    ours, theirs = (next(iter(data.train_dataloader())) for data in (flipped, plain))
    for turned, straight in zip(ours, theirs, strict=True):
        assert torch.equal(turned.flip(-1, -2), straight)


def test_ratio_is_relative_to_the_image_size(write_masks):
    root = write_masks(size=(72, 36))
    keys = {"image_size": [18, 36], "scale": [1, 1], "ratio": [1, 1], "hflip": 0.0}
    _, masks = next(iter(opened(root, **keys).train_dataloader()))
    assert np.array_equal(masks[0].numpy(), stripes((36, 18)))


# -- errors ---------------------------------------------------------------------------------------


def remove(path):
    return lambda root: (root / path).unlink()


def truncate(path, keep=40):
    def cut(root):
        file = root / path
        file.write_bytes(file.read_bytes()[:keep])

    return cut


def put(path, array):
    return lambda root: Image.fromarray(np.asarray(array, np.uint8)).save(root / path)


def rmtree(path):
    import shutil

    return lambda root: shutil.rmtree(root / path)


def empty(path):
    return lambda root: [file.unlink() for file in (root / path).iterdir()]


INVALID_FILES = [
    (remove("val/masks/2.png"), r"val/images/2.jpg has no mask with the same stem"),
    (remove("train/images/0.jpg"), r"train/masks/0.png has no image with the same stem"),
    (
        rmtree("val/masks"),
        "val/masks does not exist; expected the folders images and masks in .*val",
    ),
    (rmtree("train/images"), "train/images does not exist; expected the folders"),
    (empty("val/images"), r"no images \(jpg .*\) in .*val/images"),
    (rmtree("val"), "has no folder 'val'; expected .*val/images and .*val/masks"),
    (put("val/images/1.png", np.zeros((27, 36))), "1.jpg and .*1.png have the same stem"),
    (truncate("val/masks/1.png"), r"cannot read mask .*val/masks/1.png \("),
    (truncate("val/images/1.jpg"), r"cannot read image .*val/images/1.jpg \("),
    (
        put("val/masks/1.png", np.zeros((20, 36))),
        r"1.png has 36 x 20 pixels, but its image .* has 36 x 27",
    ),
    (
        put("val/masks/1.png", np.full((27, 36), 7)),
        "1.png contains the number 7; valid numbers for 3 classes: 0 to 2",
    ),
    (put("val/masks/1.png", np.zeros((27, 36, 3))), "1.png is coloured; set data.palette"),
]


@pytest.mark.parametrize(("damage", "message"), INVALID_FILES, ids=[m for _, m in INVALID_FILES])
def test_setup_reports_invalid_files(write_masks, damage, message):
    root = write_masks()
    damage(root)
    with pytest.raises(BadInput, match=message) as hit:
        opened(root)
    assert "\n" not in str(hit.value)


def test_a_colour_outside_the_palette_raises(write_masks):
    root = write_masks(save=coloured)
    put("val/masks/0.png", np.full((27, 36, 3), 9))(root)
    with pytest.raises(
        BadInput, match=r"0.png contains the colour \[9, 9, 9\], which is not in data"
    ):
        opened(root, palette=COLOURS)


def test_an_image_truncated_after_its_header_raises_when_it_is_loaded(write_masks):
    root = write_masks()
    truncate("val/images/1.jpg", keep=700)(root)
    with pytest.raises(BadInput, match=r"cannot read image .*val/images/1.jpg \("):
        list(opened(root).val_dataloader())


def test_masks_of_a_held_out_part_are_checked(write_masks):
    root = write_masks(splits=("",))
    for i in range(4):
        put(f"masks/{i}.png", np.full((27, 36), 3))(root)
    with pytest.raises(BadInput, match=r"masks/\d.png contains the number 3; valid numbers"):
        opened(root, val_split=0.5)


def test_worker_processes_check_many_masks(write_masks, monkeypatch):
    monkeypatch.setattr(integrity, "FEW", 3)
    root = write_masks()
    put("val/masks/2.png", np.full((27, 36), 9))(root)
    put("val/masks/3.png", np.full((27, 36), 8))(root)
    with pytest.raises(BadInput, match="2.png contains the number 9"):
        opened(root, num_workers=1)


def test_flat_folders_without_a_share_raise(write_masks):
    with pytest.raises(
        BadInput, match="has no folder 'train'; set data.val_split=0.2 .*images, or"
    ):
        opened(write_masks(splits=("",)))


def test_a_share_with_a_val_folder_raises(write_masks):
    with pytest.raises(BadInput, match="data.val_split=0.5 has no effect because .*val exists"):
        opened(write_masks(), val_split=0.5)


def test_a_single_image_cannot_be_split(write_masks):
    with pytest.raises(BadInput, match="data.val_split=0.1 cannot split a single image"):
        opened(write_masks(splits=("",), count=1), val_split=0.1)


INVALID_SETTINGS = [
    ({"num_classes": None}, "needs data.num_classes, .* not stored in the masks"),
    ({"num_classes": 1}, "data.num_classes sets the number of classes to 1; give 2 to 255"),
    ({"num_classes": 256}, "give 2 to 255"),
    ({"num_classes": 0}, "data.num_classes=0 must be at least 1"),
    ({"num_classes": 2, "class_names": ["a"]}, "2 by data.num_classes, 1 by data.class_names"),
    ({"palette": [[0, 0, 0], [0, 0, 0]]}, "repeats a colour"),
    ({"palette": [[0, 0, 0], [0, 300, 0]]}, r"\[0, 300, 0\] is not a colour"),
    ({"palette": [[0, 0, 0], [0, 0]]}, r"\[0, 0\] is not a colour"),
    ({"palette": "VOC"}, "'VOC' is not a colour"),
    ({"num_classes": 3, "cache": True}, "data.cache=True has no effect"),
    ({"num_classes": 3, "train_images": 5}, "data.train_images=5 has no effect"),
    ({"name": "voc", "num_classes": 3}, "data.num_classes=3 has no effect for data.name=voc"),
    ({"name": "oxford_pet", "crop_pct": 0.5}, "data.crop_pct=0.5 has no effect"),
]


@pytest.mark.parametrize(
    ("keys", "message"), INVALID_SETTINGS, ids=[str(keys) for keys, _ in INVALID_SETTINGS]
)
def test_invalid_settings_raise_before_anything_is_read(keys, message):
    with pytest.raises(BadInput, match=message) as hit:
        create_datamodule({"name": "folder_segmentation"} | keys, batch_size=2)
    assert "\n" not in str(hit.value)


def test_corrupt_files_can_be_skipped_with_a_warning(write_masks, caplog):
    root = write_masks()
    truncate("val/masks/1.png")(root)
    with caplog.at_level(logging.WARNING, "zoo.data"):
        data = opened(root, skip_corrupt=True)
    assert len(data.source("val")) == 3
    assert "skipped: cannot read mask" in caplog.text
    assert "corrupt images in split val: skipped 1 of 4" in caplog.text
    assert sum(len(masks) for _, masks in data.val_dataloader()) == 3


def test_no_readable_image_raises(write_masks):
    root = write_masks(count=1, splits=("train", "val"))
    truncate("val/masks/0.png")(root)
    with pytest.raises(BadInput, match="no image of split val can be read"):
        opened(root, batch_size=1, skip_corrupt=True)


# -- public data sets -----------------------------------------------------------------------------


def public(name, root, **keys):
    keys = {"image_size": 32, "num_workers": 0} | keys
    data = create_datamodule(DataConfig(name=name, root=str(root), **keys), batch_size=1)
    data.setup()
    return data


def write_voc(root, picture):
    base = root / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (base / folder).mkdir(parents=True)
    for split, stems in (("train", ["a", "b"]), ("val", ["c"])):
        (base / "ImageSets/Segmentation" / f"{split}.txt").write_text("\n".join(stems) + "\n")
        for stem in stems:
            picture(ord(stem), (40, 40)).save(base / "JPEGImages" / f"{stem}.jpg")
            mask = Image.fromarray(stripes((40, 40), (0, 20, 255, 7)))
            mask.putpalette(list(range(256)) * 3)
            mask.save(base / "SegmentationClass" / f"{stem}.png")


def test_voc(tmp_path, picture):
    write_voc(tmp_path, picture)
    data = public("voc", tmp_path)
    assert data.num_classes == len(data.class_names) == 21
    assert (data.class_names[0], data.class_names[15]) == ("background", "person")
    assert (len(data.source("train")), len(data.source("val"))) == (2, 1)
    images, masks = next(iter(data.val_dataloader()))
    assert images.shape == (1, 3, 32, 32)
    assert masks.unique().tolist() == [0, 7, 20, 255]


def write_pets(root, picture):
    base = root / "oxford-iiit-pet"
    for folder in ("images", "annotations/trimaps"):
        (base / folder).mkdir(parents=True)
    for split, stems in (("trainval", ["Abyssinian_1", "pug_2"]), ("test", ["pug_7"])):
        lines = [f"{stem} 1 1 1" for stem in stems]
        (base / "annotations" / f"{split}.txt").write_text("\n".join(lines) + "\n")
        for stem in stems:
            picture(len(stem), (36, 36)).save(base / "images" / f"{stem}.jpg")
            mask = Image.fromarray(stripes((36, 36), (1, 3, 2)))
            mask.save(base / "annotations/trimaps" / f"{stem}.png")


def test_the_pets(tmp_path, picture):
    write_pets(tmp_path, picture)
    data = public("oxford_pet", tmp_path, image_size=36)
    assert data.class_names == ["pet", "background", "border"]
    assert (len(data.source("train")), len(data.source("val"))) == (2, 1)
    _, masks = next(iter(data.val_dataloader()))
    assert np.array_equal(masks[0].numpy(), stripes((36, 36), (0, 2, 1)))


def test_a_set_that_stays_incomplete_raises(tmp_path, picture):
    """torchvision does not download the pets if their folders exist."""
    write_pets(tmp_path, picture)
    (tmp_path / "oxford-iiit-pet/annotations/trimaps/pug_7.png").unlink()
    with pytest.raises(BadInput, match=r"oxford_pet in .* is still incomplete after the download"):
        public("oxford_pet", tmp_path, download=True)


@pytest.mark.parametrize("name", ["voc", "oxford_pet"])
def test_missing_public_sets_raise(tmp_path, name):
    with pytest.raises(
        BadInput,
        match=f"{name} is missing or incomplete in .*; download it with data.download=true",
    ):
        public(name, tmp_path)
    with pytest.raises(BadInput, match=f"unknown split 'test' of data set {name}"):
        create_datamodule({"name": name, "root": str(tmp_path)}, batch_size=1).eval_dataloader(
            "test"
        )


@pytest.mark.parametrize("name", ["voc", "oxford_pet"])
def test_torchvision_downloads(tmp_path, name, monkeypatch):
    from torchvision import datasets

    downloads = []

    def fail(*args, download, **kwargs):
        if not download:
            raise RuntimeError("no files")
        downloads.append(args)
        raise RuntimeError("no network")

    kind = {"voc": "VOCSegmentation", "oxford_pet": "OxfordIIITPet"}[name]
    monkeypatch.setattr(datasets, kind, fail)
    data = create_datamodule({"name": name, "root": str(tmp_path), "download": True}, batch_size=1)
    with pytest.raises(BadInput, match=f"cannot download {name} to .*: no network"):
        data.setup()
    assert len(downloads) == 1


def test_missing_files_of_a_public_set_raise(tmp_path, picture):
    write_voc(tmp_path, picture)
    (tmp_path / "VOCdevkit/VOC2012/SegmentationClass/c.png").unlink()
    with pytest.raises(BadInput, match=r"cannot read mask .*c.png \(the file does not exist\)"):
        public("voc", tmp_path)


@pytest.mark.parametrize(
    "name", ["digits_segmentation", "folder_segmentation", "voc", "oxford_pet", "photos_superres"]
)
def test_each_yaml_names_its_data_set(name):
    assert compose("train", [f"data={name}"]).data.name == name
