"""Evaluation of artefacts: they repeat the metrics of the checkpoint; errors are one line."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import zoo
from zoo.command_line.composition import run as run_command
from zoo.commands import eval_diagnosis
from zoo.data.create import create_datamodule
from zoo.deploy import files
from zoo.deploy.manifest import Origin
from zoo.errors import BadInput
from zoo.training.tasks import get_task


def evaluated(*overrides: str) -> dict:
    """Return the report of `eval.py`."""
    return run_command("eval", list(overrides))


def exported(run: Path, folder: Path, *overrides: str) -> Path:
    """Export a run and return the path of the artefact."""
    command = [f"weights={run}", f"export.out={folder}", *overrides]
    return run_command("export", command)[0].path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("artefacts")


@pytest.fixture(scope="module")
def plain(whole_run: Path, folder: Path) -> dict:
    return evaluated(f"weights={whole_run}", f"out={folder / 'plain'}")


@pytest.fixture(scope="module")
def onnx(whole_run: Path, folder: Path) -> Path:
    return exported(whole_run, folder / "onnx")


def changed_predictions(a: dict, b: dict) -> int:
    """Return how many images or pixels have another prediction, from the confusion matrices."""
    difference = torch.tensor(a["confusion"]) - torch.tensor(b["confusion"])
    return int(difference.abs().sum()) // 2


def test_an_artefact_repeats_the_metrics_of_its_checkpoint(
    plain: dict, onnx: Path, whole_run: Path
) -> None:
    report = evaluated(f"artefact={onnx.parent}", f"against={whole_run}")
    assert changed_predictions(report, plain) <= 1
    assert report["images"] == plain["images"] == 360
    assert report["loss"] == pytest.approx(plain["loss"], rel=1e-4)
    assert report["preprocessing"] == plain["preprocessing"]
    assert report["changes"]["reference"] == str(whole_run)
    assert changed_predictions(report, plain) <= report["changes"]["flipped"] <= 5
    assert report["model"] == "mobilenetv2_035"
    assert (report["runtime"], report["format"]) == ("onnxruntime", "onnx")
    assert (report["precision"], report["fused"]) == ("float32", True)
    written = onnx.parent / "eval_digits_onnxruntime"
    assert json.loads((written / "report.json").read_text()) == report
    assert {file.name for file in written.iterdir()} >= {"classes.csv", "confusion.png"}


def test_the_checkpoint_of_an_artefact_is_found_above_it(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run" / "checkpoints" / "best.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"weights")
    file = tmp_path / "run" / "export" / "onnx" / "model.onnx"
    manifest = {"weights": {"file": "best.ckpt", "sha256": files.sha256(checkpoint)}}
    found = eval_diagnosis.own_checkpoint(file, manifest)
    assert found is not None
    assert Path(found).resolve() == checkpoint.resolve()
    checkpoint.write_bytes(b"other weights")
    assert eval_diagnosis.own_checkpoint(file, manifest) is None
    assert eval_diagnosis.own_checkpoint(file, {}) is None


def test_an_artefact_in_another_runtime(plain: dict, onnx: Path, tmp_path: Path) -> None:
    report = evaluated(f"artefact={onnx}", "runtime=openvino", f"out={tmp_path / 'o'}")
    assert report["runtime"] == "openvino"
    assert changed_predictions(report, plain) <= 1


@pytest.mark.parametrize(
    "overrides",
    [
        ["format=onnx", "export.batch=7"],  # 360 images are not a multiple of 7
        ["format=torchscript", "export.preprocess=true", "export.postprocess=true"],
        ["format=onnx", "export.preprocess=true", "export.batch=50"],
    ],
    ids=["static batch", "bytes and probabilities", "bytes in a static batch"],
)
def test_artefacts_with_other_inputs_and_outputs(
    overrides: list[str], plain: dict, whole_run: Path, tmp_path: Path
) -> None:
    artefact = exported(whole_run, tmp_path, *overrides)
    report = evaluated(f"artefact={artefact}")
    assert changed_predictions(report, plain) <= 1
    assert report["loss"] == pytest.approx(plain["loss"], rel=1e-3)
    assert report["top5"]["value"] == pytest.approx(plain["top5"]["value"], abs=1 / 360)


def test_data_on_the_command_line_overrides_the_manifest(
    onnx: Path, plain: dict, tmp_path: Path
) -> None:
    """The same images, read from a folder, with the preprocessing of the manifest."""
    source = create_datamodule({"name": "digits", "image_size": 32}, batch_size=8).source("val")
    for index, label in enumerate(source.labels):
        class_folder = tmp_path / "val" / str(label)
        class_folder.mkdir(parents=True, exist_ok=True)
        source.image(index).save(class_folder / f"{index}.png")
    overrides = [f"artefact={onnx}", "data=folder", f"data.root={tmp_path}", "data.num_workers=0"]
    report = evaluated(*overrides, f"out={tmp_path / 'o'}")
    assert changed_predictions(report, plain) <= 1
    assert report["preprocessing"] == plain["preprocessing"]


class Dense(nn.Module):
    """A model for segmentation, or for super-resolution if `scale` is 2."""

    in_chans = 3

    def __init__(self, num_classes: int, scale: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.num_classes = num_classes
        self.mix = nn.Conv2d(3, num_classes * scale**2, 3, padding=1)
        self.shuffle = nn.PixelShuffle(scale)

    def forward(self, x):
        return self.shuffle(self.mix(x))


SCENES = {"name": "digits_segmentation", "val_images": 5}


def export_segmentation(folder: Path, **kwargs) -> Path:
    """Export a segmentation model and return the path of the artefact."""
    origin = Origin(
        "wavemix_seg_192_16_l3_cityscapes",
        preprocessing={"mean": [0.4, 0.5, 0.6], "std": [0.3, 0.2, 0.3]},
        data=SCENES,
    )
    arguments = {"input_size": (1, 3, 48, 48), "origin": origin, **kwargs}
    return zoo.export(Dense(11).eval(), "onnx", folder, **arguments).path


def report_of_model(model: nn.Module, settings: dict) -> tuple[dict, object]:
    """Return the report of a PyTorch model, and the data module."""
    data = create_datamodule(settings, batch_size=2)
    data.setup("validate")
    task = get_task(data.task)
    result = task.validate(model.eval(), data.val_dataloader(), data, torch.device("cpu"))
    return task.report(result, data), data


@pytest.mark.parametrize("inside", [False, True])
def test_segmentation_artefact(inside: bool, tmp_path: Path) -> None:
    path = export_segmentation(tmp_path, preprocess=inside, postprocess=inside)
    report = evaluated(f"artefact={path}")
    expected, _ = report_of_model(
        Dense(11), {**SCENES, "mean": [0.4, 0.5, 0.6], "std": [0.3, 0.2, 0.3]}
    )
    assert report["images"] == 5
    assert report["mean_iou"] == pytest.approx(expected["mean_iou"], abs=1e-3)
    assert changed_predictions(report, expected) <= 5  # of 11,520 pixels
    loss = None if inside else pytest.approx(expected["loss"], rel=1e-5)
    assert report["loss"] == loss
    assert (tmp_path / "eval_digits_segmentation_onnxruntime" / "predictions.png").is_file()


def test_super_resolution_artefact(tmp_path: Path) -> None:
    origin = Origin("wavemix_sisr_144_4_l1", data={"name": "photos_superres"})
    model = Dense(3, scale=2).eval()
    zoo.export(model, "onnx", tmp_path, input_size=(4, 3, 96, 64), origin=origin)
    report = evaluated(f"artefact={tmp_path}")
    expected, data = report_of_model(model, {"name": "photos_superres", "image_size": [96, 64]})
    assert report["images"] == expected["images"]
    assert report["preprocessing"]["size"] == [3, 96, 64] == data.eval_preprocessing()["size"]
    for key in ("psnr", "ssim", "bicubic_psnr", "loss"):
        assert report[key] == pytest.approx(expected[key], rel=1e-5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["runtime=executorch"], r"runtime 'executorch' loads a \.pte file, not '.*"),
        (["runtime=onnxrt"], "unknown runtime 'onnxrt'; did you mean 'onnxruntime'"),
        (["weights=x"], "weights=x has no effect on an artefact"),
        (["model.pretrained=true"], "model.pretrained=True has no effect on an artefact"),
        (["model=efficientformer_l1"], "model.name=efficientformer_l1 has no effect"),
        (["fused=true"], "fused=true has no effect"),
        (["device=cpu"], "device=cpu has no effect"),
        (
            ["data.image_size=64"],
            r"data.image_size=\[64, 64\]: model.onnx only takes images of 32x32",
        ),
        (["data.in_chans=1"], "data.in_chans=1: model.onnx takes 3 channels"),
        (["data=digits_segmentation"], "model.onnx is for classification, but data.name=digits_s"),
        (["data.name=digitz"], "did you mean 'digits'"),
        (["out=pyproject.toml/x"], "is not a folder"),
    ],
)
def test_invalid_settings_are_rejected(overrides: list[str], message: str, onnx: Path) -> None:
    with pytest.raises(BadInput, match=message) as error:
        evaluated(f"artefact={onnx}", *overrides)
    assert "\n" not in str(error.value)


def test_a_runtime_without_an_artefact_is_an_error() -> None:
    with pytest.raises(BadInput, match="runtime=onnxruntime has no effect without artefact=<file>"):
        evaluated("runtime=onnxruntime", "weights=x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": None}, "does not name a data set; give data=<name>"),
        ({"comparison": {"runtime": None}}, "no runtime on this platform loads format 'onnx'"),
        ({"artefact": {"sha256": "0" * 64}}, "does not match .*model.onnx"),
        ({"input": {"size": [3, 48, 48]}}, "does not fit input.shape"),
        ({"model": {"num_classes": 4}}, "(num_classes is|does not fit) 4"),
        ({"task": "segmentation"}, "but it must be fit"),
    ],
)
def test_invalid_manifests_are_rejected(
    change: dict, message: str, onnx: Path, tmp_path: Path
) -> None:
    shutil.copy(onnx, tmp_path)
    content = json.loads((onnx.parent / "manifest.json").read_text())
    for key, value in change.items():
        content[key] = {**content[key], **value} if isinstance(value, dict) else value
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(BadInput, match=message) as error:
        evaluated(f"artefact={tmp_path}")
    assert "\n" not in str(error.value)
    assert len(list(tmp_path.iterdir())) == 2


def test_an_artefact_with_other_classes_than_the_data_is_rejected(tmp_path: Path) -> None:
    class Few(Dense):
        def forward(self, x):
            return super().forward(x).mean((2, 3))

    origin = Origin("mobilenetv2_035", data={"name": "digits"})
    path = zoo.export(Few(4).eval(), "onnx", tmp_path, input_size=(1, 3, 32, 32), origin=origin)
    with pytest.raises(BadInput, match=r"model\.onnx has 4 classes, but data\.name=digits has 10"):
        evaluated(f"artefact={path.path}")
    model = Few(4).eval()
    model.num_classes = None  # as for a model of another package: its output is checked
    zoo.export(model, "onnx", tmp_path / "n", input_size=(1, 3, 32, 32), origin=origin)
    with pytest.raises(
        BadInput, match="returns 4 numbers for an image of 32x32, but the data needs 10"
    ):
        evaluated(f"artefact={tmp_path / 'n'}")


def test_a_manifest_without_normalisation_needs_data_mean_and_std(tmp_path: Path) -> None:
    class Grey(nn.Sequential):
        num_classes, in_chans = 10, 1

    torch.manual_seed(0)
    model = Grey(nn.Conv2d(1, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    zoo.export(model, "onnx", tmp_path, input_size=(1, 1, 8, 8))
    with pytest.raises(BadInput, match="has no mean; give data.mean"):
        evaluated(f"artefact={tmp_path}", "data=digits")
    overrides = ["data=digits", "data.mean=[0.5]", "data.std=[0.5]"]
    report = evaluated(f"artefact={tmp_path}", *overrides)
    assert report["preprocessing"]["size"] == [1, 8, 8]


def test_the_script_prints_the_result(plain: dict, onnx: Path, tmp_path: Path, script) -> None:
    overrides = [f"artefact={onnx}", "runtime=onnxruntime", f"out={tmp_path / 'out'}"]
    done = script("eval", *overrides)
    assert done.returncode == 0, done.stderr
    assert f"top1 {plain['top1']['value']:.2%}" in done.stdout
    assert "mobilenetv2_035, onnx float32 in onnxruntime on digits" in done.stdout
