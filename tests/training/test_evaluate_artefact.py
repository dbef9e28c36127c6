"""Artefacts on a data set: the figures of the checkpoint, or a line that says why not."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import zoo
from zoo.cli import run as run_command
from zoo.data.create import create_datamodule
from zoo.deploy.manifest import Origin
from zoo.errors import BadInput
from zoo.training.tasks import get_task

ROOT = Path(__file__).parents[2]


def evaluated(*overrides: str) -> dict:
    given = list(overrides)
    return run_command("eval", given)


def exported(run: Path, folder: Path, *overrides: str) -> Path:
    given = [f"weights={run}", f"export.out={folder}", *overrides]
    return run_command("export", given)[0].path


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("artefacts")


@pytest.fixture(scope="module")
def plain(whole_run: Path, places: Path) -> dict:
    return evaluated(f"weights={whole_run}", f"out={places / 'plain'}")


@pytest.fixture(scope="module")
def onnx(whole_run: Path, places: Path) -> Path:
    return exported(whole_run, places / "onnx")


def flips(a: dict, b: dict) -> int:
    """How many images got another class."""
    changed = torch.tensor(a["confusion"]) - torch.tensor(b["confusion"])
    return int(changed.abs().sum()) // 2


def test_the_figures_are_those_of_the_checkpoint(plain: dict, onnx: Path) -> None:
    found = evaluated(f"artefact={onnx.parent}")
    assert flips(found, plain) <= 1
    assert found["images"] == plain["images"] == 360
    assert found["loss"] == pytest.approx(plain["loss"], rel=1e-4)
    assert found["preprocessing"] == plain["preprocessing"]
    assert found["model"] == "mobilenetv2_035"
    assert (found["runtime"], found["format"]) == ("onnxruntime", "onnx")
    assert (found["precision"], found["fused"]) == ("float32", True)
    written = onnx.parent / "eval_digits_onnxruntime"
    assert json.loads((written / "report.json").read_text()) == found
    assert {file.name for file in written.iterdir()} >= {"classes.csv", "confusion.png"}


def test_another_runtime_of_the_same_file(plain: dict, onnx: Path, tmp_path: Path) -> None:
    found = evaluated(f"artefact={onnx}", "runtime=openvino", f"out={tmp_path / 'o'}")
    assert found["runtime"] == "openvino"
    assert flips(found, plain) <= 1


@pytest.mark.parametrize(
    "given",
    [
        ["format=onnx", "export.batch=7"],  # 360 images are no multiple
        ["format=torchscript", "export.preprocess=true", "export.postprocess=true"],
        ["format=onnx", "export.preprocess=true", "export.batch=50"],
    ],
    ids=["fixed batch", "bytes and probabilities", "bytes in a fixed batch"],
)
def test_other_inputs_and_outputs(
    given: list[str], plain: dict, whole_run: Path, tmp_path: Path
) -> None:
    artefact = exported(whole_run, tmp_path, *given)
    found = evaluated(f"artefact={artefact}")
    assert flips(found, plain) <= 1
    assert found["loss"] == pytest.approx(plain["loss"], rel=1e-3)
    assert found["top5"]["value"] == pytest.approx(plain["top5"]["value"], abs=1 / 360)


def test_data_that_is_asked_for(onnx: Path, plain: dict, tmp_path: Path) -> None:
    """The same images from a folder of files, prepared as the manifest says."""
    source = create_datamodule({"name": "digits", "image_size": 32}, batch_size=8).source("val")
    for index, label in enumerate(source.labels):
        place = tmp_path / "val" / str(label)
        place.mkdir(parents=True, exist_ok=True)
        source.image(index).save(place / f"{index}.png")
    given = [f"artefact={onnx}", "data=folder", f"data.root={tmp_path}", "data.num_workers=0"]
    found = evaluated(*given, f"out={tmp_path / 'o'}")
    assert flips(found, plain) <= 1
    assert found["preprocessing"] == plain["preprocessing"]


class Dense(nn.Module):
    """Logits for every pixel, or a picture of twice the size."""

    in_chans = 3

    def __init__(self, num_classes: int, scale: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.num_classes = num_classes
        self.mix = nn.Conv2d(3, num_classes * scale**2, 3, padding=1)
        self.shuffle = nn.PixelShuffle(scale)

    def forward(self, x):
        return self.shuffle(self.mix(x))


SEGMENTS = {"name": "digits_segmentation", "val_images": 5}


def segmenter(folder: Path, **kwargs) -> Path:
    origin = Origin(
        "wavemix_seg_192_16_l3_cityscapes",
        preprocessing={"mean": [0.4, 0.5, 0.6], "std": [0.3, 0.2, 0.3]},
        data=SEGMENTS,
    )
    arguments = {"input_size": (1, 3, 48, 48), "origin": origin, **kwargs}
    return zoo.export(Dense(11).eval(), "onnx", folder, **arguments).path


def judged(model: nn.Module, data: dict) -> tuple[dict, object]:
    made = create_datamodule(data, batch_size=2)
    made.setup("validate")
    task = get_task(made.task)
    found = task.validate(model.eval(), made.val_dataloader(), made, torch.device("cpu"))
    return task.report(found, made), made


@pytest.mark.parametrize("inside", [False, True])
def test_segmentation(inside: bool, tmp_path: Path) -> None:
    path = segmenter(tmp_path, preprocess=inside, postprocess=inside)
    found = evaluated(f"artefact={path}")
    wanted, _ = judged(Dense(11), {**SEGMENTS, "mean": [0.4, 0.5, 0.6], "std": [0.3, 0.2, 0.3]})
    assert found["images"] == 5
    assert found["mean_iou"] == pytest.approx(wanted["mean_iou"], abs=1e-3)
    assert flips(found, wanted) <= 5  # of 11,520 pixels
    loss = None if inside else pytest.approx(wanted["loss"], rel=1e-5)
    assert found["loss"] == loss
    assert (tmp_path / "eval_digits_segmentation_onnxruntime" / "predictions.png").is_file()


def test_super_resolution(tmp_path: Path) -> None:
    origin = Origin("wavemix_sisr_144_4_l1", data={"name": "photos_superres"})
    model = Dense(3, scale=2).eval()
    zoo.export(model, "onnx", tmp_path, input_size=(4, 3, 96, 64), origin=origin)
    found = evaluated(f"artefact={tmp_path}")
    wanted, data = judged(model, {"name": "photos_superres", "image_size": [96, 64]})
    assert found["images"] == wanted["images"]
    assert found["preprocessing"]["size"] == [3, 96, 64] == data.eval_preprocessing()["size"]
    for key in ("psnr", "ssim", "bicubic_psnr", "loss"):
        assert found[key] == pytest.approx(wanted[key], rel=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["runtime=executorch"], r"runtime 'executorch' loads a \.pte file, not '.*"),
        (["runtime=onnxrt"], "unknown runtime 'onnxrt'; did you mean 'onnxruntime'"),
        (["weights=x"], "weights=x has no effect on an artefact"),
        (["model.pretrained=true"], "model.pretrained=True has no effect on an artefact"),
        (["model=efficientformer_l1"], "model.name=efficientformer_l1 has no effect"),
        (["fused=true"], "fused=true has no effect"),
        (["device=cpu"], "device=cpu has no effect"),
        (["data.image_size=64"], r"data.image_size=\[64, 64\]: model.onnx takes images of 32x32"),
        (["data.in_chans=1"], "data.in_chans=1: model.onnx takes 3 channels"),
        (["data=digits_segmentation"], "model.onnx is for classification, data.name=digits_segm"),
        (["data.name=digitz"], "did you mean 'digits'"),
        (["out=pyproject.toml/x"], "is not a folder"),
    ],
)
def test_settings_that_cannot_work(given: list[str], message: str, onnx: Path) -> None:
    with pytest.raises(BadInput, match=message) as error:
        evaluated(f"artefact={onnx}", *given)
    assert "\n" not in str(error.value)


def test_a_runtime_is_for_artefacts() -> None:
    with pytest.raises(BadInput, match="runtime=onnxruntime is for artefacts; give artefact"):
        evaluated("runtime=onnxruntime", "weights=x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": None}, "names no data set; give data=<name>"),
        ({"comparison": {"runtime": None}}, "no runtime on this platform loads format 'onnx'"),
        ({"artefact": {"file": "model.onnx", "sha256": "0" * 64}}, "does not match .*model.onnx"),
        ({"input": {"size": [3, 32, 32]}}, "lacks input: shape"),
        ({"model": {"num_classes": 4}}, "knows 4 classes, the data digits has 10"),
        ({"task": "segmentation"}, "is for segmentation, data.name=digits is for classification"),
    ],
)
def test_manifests_that_do_not_fit(change: dict, message: str, onnx: Path, tmp_path: Path) -> None:
    shutil.copy(onnx, tmp_path)
    content = json.loads((onnx.parent / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(content | change))
    with pytest.raises(BadInput, match=message) as error:
        evaluated(f"artefact={tmp_path}")
    assert "\n" not in str(error.value)
    assert len(list(tmp_path.iterdir())) == 2


def test_classes_that_are_not_those_of_the_data(tmp_path: Path) -> None:
    class Few(Dense):
        def forward(self, x):
            return super().forward(x).mean((2, 3))

    origin = Origin("mobilenetv2_035", data={"name": "digits"})
    path = zoo.export(Few(4).eval(), "onnx", tmp_path, input_size=(1, 3, 32, 32), origin=origin)
    with pytest.raises(BadInput, match=r"model\.onnx knows 4 classes, the data digits has 10"):
        evaluated(f"artefact={path.path}")
    model = Few(4).eval()
    model.num_classes = None  # a model from elsewhere says nothing: what it returns does
    zoo.export(model, "onnx", tmp_path / "n", input_size=(1, 3, 32, 32), origin=origin)
    with pytest.raises(
        BadInput, match="returns 4 numbers for an image of 32x32; the data needs 10"
    ):
        evaluated(f"artefact={tmp_path / 'n'}")


def test_an_unknown_normalisation_is_asked_for(tmp_path: Path) -> None:
    class Grey(nn.Sequential):
        num_classes, in_chans = 10, 1

    torch.manual_seed(0)
    model = Grey(nn.Conv2d(1, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    zoo.export(model, "onnx", tmp_path, input_size=(1, 1, 8, 8))
    with pytest.raises(BadInput, match="states no mean; give data.mean"):
        evaluated(f"artefact={tmp_path}", "data=digits")
    given = ["data=digits", "data.mean=[0.5]", "data.std=[0.5]"]
    found = evaluated(f"artefact={tmp_path}", *given)
    assert found["preprocessing"]["size"] == [1, 8, 8]


def test_the_command_itself(plain: dict, onnx: Path, tmp_path: Path) -> None:
    given = [f"artefact={onnx}", "runtime=onnxruntime", f"out={tmp_path / 'out'}"]
    done = subprocess.run(
        [sys.executable, "eval.py", *given], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert f"top1 {plain['top1']['value']:.2%}" in done.stdout
    assert "mobilenetv2_035, onnx float32 in onnxruntime on digits" in done.stdout
