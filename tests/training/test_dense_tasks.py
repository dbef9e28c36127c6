"""Segmentation and super-resolution: judged by formulas, trained, resumed, evaluated, refused."""

import csv
import json
import math
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from zoo.cli import run as run_command
from zoo.data.create import create_datamodule
from zoo.errors import BadInput
from zoo.training import loop, pictures, super_resolution
from zoo.training.tasks import get_task

from .conftest import assert_same_run, checkpoint_of, resume_run

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
    given = [*overrides, f"train.out={out}"]
    return run_command("train", given)


@pytest.fixture(scope="module", params=list(TASKS))
def finished(request, tmp_path_factory):
    """(task, run folder) of two epochs."""
    out = tmp_path_factory.mktemp(request.param)
    return request.param, run(out, *TASKS[request.param])


# -- judging --------------------------------------------------------------------------------------


class Fixed:
    """A model that returns what it was given, batch by batch."""

    def __init__(self, outputs):
        self.outputs = iter(outputs)

    def __call__(self, images):
        return next(self.outputs)


def scenes(count=6, batch_size=4):
    keys = {"name": "digits_segmentation", "image_size": 32, "val_images": count}
    data = create_datamodule(keys, batch_size=batch_size)
    data.setup("validate")
    return data


def test_mean_iou_is_of_the_whole_set_over_the_classes_that_occur():
    torch.manual_seed(0)
    data = scenes()
    batches = [
        (torch.zeros(n, 3, 8, 8), torch.randint(0, 9, (n, 8, 8))) for n in (4, 2)
    ]  # classes 9 and 10 do not occur
    for _, labels in batches:
        labels[:, 0] = 255
    logits = [F.one_hot(torch.randint(0, 10, (n, 8, 8)), 11).movedim(-1, 1).float() for n in (4, 2)]
    found = get_task("segmentation").validate(Fixed(logits), batches, data, CPU)

    labels = torch.cat([labels for _, labels in batches])
    taken = torch.cat(logits).argmax(dim=1)
    counted = labels != 255
    ious = []
    for k in range(10):  # class 9 is predicted somewhere, 10 nowhere
        both = ((labels == k) & (taken == k) & counted).sum()
        either = (((labels == k) | (taken == k)) & counted).sum()
        ious.append((both / either).item())
    assert ious[9] == 0
    assert found.images == 6
    assert found.mean_iou == pytest.approx(sum(ious) / 10)
    assert found.ious.tolist() == pytest.approx([*ious, 0.0])
    assert found.accuracy == pytest.approx((taken == labels)[counted].float().mean().item())
    assert found.confusion.sum() == counted.sum()
    expected = F.cross_entropy(torch.cat(logits), labels, ignore_index=255)
    assert found.loss == pytest.approx(expected.item(), rel=1e-5)
    assert found.score == found.metrics()["val/mean_iou"] == found.mean_iou


def test_perfect_labels_are_perfect():
    data = scenes()
    batches = list(data.val_dataloader())
    logits = [20 * F.one_hot(labels, 11).movedim(-1, 1).float() for _, labels in batches]
    found = get_task("segmentation").validate(Fixed(logits), batches, data, CPU)
    assert found.mean_iou == pytest.approx(1, abs=1e-6)  # a mean of ones in single precision
    assert found.accuracy == 1
    assert found.words().startswith("mean IoU 1.0000, pixel accuracy 100.00%")


def crops(**keys):
    keys = {"name": "photos_superres", "image_size": 60, "train_images": 8} | keys
    data = create_datamodule(keys, batch_size=5)
    data.setup()
    return data


def test_psnr_and_ssim_beside_bicubic():
    data = crops(mean=[0.4, 0.5, 0.6], std=[0.2, 0.2, 0.2])
    batches = list(data.val_dataloader())
    task = get_task("super-resolution")
    targets = [targets for _, targets in batches]
    noisy = [(t + 0.1 * torch.randn_like(t)).clamp(-1, 2) for t in targets]
    found = task.validate(Fixed(noisy), batches, data, CPU)
    errors = torch.cat(
        [
            ((n.clamp(0, 1) - t) ** 2).mean(dim=(1, 2, 3))
            for n, t in zip(noisy, targets, strict=True)
        ]
    )
    expected = [-10 * math.log10(error) for error in errors.tolist()]
    assert [row["psnr"] for row in found.rows] == pytest.approx(expected, rel=1e-5)
    # All are of one size: the errors of the whole photograph are a mean of theirs.
    assert found.psnr == pytest.approx(-10 * math.log10(errors.mean()), rel=1e-5)
    assert found.psnr != pytest.approx(sum(expected) / len(expected), rel=1e-4)
    assert found.images == len(data.source("val")) == len(found.rows)
    assert found.ssim < 0.7 < found.bicubic_ssim < 1

    class Bicubic:
        def __call__(self, images):
            return super_resolution.bicubic(images * 0.2 + torch.tensor(data.mean)[:, None, None])

    same = task.validate(Bicubic(), batches, data, CPU)
    assert same.psnr == pytest.approx(same.bicubic_psnr, abs=1e-3)
    assert same.bicubic_psnr == pytest.approx(found.bicubic_psnr, abs=1e-4)
    perfect = task.validate(Fixed(targets), batches, data, CPU)
    assert perfect.ssim == pytest.approx(1, abs=1e-5)


def test_the_baseline_is_the_kernel_of_image_programs():
    torch.manual_seed(0)
    small = torch.randint(80, 170, (4, 3, 60, 60)) / 255  # Pillow clips between both axes
    ours = super_resolution.bicubic(small)
    pillow = [
        Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy()).resize(
            (120, 120), Image.Resampling.BICUBIC
        )
        for image in small
    ]
    theirs = torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1) for p in pillow]) / 255
    difference = (ours.clamp(0, 1) - theirs).abs()  # Pillow rounds twice, once for each axis
    assert difference.max() < 3 / 255
    assert difference.mean() < 0.5 / 255
    other = F.interpolate(small, scale_factor=2, mode="bicubic").clamp(0, 1)
    assert (other - theirs).abs().mean() > 4 * difference.mean(), "the check tells kernels apart"


# -- pictures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 11, 21, 40])
def test_colours_of_classes_can_be_told_apart(count):
    colors = pictures.class_colors(count)
    assert colors.shape == (count, 3)
    assert (colors[0] == 0).all()
    distances = torch.cdist(colors, colors) + 9 * torch.eye(count)
    assert distances.min() > 0.08


def test_a_picture_shows_labels_beside_predictions(tmp_path):
    labels = torch.zeros(3, 20, 20, dtype=torch.int64)
    labels[:, :10] = 1
    labels[:, :, :3] = 255
    args = (torch.rand(3, 1, 20, 20), labels, labels * 0, ["a", "b"])
    pictures.draw_labels(tmp_path / "one.png", *args)
    with Image.open(tmp_path / "one.png") as picture:
        pixels = torch.from_numpy(np.array(picture.convert("RGB"))).float()
    color = (pictures.class_colors(2)[1] * 255).round()
    near = (pixels - color).abs().max(dim=-1).values < 3
    columns = near.sum(dim=0).nonzero()
    third = pixels.shape[1] / 3
    assert near.sum() > 1000, "class 1 is drawn"
    assert ((columns > third) & (columns < 2 * third)).float().mean() > 0.9, "among the labels only"


# -- runs -----------------------------------------------------------------------------------------


def test_a_run_records_what_its_task_measures(finished):
    task, folder = finished
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = {
        "segmentation": {"val/mean_iou", "val/pixel_accuracy", "val/loss"},
        "super-resolution": {f"val/{name}" for name in super_resolution.NAMES} | {"val/loss"},
    }[task]
    assert len(rows) == 2
    assert names <= set(rows[0])
    monitored = {"segmentation": "val/mean_iou", "super-resolution": "val/psnr"}[task]
    scores = [float(row[monitored]) for row in rows]
    best = checkpoint_of(folder, "best")
    assert best["progress"]["best"] == max(scores) == best["metrics"][monitored]
    log = (folder / "train.log").read_text()
    assert {"segmentation": "best mean IoU 0.", "super-resolution": "best PSNR "}[task] in log
    assert {"segmentation": "11 classes", "super-resolution": "3 channels at twice"}[task] in log
    assert ("bicubic" in log) == (task == "super-resolution")
    with Image.open(folder / "predictions.png") as picture:
        assert picture.size[0] > 300


def test_two_epochs_with_a_break_are_two_epochs(finished, tmp_path):
    task, whole = finished
    half = run(tmp_path, *TASKS[task], "train.stop_at_epoch=1")
    resume_run(half)
    assert_same_run(whole, half)


def test_interrupted_in_an_epoch_and_continued_is_exact(finished, tmp_path, monkeypatch):
    task, whole = finished
    update = loop.Loop._update

    def signalled(self):
        update(self)
        if self.place.update == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(loop.Loop, "_update", signalled)
    with pytest.raises(SystemExit):
        run(tmp_path, *TASKS[task])
    monkeypatch.undo()
    (folder,) = tmp_path.iterdir()
    place = checkpoint_of(folder)["progress"]
    assert (place["epoch"], place["batch"]) == (1, 1)
    resume_run(folder)
    assert_same_run(whole, folder)


def test_a_decoder_on_a_backbone_is_trained_and_evaluated(tmp_path, capsys):
    pytest.importorskip("segmentation_models_pytorch")
    folder = run(
        tmp_path,
        *("model=unet", "model.encoder=mobilenetv2_035", "data=digits_segmentation"),
        *("data.train_images=8", "data.val_images=6", *COMMON, "train.epochs=1"),
    )
    given = [f"weights={folder}", f"out={tmp_path / 'out'}", "device=cpu"]
    found = run_command("eval", given)
    measured = checkpoint_of(folder, "best")["metrics"]["val/mean_iou"]
    assert found["mean_iou"] == pytest.approx(measured, abs=1e-4)
    assert f"mean IoU {measured:.4f}" in (folder / "train.log").read_text()
    assert f"mean IoU {found['mean_iou']:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize("fused", [False, True])
def test_eval_measures_what_training_measured(finished, tmp_path, fused, capsys):
    task, folder = finished
    given = [f"weights={folder}", f"fused={fused}", f"out={tmp_path / 'out'}", "device=cpu"]
    found = run_command("eval", given)
    metrics = checkpoint_of(folder, "best")["metrics"]
    printed = capsys.readouterr().out
    files = {"report.json", "predictions.png"}
    if task == "segmentation":
        assert found["mean_iou"] == pytest.approx(metrics["val/mean_iou"], abs=1e-3)
        assert sum(row["pixels"] for row in found["classes"]) == 10 * 32 * 32
        assert [row["class"] for row in found["classes"]] == ["background", *"0123456789"]
        assert "mean IoU" in printed
        files |= {"classes.csv", "confusion.csv", "confusion.png"}
    else:
        assert found["psnr"] == pytest.approx(metrics["val/psnr"], abs=1e-3)
        assert found["bicubic_psnr"] == pytest.approx(metrics["val/bicubic_psnr"], abs=1e-4)
        assert len(found["rows"]) == found["images"]
        assert "bicubic interpolation" in printed
        files |= {"images.csv"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == files
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == found


REFUSED = [
    (
        ["model=mobilenetv2_035", "data=digits_segmentation", "data.image_size=32"],
        "model mobilenetv2_035 is made for classification, data.name=digits_segmentation for segm",
    ),
    (
        ["model=lightm_unet_2d", "data.image_size=32"],
        "model lightm_unet_2d is made for segmentation, data.name=digits for classification",
    ),
    (
        ["model=wavemix_sisr_144_4_l1", "data=digits_segmentation"],
        "made for super-resolution, data.name=digits_segmentation for segmentation",
    ),
    (
        ["model=timm/resnet10t", "data=photos_superres"],
        "model timm/resnet10t is made for classification, data.name=photos_superres for super",
    ),
    ([*SEGMENTATION, "train.mixup=0.2"], "train.mixup=0.2 has no meaning for segmentation"),
    ([*SUPER_RESOLUTION, "train.cutmix=1"], "train.cutmix=1 has no meaning for super-resolution"),
    (
        [*SEGMENTATION, "train.distill=hard", "train.distill_teacher=mobilenetv2_035"],
        "train.distill=hard has no meaning for segmentation",
    ),
    ([*SUPER_RESOLUTION, "train.loss=dice"], "unknown train.loss 'dice'"),
    (
        [*SUPER_RESOLUTION, "train.label_smoothing=0.1"],
        "train.label_smoothing=0.1 has no effect with train.loss=charbonnier",
    ),
    ([*SEGMENTATION, "model.num_classes=2"], "model.num_classes=2 disagrees with the data, which"),
    ([*SEGMENTATION, "data.image_size=33"], "multiple of 2"),
    (
        ["model=unet", "model.encoder=mobilemamba_t2", "data=digits_segmentation"],
        "encoder=mobilemamba_t2 gives maps at strides 16, 32, 64; unet needs 4, 8, 16, 32",
    ),
    (
        ["model=unet", "model.encoder=wavemix_192_16_l3", "data=digits_segmentation"],
        "encoder=wavemix_192_16_l3 gives maps at strides 4, 4, 4, 4; unet needs 4, 8, 16, 32",
    ),
    (["model=unet", "data=digits_segmentation"], "unet needs an encoder: name a backbone"),
    (
        ["model=linknet", "model.encoder=mobilenetv2_035", "data=digits_segmentation"],
        r"images of \[48, 48\] pixels: every side must be a multiple of 32",
    ),
]


@pytest.mark.parametrize(("overrides", "message"), REFUSED, ids=[m for _, m in REFUSED])
def test_what_cannot_work_is_refused_in_one_line_and_leaves_nothing(overrides, message, tmp_path):
    with pytest.raises(BadInput, match=message) as hit:
        run(tmp_path / "runs", *overrides)
    assert "\n" not in str(hit.value)
    assert not (tmp_path / "runs").exists()


def test_eval_refuses_data_of_another_task(finished, tmp_path):
    _, folder = finished
    given = [f"weights={folder}", "data=digits", f"out={tmp_path / 'out'}", "device=cpu"]
    with pytest.raises(BadInput, match="classes, the data digits has 10|data.name=digits for clas"):
        run_command("eval", given)
    assert not (tmp_path / "out").exists()
