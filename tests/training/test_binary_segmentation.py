"""One logit for two classes: loss, metrics, training, prediction, export; BGR images."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from support import images

import zoo
from zoo.binary import all_logits, class_map
from zoo.command_line.composition import run as run_command
from zoo.data.create import create_datamodule
from zoo.deploy.manifest import describe_outputs
from zoo.deploy.predict import Predictor
from zoo.deploy.predict_files import predict
from zoo.training.dense_losses import Dice, PixelCrossEntropy
from zoo.training.segmentation import SegmentationMeter

from .conftest import checkpoint_of

NAME = "extremec3net_portrait"


@pytest.fixture(scope="module")
def portraits(tmp_path_factory):
    """Make a folder of red pictures with a blue square, whose mask is 1."""
    root = tmp_path_factory.mktemp("portraits")
    for split, count in (("train", 4), ("val", 2)):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for i in range(count):
            pixels, mask = np.zeros((32, 32, 3), np.uint8), np.zeros((32, 32), np.uint8)
            pixels[..., 0], mask[8 : 20 + i, 8:24] = 200, 1
            pixels[mask == 1] = (0, 0, 250)
            Image.fromarray(pixels).save(root / split / "images" / f"{i}.png")
            Image.fromarray(mask).save(root / split / "masks" / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def trained(portraits, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    data = ["data=folder_segmentation", f"data.root={portraits}", "data.num_classes=2"]
    settings = ["data.image_size=32", "data.num_workers=0", "data.class_names=[wall,person]"]
    return run_command(
        "train",
        [
            *(f"model={NAME}", *data, *settings, "data.channel_order=BGR", "train.ema_decay=0"),
            *("train.epochs=2", "train.batch_size=2", "train.loggers=[csv]", f"train.out={out}"),
        ],
    )


def test_one_logit_equals_two_of_which_the_first_is_0():
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 1, 4, 5), torch.randint(0, 2, (2, 4, 5))
    targets[0, 0, 0] = 255
    both = torch.cat([torch.zeros_like(logits), logits], dim=1)
    assert torch.equal(all_logits(logits), both)
    assert torch.equal(class_map(logits), both.argmax(dim=1))
    assert class_map(torch.zeros(1, 1, 1, 1)).item() == 0
    for loss in (PixelCrossEntropy(), Dice()):
        assert torch.equal(loss(logits, targets), loss(both, targets))
    valid = targets != 255
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(
        logits[:, 0][valid], targets[valid].float()
    )
    torch.testing.assert_close(PixelCrossEntropy()(logits, targets), wanted)
    results = []
    for outputs in (logits, both):
        meter = SegmentationMeter(2)
        meter.update(logits, outputs, targets)
        results.append(meter.compute())
    assert results[0].mean_iou == results[1].mean_iou
    assert results[0].loss == pytest.approx(results[1].loss)


def test_a_model_of_one_class_is_trained_evaluated_and_predicts(trained, portraits, tmp_path):
    model = checkpoint_of(trained)["model"]
    assert model["num_classes"] == 1
    report = run_command("eval", [f"weights={trained}", f"out={tmp_path / 'eval'}"])
    assert [row["class"] for row in report["classes"]] == ["wall", "person"]
    export = [f"weights={trained}", "format=torchscript", f"export.out={tmp_path}"]
    artefact = run_command("export", [*export, "export.postprocess=true"])[0].path
    manifest = json.loads((artefact.parent / "manifest.json").read_text())
    assert manifest["model"]["num_classes"] == 1
    assert manifest["class_names"] == ["wall", "person"]
    assert manifest["input"]["channels"] == "BGR"
    again = run_command("eval", [f"artefact={artefact}", f"out={tmp_path / 'again'}"])
    assert again["mean_iou"] == pytest.approx(report["mean_iou"], abs=1e-3)
    file = portraits / "val" / "images" / "0.png"
    (answer,) = predict(Predictor(artefact), [file])
    assert {row["name"] for row in answer["classes"]} <= {"wall", "person"}


def test_one_output_for_more_than_two_classes_is_refused():
    with pytest.raises(zoo.BadInput, match="num_classes=1 does not match the data"):
        run_command("train", [f"model={NAME}", "model.num_classes=1", "data=digits_segmentation"])


def test_the_meaning_of_a_single_logit_is_in_the_manifest():
    rows = [{"name": "y", "shape": [1, 1, 8, 8]}]
    assert "greater than 0" in describe_outputs(rows, "segmentation", None)[0]["meaning"]
    rows[0]["shape"] = [1, 2, 8, 8]
    assert "argmax" in describe_outputs(rows, "segmentation", None)[0]["meaning"]


def test_images_are_blue_first_with_statistics_in_that_order(portraits):
    keys = dict(name="folder_segmentation", root=str(portraits), num_classes=2, image_size=32)
    kept = dict(keys, num_workers=0, mean=[0.0, 0.0, 0.5], std=[1.0, 1.0, 0.5])
    data = create_datamodule(kept | {"channel_order": "BGR"}, batch_size=1)
    data.setup("validate")
    image, mask = data.val_dataloader().dataset.load([(0, 0)])
    background = image[0, :, 0, 0].tolist()
    assert background == pytest.approx([0, 0, (200 / 255 - 0.5) / 0.5], abs=1e-5)
    assert image[0, :, 10, 10].tolist() == pytest.approx([250 / 255, 0, -1], abs=1e-5)
    assert data.eval_preprocessing()["channel_order"] == "BGR"
    with pytest.raises(zoo.BadInput, match="channel_order"):
        create_datamodule(keys | {"channel_order": "GBR"}, batch_size=1)


def test_a_deviation_that_weights_were_published_with_is_accepted():
    std = zoo.model_info(NAME)["input"]["std"]
    assert create_datamodule({"name": "digits", "std": std}, batch_size=1).std == std
    assert images(1).shape == (1, 3, 64, 64)
