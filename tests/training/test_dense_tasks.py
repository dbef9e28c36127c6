"""Segmentation and super-resolution: metrics, pictures, training, resuming, evaluation, errors."""

import csv
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from zoo.command_line.composition import run as run_command
from zoo.data.create import create_datamodule
from zoo.errors import BadInput
from zoo.training import super_resolution
from zoo.training.tasks import get_task

from .conftest import assert_same_run, checkpoint_of, resume_run, signal_at

COMMON = [
    "train.batch_size=4",
    "train.warmup_epochs=0.5",
    "train.loggers=[csv]",
    "train.log_every=1",
    "train.epochs=2",
    "train.ema_decay=0.5",
    "train.ema_warmup=false",
]
SEGMENTATION = [
    *("model=lightm_unet_2d", "model.kwargs.init_filters=8"),
    *("model.kwargs.blocks_down=[1,1]", "model.kwargs.blocks_up=[1]"),
    *("data=digits_segmentation", "data.image_size=32"),
    *("data.train_images=8", "data.val_images=10"),
    *COMMON,
]
SUPER_RESOLUTION = [
    *("model=wavemix_sisr_144_4_l1", "model.kwargs.dim=16", "model.kwargs.widths=[8]"),
    *("model.kwargs.depth=1", "data=photos_superres", "data.image_size=64", "data.train_images=8"),
    *COMMON,
]
TASKS = {"segmentation": SEGMENTATION, "super-resolution": SUPER_RESOLUTION}
CPU = torch.device("cpu")


def run(out, *overrides):
    return run_command("train", [*overrides, f"train.out={out}"])


@pytest.fixture(scope="module", params=list(TASKS))
def finished(request, tmp_path_factory):
    """Return (task, run folder) of a run of two epochs."""
    out = tmp_path_factory.mktemp(request.param)
    return request.param, run(out, *TASKS[request.param])


# -- metrics --------------------------------------------------------------------------------------


class Fixed:
    """A model that returns the given outputs, batch by batch."""

    def __init__(self, outputs):
        self.outputs = iter(outputs)

    def __call__(self, images):
        return next(self.outputs)


def digit_scenes(count=6, batch_size=4):
    keys = {"name": "digits_segmentation", "image_size": 32, "val_images": count}
    data = create_datamodule(keys, batch_size=batch_size)
    data.setup("validate")
    return data


def test_mean_iou_sums_over_the_set_and_averages_the_classes_that_occur():
    torch.manual_seed(0)
    data = digit_scenes()
    batches = [
        (torch.zeros(n, 3, 8, 8), torch.randint(0, 9, (n, 8, 8))) for n in (4, 2)
    ]  # classes 9 and 10 do not occur in the labels
    for _, labels in batches:
        labels[:, 0] = 255
    logits = [F.one_hot(torch.randint(0, 10, (n, 8, 8)), 11).movedim(-1, 1).float() for n in (4, 2)]
    result = get_task("segmentation").validate(Fixed(logits), batches, data, CPU)

    labels = torch.cat([labels for _, labels in batches])
    predicted = torch.cat(logits).argmax(dim=1)
    valid = labels != 255
    ious = []
    for k in range(10):  # class 9 is predicted somewhere, 10 nowhere
        intersection = ((labels == k) & (predicted == k) & valid).sum()
        union = (((labels == k) | (predicted == k)) & valid).sum()
        ious.append((intersection / union).item())
    assert ious[9] == 0
    assert result.images == 6
    assert result.mean_iou == pytest.approx(sum(ious) / 10)
    assert result.ious.tolist() == pytest.approx([*ious, 0.0])
    assert result.accuracy == pytest.approx((predicted == labels)[valid].float().mean().item())
    assert result.confusion.sum() == valid.sum()
    expected = F.cross_entropy(torch.cat(logits), labels, ignore_index=255)
    assert result.loss == pytest.approx(expected.item(), rel=1e-5)
    assert result.score == result.metrics()["val/mean_iou"] == result.mean_iou


def test_perfect_predictions_have_perfect_metrics():
    data = digit_scenes()
    batches = list(data.val_dataloader())
    logits = [20 * F.one_hot(labels, 11).movedim(-1, 1).float() for _, labels in batches]
    result = get_task("segmentation").validate(Fixed(logits), batches, data, CPU)
    assert result.mean_iou == pytest.approx(1, abs=1e-6)  # float32
    assert result.accuracy == 1
    assert result.summary().startswith("mean IoU 1.0000, pixel accuracy 100.00%")


def photo_crops(**keys):
    keys = {"name": "photos_superres", "image_size": 60, "train_images": 8} | keys
    data = create_datamodule(keys, batch_size=5)
    data.setup()
    return data


def test_psnr_and_ssim_of_model_and_bicubic_interpolation():
    data = photo_crops(mean=[0.4, 0.5, 0.6], std=[0.2, 0.2, 0.2])
    batches = list(data.val_dataloader())
    task = get_task("super-resolution")
    targets = [targets for _, targets in batches]
    noisy = [(t + 0.1 * torch.randn_like(t)).clamp(-1, 2) for t in targets]
    result = task.validate(Fixed(noisy), batches, data, CPU)
    errors = torch.cat(
        [
            ((n.clamp(0, 1) - t) ** 2).mean(dim=(1, 2, 3))
            for n, t in zip(noisy, targets, strict=True)
        ]
    )
    expected = [-10 * math.log10(error) for error in errors.tolist()]
    assert [row["psnr"] for row in result.rows] == pytest.approx(expected, rel=1e-5)
    # The crops have the same size, so the error of the whole set is the mean of theirs.
    assert result.psnr == pytest.approx(-10 * math.log10(errors.mean()), rel=1e-5)
    assert result.psnr != pytest.approx(sum(expected) / len(expected), rel=1e-4)
    assert result.images == len(data.source("val")) == len(result.rows)
    assert result.ssim < 0.7 < result.simple_ssim < 1

    class Bicubic:
        def __call__(self, images):
            return super_resolution.bicubic(images * 0.2 + torch.tensor(data.mean)[:, None, None])

    same = task.validate(Bicubic(), batches, data, CPU)
    assert same.psnr == pytest.approx(same.simple_psnr, abs=1e-3)
    assert same.simple_psnr == pytest.approx(result.simple_psnr, abs=1e-4)
    perfect = task.validate(Fixed(targets), batches, data, CPU)
    assert perfect.ssim == pytest.approx(1, abs=1e-5)


def test_bicubic_interpolation_matches_pillow():
    torch.manual_seed(0)
    small = torch.randint(80, 170, (4, 3, 60, 60)) / 255  # Pillow clips after each axis
    ours = super_resolution.bicubic(small)
    pillow = [
        Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy()).resize(
            (120, 120), Image.Resampling.BICUBIC
        )
        for image in small
    ]
    theirs = torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1) for p in pillow]) / 255
    difference = (ours.clamp(0, 1) - theirs).abs()  # Pillow rounds after each axis
    assert difference.max() < 3 / 255
    assert difference.mean() < 0.5 / 255
    other = F.interpolate(small, scale_factor=2, mode="bicubic").clamp(0, 1)
    assert (other - theirs).abs().mean() > 4 * difference.mean(), "the test distinguishes kernels"


# -- runs -----------------------------------------------------------------------------------------


def test_a_run_logs_the_metrics_of_its_task(finished):
    task, folder = finished
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = {
        "segmentation": {"val/mean_iou", "val/pixel_accuracy", "val/loss"},
        "super-resolution": {"val/psnr", "val/ssim", "val/bicubic_psnr", "val/loss"},
    }[task]
    assert len(rows) == 2
    assert names <= set(rows[0])
    score_name = {"segmentation": "val/mean_iou", "super-resolution": "val/psnr"}[task]
    scores = [float(row[score_name]) for row in rows]
    best = checkpoint_of(folder, "best")
    assert best["progress"]["best"] == max(scores) == best["metrics"][score_name]
    log = (folder / "train.log").read_text()
    assert {"segmentation": "best mean IoU 0.", "super-resolution": "best PSNR "}[task] in log
    assert {"segmentation": "11 classes", "super-resolution": "3 channels at twice"}[task] in log
    assert ("bicubic" in log) == (task == "super-resolution")
    with Image.open(folder / "predictions.png") as picture:
        assert picture.size[0] > 300


def test_a_resumed_run_equals_an_uninterrupted_run(finished, tmp_path):
    task, whole = finished
    half = run(tmp_path, *TASKS[task], "train.stop_at_epoch=1")
    resume_run(half)
    assert_same_run(whole, half)


def test_a_run_interrupted_within_an_epoch_resumes_exactly(finished, tmp_path):
    task, whole = finished
    with signal_at(update=3):
        run(tmp_path, *TASKS[task])
    (folder,) = tmp_path.iterdir()
    progress = checkpoint_of(folder)["progress"]
    assert (progress["epoch"], progress["batch"]) == (1, 1)
    resume_run(folder)
    assert_same_run(whole, folder)


def test_a_decoder_is_trained_and_evaluated(tmp_path, capsys):
    pytest.importorskip("segmentation_models_pytorch")
    folder = run(
        tmp_path,
        *("model=unet", "model.encoder=mobilenetv2_035", "data=digits_segmentation"),
        *("data.train_images=8", "data.val_images=6", *COMMON, "train.epochs=1"),
    )
    overrides = [f"weights={folder}", f"out={tmp_path / 'out'}", "device=cpu"]
    report = run_command("eval", overrides)
    expected = checkpoint_of(folder, "best")["metrics"]["val/mean_iou"]
    assert report["mean_iou"] == pytest.approx(expected, abs=1e-4)
    assert f"mean IoU {expected:.4f}" in (folder / "train.log").read_text()
    assert f"mean IoU {report['mean_iou']:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize("fused", [False, True])
def test_evaluation_repeats_the_metrics_of_training(finished, tmp_path, fused, capsys):
    task, folder = finished
    overrides = [f"weights={folder}", f"fused={fused}", f"out={tmp_path / 'out'}", "device=cpu"]
    report = run_command("eval", overrides)
    metrics = checkpoint_of(folder, "best")["metrics"]
    printed = capsys.readouterr().out
    files = {"report.json", "predictions.png"}
    if task == "segmentation":
        assert report["mean_iou"] == pytest.approx(metrics["val/mean_iou"], abs=1e-3)
        assert sum(row["pixels"] for row in report["classes"]) == 10 * 32 * 32
        assert [row["class"] for row in report["classes"]] == ["background", *"0123456789"]
        assert "mean IoU" in printed
        files |= {"classes.csv", "confusion.csv", "confusion.png"}
    else:
        assert report["psnr"] == pytest.approx(metrics["val/psnr"], abs=1e-3)
        assert report["bicubic_psnr"] == pytest.approx(metrics["val/bicubic_psnr"], abs=1e-4)
        assert len(report["rows"]) == report["images"]
        assert "bicubic interpolation" in printed
        files |= {"images.csv"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == files
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report


INVALID = [
    (
        ["model=mobilenetv2_035", "data=digits_segmentation", "data.image_size=32"],
        "mobilenetv2_035 is for classification, but data.name=digits_segmentation is for segm",
    ),
    (
        ["model=lightm_unet_2d", "data.image_size=32"],
        "model lightm_unet_2d is for segmentation, but data.name=digits is for classification",
    ),
    (
        ["model=wavemix_sisr_144_4_l1", "data=digits_segmentation"],
        "is for super-resolution, but data.name=digits_segmentation is for segmentation",
    ),
    (
        ["model=timm/resnet10t", "data=photos_superres"],
        "timm/resnet10t is for classification, but data.name=photos_superres is for super",
    ),
    ([*SEGMENTATION, "train.mixup=0.2"], "train.mixup=0.2 is not supported for segmentation"),
    ([*SUPER_RESOLUTION, "train.cutmix=1"], "train.cutmix=1 is not supported for super-resolution"),
    (
        [*SEGMENTATION, "train.distill=hard", "train.distill_teacher=mobilenetv2_035"],
        "train.distill=hard is not supported for segmentation",
    ),
    ([*SUPER_RESOLUTION, "train.loss=dice"], "unknown train.loss 'dice'"),
    (
        [*SUPER_RESOLUTION, "train.label_smoothing=0.1"],
        "train.label_smoothing=0.1 has no effect with train.loss=charbonnier",
    ),
    ([*SEGMENTATION, "model.num_classes=2"], "model.num_classes=2 does not match the data"),
    ([*SEGMENTATION, "data.image_size=33"], "multiple of 2"),
    (
        ["model=unet", "model.encoder=mobilemamba_t2", "data=digits_segmentation"],
        "encoder=mobilemamba_t2 has feature strides 16, 32, 64; unet needs 4, 8, 16, 32",
    ),
    (
        ["model=unet", "model.encoder=wavemix_192_16_l3", "data=digits_segmentation"],
        "encoder=wavemix_192_16_l3 has feature strides 4, 4, 4, 4; unet needs 4, 8, 16, 32",
    ),
    (["model=unet", "data=digits_segmentation"], "unet needs a backbone: set encoder"),
    (
        ["model=linknet", "model.encoder=mobilenetv2_035", "data=digits_segmentation"],
        r"images of \[48, 48\] pixels: every side must be a multiple of 32",
    ),
]


@pytest.mark.parametrize(("overrides", "message"), INVALID, ids=[m for _, m in INVALID])
def test_invalid_settings_give_one_line_and_write_nothing(overrides, message, tmp_path):
    with pytest.raises(BadInput, match=message) as error:
        run(tmp_path / "runs", *overrides)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "runs").exists()


def test_evaluation_on_data_of_another_task_is_an_error(finished, tmp_path):
    _, folder = finished
    overrides = [f"weights={folder}", "data=digits", f"out={tmp_path / 'out'}", "device=cpu"]
    with pytest.raises(BadInput, match="but data.name=digits (has 10|is for classification)"):
        run_command("eval", overrides)
    assert not (tmp_path / "out").exists()
