"""What int8 is calibrated on: training images as evaluation prepares them, spread over the set."""

import numpy as np
import pytest
import torch

import zoo
from zoo.compression.calibration import arrays, calibration, held_out
from zoo.data.create import create_datamodule
from zoo.settings import DataConfig


def opened(name: str = "digits", size: int = 16, **settings):
    data = create_datamodule(DataConfig(name=name, image_size=size, **settings), batch_size=16)
    data.setup("validate")
    return data


def test_batches_are_evenly_spread_training_images_without_augmentation():
    data = opened()
    whole = data.eval_dataloader("train").dataset
    batches = calibration(data, 50)
    assert [len(images) for images, _ in batches] == [32, 18]
    step = len(whole) / 50
    for number, index in [(0, 0), (1, int(step)), (49, int(49 * step))]:
        image, label = whole[(0, index)]
        assert torch.equal(batches[number // 32][0][number % 32], image)
        assert batches[number // 32][1][number % 32] == label
    validation = {
        image.numpy().tobytes() for images, _ in data.val_dataloader() for image in images
    }
    assert not validation & {image.numpy().tobytes() for images, _ in batches for image in images}


def test_held_images_are_others():
    data = opened()
    both = [
        {image.numpy().tobytes() for images, _ in drawn for image in images}
        for drawn in (calibration(data, 64), held_out(data, 64))
    ]
    assert len(both[0]) == len(both[1]) == 64
    assert not both[0] & both[1]


def test_all_there_are_where_more_are_asked_for():
    data = opened()
    batches = calibration(data, 10**6)
    assert sum(len(images) for images, _ in batches) == len(data.source("train"))


@pytest.mark.parametrize("name", ["digits_segmentation", "photos_superres"])
def test_any_datamodule_and_the_same_images_again(name):
    data = opened(name, 32, train_images=20)
    state = torch.get_rng_state()
    first, second = calibration(data, 8), calibration(data, 8)
    assert torch.equal(torch.get_rng_state(), state)
    assert first[0][0].shape == (8, 3, 32, 32)
    assert torch.equal(first[0][0], second[0][0])
    assert torch.equal(first[0][1], second[0][1])
    assert not torch.equal(first[0][0], held_out(data, 8)[0][0])


def test_bytes_are_those_that_the_images_were_made_of():
    data = opened(mean=[0.3, 0.4, 0.5], std=[0.2, 0.3, 0.4])
    batches = calibration(data, 4)
    (pixels,) = arrays(batches, data, pixels=True)
    assert pixels.dtype == np.uint8
    mean, std = (255 * np.array(v).reshape(1, 3, 1, 1) for v in (data.mean, data.std))
    np.testing.assert_allclose((pixels - mean) / std, batches[0][0], atol=1e-5)


def test_a_fixed_batch_is_filled_up_with_the_last_image():
    batches = calibration(opened(), 5)
    filled = arrays(batches, None, batch=3)
    assert [len(images) for images in filled] == [3, 3]
    assert np.array_equal(filled[1][2], filled[1][1])
    assert np.array_equal(np.concatenate(filled)[:5], batches[0][0].numpy())


def test_no_images_are_refused():
    with pytest.raises(zoo.BadInput, match="quantize.images=0 must be at least 1"):
        calibration(opened(), 0)
