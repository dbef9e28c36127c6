"""Detection: metrics, runs, resuming, evaluation, prediction, errors."""

import csv
import json

import pytest
import torch
from PIL import Image

import zoo
from zoo.command_line.composition import run as run_command
from zoo.commands.checkpoint_predictor import CheckpointModel
from zoo.data.create import create_datamodule
from zoo.deploy import predict_files
from zoo.deploy.box_drawing import draw
from zoo.deploy.detections import Detections
from zoo.deploy.predict import Predictor
from zoo.errors import BadInput, MissingExtra
from zoo.settings import TrainConfig
from zoo.training.tasks import get_task

from .conftest import assert_same_run, checkpoint_of, resume_run

pytest.importorskip("pycocotools")
CPU = torch.device("cpu")
SETTINGS = [
    *("model=ssdlite", "model.encoder=simplenet_cifar_310k", "data=digits_detection"),
    *("data.image_size=32", "data.train_images=12", "data.val_images=6", "train.batch_size=4"),
    *("train.epochs=2", "train.ema_decay=0.5", "train.ema_warmup=false", "train.loggers=[csv]"),
    *("train.lr_base_batch=4", "train.warmup_epochs=0.5"),
]


def run(out, *overrides):
    return run_command("train", [*overrides, f"train.out={out}"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run(tmp_path_factory.mktemp("detection"), *SETTINGS)


# -- metrics --------------------------------------------------------------------------------------


class Fixed:
    def __init__(self, outputs):
        self.outputs = iter(outputs)

    def __call__(self, images):
        return next(self.outputs)


def opened(**keys):
    keys = {"name": "digits_detection", "image_size": [32, 48], "val_images": 6} | keys
    data = create_datamodule(keys, batch_size=4)
    data.setup("validate")
    return data


def perfect(targets, size=(48, 32), classes=10):
    """Return outputs with one anchor for each row of the targets."""
    outputs = torch.zeros(*targets.shape[:2], 4 + classes)
    outputs[..., :4] = targets[..., 1:5] / torch.tensor([*size, *size])
    for output, rows in zip(outputs, targets, strict=True):
        for anchor, row in zip(output, rows, strict=True):
            if row[0] >= 0:
                anchor[4 + int(row[0])] = 0.9
    return outputs


def measured(change=lambda outputs: outputs):
    data = opened()
    batches = list(data.val_dataloader())
    outputs = [change(perfect(targets)) for _, targets in batches]
    return get_task("detection").validate(Fixed(outputs), batches, data, CPU), batches


def test_perfect_detections_have_perfect_metrics():
    result, batches = measured()
    assert (result.mean_ap, result.ap_50, result.ap_75, result.recall) == (1, 1, 1, 1)
    assert result.images == 6
    labels = torch.cat([targets[..., 0].flatten() for _, targets in batches])
    assert result.class_boxes == [int((labels == k).sum()) for k in range(10)]
    assert result.score == result.metrics()["val/map"] == 1
    assert result.summary() == "mAP 1.0000, mAP50 1.0000, mAP75 1.0000"


def test_boxes_that_overlap_by_60_percent_count_up_to_that_threshold():
    def narrow(outputs):  # intersection over union 0.6
        outputs[..., 2] = outputs[..., 0] + 0.61 * (outputs[..., 2] - outputs[..., 0])
        return outputs

    result, _ = measured(narrow)
    assert result.ap_50 == pytest.approx(1)
    assert result.ap_75 == 0
    assert result.mean_ap == pytest.approx(0.3), "0.50, 0.55 and 0.60 of ten thresholds"


def test_a_wrong_class_counts_as_wrong_and_crowds_do_not_count():
    result, _ = measured(lambda o: torch.cat([o[..., :4], o[..., 4:].roll(1, dims=-1)], dim=-1))
    assert result.mean_ap < 0.05
    data = opened()
    images, targets = next(iter(data.val_dataloader()))
    outputs = perfect(targets)
    targets[:, 0, 5] = 1
    result = get_task("detection").validate(Fixed([outputs]), [(images, targets)], data, CPU)
    assert result.mean_ap == 1
    assert sum(result.class_boxes) == int((targets[..., 0] >= 0).sum()) - len(targets)
    report = get_task("detection").report(result, data)
    assert {row["ap"] for row in report["classes"]} <= {1.0, None}
    targets[..., 5] = 1
    with pytest.raises(BadInput, match="no box to find in 4 validation images"):
        get_task("detection").validate(Fixed([outputs]), [(images, targets)], data, CPU)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'zoo-vision\[detection\]'"):
        get_task("detection").meter(opened())


# -- runs -----------------------------------------------------------------------------------------


def test_a_run_logs_its_metrics_and_draws_boxes(finished):
    with (finished / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {"val/map", "val/map_50", "val/map_75", "val/recall_100"} <= set(rows[0])
    best = checkpoint_of(finished, "best")
    assert best["progress"]["best"] == max(float(row["val/map"]) for row in rows)
    assert best["data"]["class_names"] == list("0123456789")
    assert "loss" not in best, "the model is no part of the loss"
    assert "best mAP 0." in (finished / "train.log").read_text()
    with Image.open(finished / "predictions.png") as picture:
        assert picture.size[0] > 300


def test_a_resumed_run_equals_an_uninterrupted_run(finished, tmp_path):
    half = run(tmp_path, *SETTINGS, "train.stop_at_epoch=1")
    resume_run(half)
    assert_same_run(finished, half)


@pytest.mark.parametrize("postprocess", [None, False, True])
def test_evaluation_repeats_the_metrics_of_training(finished, tmp_path, postprocess, capsys):
    """For the run, and for its artefacts without and with suppression inside."""
    out = [f"out={tmp_path / 'out'}"]
    if postprocess is None:
        report = run_command("eval", [f"weights={finished}", "device=cpu", "fused=true", *out])
    else:
        export = [f"weights={finished}", "format=onnx", f"export.postprocess={postprocess}"]
        run_command("export", [*export, f"export.out={tmp_path / 'onnx'}"])
        report = run_command("eval", [f"artefact={tmp_path / 'onnx'}", *out])
    metrics = checkpoint_of(finished, "best")["metrics"]
    for name in ("map", "map_50", "map_75", "recall_100"):
        assert report[name] == pytest.approx(metrics[f"val/{name}"], abs=2e-3)
    assert [row["class"] for row in report["classes"]] == list("0123456789")
    files = {"report.json", "predictions.png", "classes.csv"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == files
    assert "mAP50" in capsys.readouterr().out


# -- prediction -----------------------------------------------------------------------------------


class FixedPredictor:
    """Returns one detection in the upper left quarter of the input, which is 32 x 32 pixels."""

    name = "fixed"

    def __init__(self, finished, postprocessing):
        self.manifest = CheckpointModel(str(finished)).manifest | {"postprocessing": postprocessing}

    def __call__(self, images):
        rows = torch.tensor([[0.25, 0.0, 0.5, 0.25, 0.9, 3], [0, 0, 0, 0, 0, -1]])
        if self.manifest["postprocessing"] == "nms":
            return rows[None].numpy()
        output = torch.zeros(1, 2, 14)
        output[0, :, :4] = rows[:, :4]
        output[0, 0, 4 + 3] = 0.9
        output[0, 1, 4 + 5] = 0.2
        return output.numpy()


@pytest.mark.parametrize("postprocessing", [None, "nms"])
def test_predicted_boxes_are_in_pixels_of_the_original(finished, postprocessing, tmp_path, capsys):
    """A picture of 64 x 32 pixels fills the upper half of the input."""
    Image.new("RGB", (64, 32)).save(tmp_path / "a.png")
    predictor = Predictor(FixedPredictor(finished, postprocessing))
    out = str(tmp_path / "drawn")
    predict_files.print_predictions(predictor, [str(tmp_path / "a.png")], as_json=True, out=out)
    (answer,) = json.loads(capsys.readouterr().out)
    (found,) = answer["detections"]
    assert found["score"] == pytest.approx(0.9)
    assert (found["class"], found["name"], found["box"]) == (3, "3", [16, 0, 32, 16])
    with Image.open(answer["overlay"]) as drawn:
        assert drawn.size == (64, 32)
        assert drawn.getpixel((31, 15)) != (0, 0, 0)
        assert drawn.getpixel((50, 25)) == (0, 0, 0)
    predict_files.print_predictions(predictor, [str(tmp_path / "a.png")], out=out)
    assert "a.png: 3 90.0% at 16 0 32 16 -> " in capsys.readouterr().out


def test_a_run_predicts_without_an_export(finished, tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    predictor = Predictor(CheckpointModel(str(finished)))
    (answer,) = predict_files.predict(predictor, [tmp_path / "a.png"])
    assert set(answer) == {"file", "detections"}


def test_boxes_at_the_border_and_without_area_can_be_drawn():
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0], [0.9, 0.0, 0.2, 0.1]])
    found = Detections(
        boxes.numpy(), torch.tensor([0.9, 0.8, 0.1]).numpy(), torch.arange(3).numpy()
    )
    assert draw(Image.new("L", (20, 10)), found, None).mode == "RGB"


# -- errors ---------------------------------------------------------------------------------------

INVALID = [
    (["model=unet", "model.encoder=mobilenetv2_035", "data=digits_detection"],
     "unet is for segmentation, but data.name=digits_detection is for detection"),
    (["model=ssdlite", "model.encoder=mobilenetv2_035", "data=digits_segmentation"],
     "ssdlite is for detection, but data.name=digits_segmentation is for segmentation"),
    (["model=ssdlite", "data=digits_detection"], "ssdlite needs a backbone: set encoder"),
    (["model=fcos", "model.encoder=wavemix_192_16_l3", "data=digits_detection"],
     "has feature strides 4, 4, 4, 4; fcos needs strides that double"),
    ([*SETTINGS, "train.mixup=0.2"], "train.mixup=0.2 is not supported for detection"),
    ([*SETTINGS, "train.label_smoothing=0.1"], "has no effect with train.loss=detector"),
    ([*SETTINGS, "train.loss=dice"], "unknown train.loss 'dice'. Choices: detector"),
    ([*SETTINGS, "train.best=loss"], "unknown train.best 'loss'. Choices: map, map_50"),
    ([*SETTINGS, "train.class_weights=balanced"], "does not list the class of each image"),
    ([*SETTINGS, "data.image_size=16"], "is too small for several digits"),
    (["data=folder_detection", "data.num_classes=2", "model=ssdlite"],
     "data.num_classes=2 has no effect for data.name=folder_detection"),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "message"), INVALID, ids=[m for _, m in INVALID])
def test_invalid_settings_give_one_line_and_write_nothing(overrides, message, tmp_path):
    with pytest.raises(zoo.ZooError, match=message) as error:
        run(tmp_path / "runs", *overrides)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "runs").exists()


def test_int8_is_refused(finished):
    with pytest.raises(BadInput, match="train.qat=True is not supported for detection"):
        get_task("detection").check_settings(TrainConfig(qat=True))
    with pytest.raises(BadInput, match="quantize.int8=true is not supported for detection"):
        run_command("export", [f"weights={finished}", "quantize.int8=true"])
