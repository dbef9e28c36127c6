"""Super-resolution crops: inputs, targets, and one photograph per split."""

import numpy as np
import pytest
import torch
from PIL import Image

from zoo.data import photos
from zoo.data.create import create_datamodule
from zoo.errors import BadInput
from zoo.settings import DataConfig


def made(batch_size=4, seed=0, **keys):
    keys = {"name": "photos_superres", "train_images": 16, "image_size": 24} | keys
    data = create_datamodule(DataConfig(**keys), batch_size=batch_size, seed=seed)
    data.setup()
    return data


def as_photo(target):
    """Return a target (C H W, values 0..1) as bytes H W C."""
    return (target * 255).round().byte().permute(1, 2, 0).numpy()


def places(photo, part):
    """Return the (top, left) corners at which `part` occurs in `photo`."""
    found = np.argwhere((photo[: -len(part) + 1, : -part.shape[1] + 1] == part[0, 0]).all(axis=2))
    height, width = part.shape[:2]
    return [(y, x) for y, x in found if np.array_equal(photo[y : y + height, x : x + width], part)]


def test_facts_and_shapes():
    data = made()
    assert (data.task, data.num_classes, data.scale) == ("super-resolution", 3, 2)
    images, targets = next(iter(data.train_dataloader()))
    assert (images.shape, images.dtype) == ((4, 3, 24, 24), torch.float32)
    assert (targets.shape, targets.dtype) == ((4, 3, 48, 48), torch.float32)
    assert 0 <= images.min() < images.max() <= 1
    assert 0 <= targets.min() < targets.max() <= 1
    assert data.eval_preprocessing() == {
        "size": [3, 24, 24],
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": [0.0] * 3,
        "std": [1.0] * 3,
        "channel_order": None,
    }


def test_the_input_is_the_target_halved_with_antialiased_bicubic_interpolation():
    data = made()
    for loader in (data.train_dataloader(), data.val_dataloader()):
        images, targets = next(iter(loader))
        for image, target in zip(images, targets, strict=True):
            small = Image.fromarray(as_photo(target)).resize((24, 24), Image.Resampling.BICUBIC)
            assert np.array_equal(as_photo(image), np.asarray(small))


def test_one_photograph_trains_and_the_other_validates():
    data = made(hflip=0.0, vflip=0.0)
    train, val = photos.photograph("flower"), photos.photograph("china")
    _, targets = next(iter(data.train_dataloader()))
    for target in targets:
        assert len(places(train, as_photo(target))) == 1
        assert not places(val, as_photo(target))


def test_validation_tiles_the_photograph_once():
    data = made(image_size=[32, 40], batch_size=7)
    height, width = 64, 80
    rows, columns = 427 // height, 640 // width
    tiles = torch.cat([targets for _, targets in data.val_dataloader()])
    assert len(tiles) == len(data.source("val")) == rows * columns
    photo = photos.photograph("china")[: rows * height, : columns * width]
    joined = np.concatenate(
        [
            np.concatenate([as_photo(tile) for tile in row], axis=1)
            for row in tiles.unflatten(0, (rows, columns))
        ]
    )
    assert np.array_equal(joined, photo)


def test_crops_and_flips_depend_only_on_seed_epoch_and_index():
    batch = made().train_dataloader().dataset
    (batched, _), (single, _) = batch.load([(0, 3), (1, 5)]), batch.load([(1, 5)])
    assert torch.equal(batched[1], single[0])
    assert not torch.equal(batch.load([(2, 5)])[0], single)
    assert not torch.equal(made(seed=1).train_dataloader().dataset.load([(1, 5)])[0], single)


def test_flips_apply_to_input_and_target():
    plain = made(hflip=0.0, vflip=0.0).train_dataloader().dataset.load([(0, 1)])
    flipped = made(hflip=1.0, vflip=1.0).train_dataloader().dataset.load([(0, 1)])
    for turned, straight in zip(flipped, plain, strict=True):
        torch.testing.assert_close(turned.flip(-1, -2), straight, rtol=0, atol=1.1 / 255)


def test_grey_crops():
    images, targets = next(iter(made(in_chans=1).val_dataloader()))
    assert (images.shape[1], targets.shape[1]) == (1, 1)
    assert made(in_chans=1).num_classes == 1


def test_only_the_input_is_normalised():
    data = made(mean=[0.5] * 3, std=[0.5] * 3)
    (images, targets), (plain, same) = (next(iter(d.val_dataloader())) for d in (data, made()))
    torch.testing.assert_close(images, plain * 2 - 1)
    assert torch.equal(targets, same)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"image_size": 214}, "needs crops of 428 x 428 pixels, larger than the photograph"),
        ({"image_size": [32, 321]}, "needs crops of 64 x 642 pixels, larger"),
        ({"val_images": 5}, "data.val_images=5 has no effect for data.name=photos_superres"),
        ({"scale": [0.5, 1.0]}, r"data.scale=\[0.5, 1.0\] has no effect"),
        ({"color_jitter": 0.1}, "data.color_jitter=0.1 has no effect"),
        ({"interpolation": "bilinear"}, "data.interpolation=bilinear has no effect"),
        ({"crop_pct": 0.9}, "data.crop_pct=0.9 has no effect"),
        ({"train_images": 0}, "data.train_images=0 must be at least 1"),
        ({"hflip": 2.0}, "data.hflip=2.0"),
    ],
    ids=str,
)
def test_invalid_settings_raise_one_line(keys, message):
    with pytest.raises(BadInput, match=message) as hit:
        made(**keys)
    assert "\n" not in str(hit.value)


def test_unknown_splits_raise():
    with pytest.raises(BadInput, match="unknown split 'test' of data set photos_superres"):
        made().eval_dataloader("test")
