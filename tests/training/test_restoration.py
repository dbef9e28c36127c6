"""Restoration: noise, bilateral filtering, the loss of several scales, a run, errors."""

import math

import pytest
import torch
from torch.nn import functional as F

import zoo
from zoo.command_line.composition import run as run_command
from zoo.data.create import create_datamodule
from zoo.data.denoising import SIGMA
from zoo.errors import BadInput
from zoo.training.dense_losses import Charbonnier
from zoo.training.losses import create_loss
from zoo.training.restoration import COLOUR_SIGMA, SPACE_SIGMA, bilateral
from zoo.training.tasks import get_task

CPU = torch.device("cpu")
SETTINGS = [
    *("model=maxim_s1", "model.kwargs.features=4", "model.kwargs.groups=1"),
    *("model.kwargs.bottlenecks=1", "data=photos_denoising", "data.train_images=2"),
    *("train.batch_size=2", "train.epochs=1", "train.loggers=[csv]", "train.limit_val_batches=2"),
]


def opened(**keys):
    keys = {"name": "photos_denoising", "train_images": 8} | keys
    data = create_datamodule(keys, batch_size=4, eval_batch_size=60)
    data.setup()
    return data


@pytest.fixture(scope="module")
def batch():
    return next(iter(opened().val_dataloader()))


def test_inputs_are_the_targets_with_noise_that_is_the_same_everywhere(batch):
    inputs, targets = batch
    noise = inputs - targets
    assert float(noise.std()) == pytest.approx(SIGMA, rel=0.01)
    assert abs(float(noise.mean())) < 0.001
    assert inputs.min() < 0  # neither clipped nor rounded
    assert torch.equal(inputs, next(iter(opened().val_dataloader()))[0])
    normalised = next(iter(opened(mean=[0.5] * 3, std=[0.2] * 3).val_dataloader()))[0]
    torch.testing.assert_close(normalised * 0.2 + 0.5, inputs)


def test_training_crops_and_their_noise_change_with_the_epoch():
    data = opened()
    loader = data._images(data.source("train"), data._train, 0)
    first, again, other = (loader.load([(epoch, 3)]) for epoch in (0, 0, 1))
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0] - first[1], other[0] - other[1])


def test_bilateral_filter_is_its_definition():
    torch.manual_seed(0)
    x = torch.rand(1, 2, 9, 10, dtype=torch.float64)
    filtered = bilateral(x, 0.3, 1.5)
    padded = F.pad(x, (4, 4, 4, 4), mode="reflect")[0]
    for i, j in ((4, 5), (0, 0), (8, 3)):
        total, weights = torch.zeros(2, dtype=torch.float64), 0.0
        for di in range(-4, 5):
            for dj in range(-4, 5):
                other = padded[:, i + 4 + di, j + 4 + dj]
                near = (di**2 + dj**2) / (2 * 1.5**2)
                alike = float(((other - x[0, :, i, j]) ** 2).sum()) / (2 * 0.3**2)
                weight = math.exp(-near - alike)
                total, weights = total + weight * other, weights + weight
        torch.testing.assert_close(filtered[0, :, i, j], total / weights)


def test_the_filter_is_the_best_of_its_kind(batch):
    def psnr(colour, space):
        error = (bilateral(batch[0], colour, space).clamp(0, 1) - batch[1]) ** 2
        return float(-10 * error.mean().log10())

    best = psnr(COLOUR_SIGMA, SPACE_SIGMA)
    assert best == pytest.approx(31.27, abs=0.02)
    others = [(1.1, 1), (1 / 1.1, 1), (1, 1.3), (1, 1 / 1.3)]
    assert all(psnr(COLOUR_SIGMA * a, SPACE_SIGMA * b) < best + 0.01 for a, b in others)


def test_metrics_stand_next_to_those_of_the_filter(batch):
    data = opened()
    task = get_task("restoration")
    result = task.validate(bilateral, [batch], data, CPU)
    assert result.psnr == pytest.approx(result.simple_psnr) == pytest.approx(31.27, abs=0.02)
    metrics = result.metrics()
    assert metrics["val/bilateral_psnr"] == result.simple_psnr
    assert f"bilateral {result.simple_psnr:.2f}" in result.summary()


def test_the_loss_compares_each_scale_with_the_target_of_its_size():
    torch.manual_seed(0)
    target, image, half = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8), torch.rand(2, 3, 4, 4)
    loss = create_loss("charbonnier", task="restoration", eps=0.01)
    one = Charbonnier(0.01)
    small = target.reshape(2, 3, 4, 2, 4, 2).mean(dim=(3, 5))
    torch.testing.assert_close(loss(image, target), one(image, target))
    want = (one(image, target) + one(half, small)) / 2
    torch.testing.assert_close(loss([image, half], target), want)
    with pytest.raises(BadInput, match=r"train.loss_args.eps=0 must be greater than 0"):
        create_loss("charbonnier", task="restoration", eps=0)


def test_every_image_of_every_stage_is_trained():
    arguments = dict(features=4, groups=1, bottlenecks=1)
    model = zoo.create_model("maxim_s2", **arguments)
    outputs = model(torch.rand(1, 3, 64, 64))
    assert [y.shape[-1] for y in outputs] == [16, 32, 64] * 2
    create_loss("l1", task="restoration")(outputs, torch.rand(1, 3, 64, 64)).backward()
    assert all(p.grad is not None for p in model.parameters())
    with pytest.raises(BadInput, match="num_classes=5 must be the channels of the image"):
        zoo.create_model("maxim_s1", num_classes=5)


def test_a_run_is_evaluated(tmp_path):
    folder = run_command("train", [*SETTINGS, f"train.out={tmp_path}"])
    assert (folder / "predictions.png").exists()
    report = run_command("eval", [f"weights={folder}", f"out={tmp_path / 'eval'}"])
    assert report["bilateral_psnr"] == pytest.approx(31.27, abs=0.02)
    assert len(report["rows"]) == report["images"] == 60


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.image_size=72"], "72"),
        (["data.image_size=512"], "larger than the photograph"),
        (["train.mixup=0.2"], "train.mixup=0.2 is not supported for restoration"),
        (["data.val_split=0.2"], "data.val_split=0.2 has no effect"),
    ],
)
def test_settings_that_cannot_work_are_errors(settings, message, tmp_path):
    with pytest.raises(BadInput, match=message):
        run_command("train", [*SETTINGS, f"train.out={tmp_path / 'none'}", *settings])
