"""export.py: from the command line to a model, its weights and an artefact."""

import hashlib
import os
import re

import pytest
import torch

import zoo
from zoo.command_line.composition import parse
from zoo.command_line.composition import run as run_command
from zoo.commands.export import load_model, output_path
from zoo.deploy.manifest import Origin

MODEL = "mobilenetv2_035"
ARGUMENTS = {"name": MODEL, "num_classes": 3, "in_chans": 3, "drop_rate": 0.1}
PREPARED = {
    "size": [3, 32, 48],
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
    "interpolation": "bilinear",
    "crop_pct": 1.0,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A run folder with a checkpoint as train.py writes it, and the model."""
    folder = tmp_path_factory.mktemp("run")
    model = zoo.create_model(**ARGUMENTS)
    content = {
        "format": "zoo.checkpoint/1",
        "state_dict": model.state_dict(),
        "model": ARGUMENTS,
        "data": {"class_names": ["cat", "dog", "owl"], "num_classes": 3, "preprocessing": PREPARED},
    }
    (folder / "checkpoints").mkdir()
    torch.save(content, folder / "checkpoints" / "best.ckpt")
    return folder, model.eval()


def test_a_run_is_exported_with_its_classes_and_preprocessing(checkpoint, tmp_path, capfd):
    folder, _ = checkpoint
    out = tmp_path / "out"
    overrides = [f"model={MODEL}", f"weights={folder}", f"export.out={out}"]
    (artefact,) = run_command("export", overrides)
    manifest = artefact.manifest
    assert manifest["model"]["name"] == MODEL
    assert manifest["model"]["num_classes"] == 3
    assert manifest["model"]["args"]["num_classes"] == 3
    assert manifest["class_names"] == ["cat", "dog", "owl"]
    assert manifest["input"]["shape"] == ["batch", 3, 32, 48]
    for key in ("mean", "std", "interpolation", "crop_pct"):
        assert manifest["input"][key] == PREPARED[key]
    file = folder / "checkpoints" / "best.ckpt"
    assert manifest["weights"]["file"] == "best.ckpt"
    assert manifest["weights"]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    printed, chatter = capfd.readouterr()
    assert printed.startswith(f"{MODEL} (fused) -> {out}/model.onnx")
    assert printed.splitlines()[4:] == [f"next: zoo predict {out} photo.jpg"]
    assert re.search(r", \d+ nodes$", printed.splitlines()[0])
    assert re.search(
        r"latency of 1 image in onnxruntime, 1 thread: median \d+\.\d{2,4} ms", printed
    )
    assert chatter == ""


def test_the_exported_weights_are_those_of_the_checkpoint(checkpoint):
    folder, trained = checkpoint
    _, model, origin = load_model(*parse("export", [f"model={MODEL}", f"weights={folder}"]))
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(x), trained(x))
    assert not model.training
    assert origin.args["drop_rate"] == 0.1


def test_a_run_names_its_own_model(checkpoint):
    settings, explicit = parse("export", [f"weights={checkpoint[0]}"])
    assert settings.model.name != MODEL
    _, model, origin = load_model(settings, explicit)
    assert origin.name == MODEL
    assert model.num_classes == 3


def test_a_file_with_only_weights(checkpoint, tmp_path):
    _, trained = checkpoint
    torch.save(trained.state_dict(), tmp_path / "w.pth")
    overrides = [f"model={MODEL}", f"weights={tmp_path}/w.pth", "model.num_classes=3"]
    _, model, origin = load_model(*parse("export", overrides))
    state = trained.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert origin.class_names is None


def test_preprocessing_that_the_user_sets_is_that_of_the_artefact(checkpoint, tmp_path):
    torch.save(checkpoint[1].state_dict(), tmp_path / "w.pth")
    overrides = [f"model={MODEL}", f"weights={tmp_path}/w.pth", "model.num_classes=3"]
    chosen = ["data.mean=[0.1,0.2,0.3]", "data.std=[0.4,0.5,0.6]", "data.crop_pct=0.95"]
    out = f"export.out={tmp_path}/out"
    (artefact,) = run_command(
        "export", [*overrides, *chosen, out, "format=torchscript", "export.image_size=32"]
    )
    found = artefact.manifest["input"]
    assert (found["mean"], found["std"]) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert found["crop_pct"] == 0.95
    assert found["interpolation"] == zoo.model_info(MODEL)["input"]["interpolation"]


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ([f"model={MODEL}", "data.mean=[0.5]"], zoo.BadInput, "must have 3 numbers"),
        ([f"model={MODEL}", "data.std=[0.5,0,0.5]"], zoo.BadInput, "data.std=.* above 0"),
        ([f"model={MODEL}", "data.interpolation=cubic"], zoo.BadInput, "data.interpolation"),
        ([f"model={MODEL}", "data.hflip=0.5"], zoo.BadInput, "data.hflip has no effect"),
        (
            ["model=efficientformer_l1", "weights={run}"],
            zoo.BadWeights,
            f"is a checkpoint of {MODEL}, not of",
        ),
        ([f"model={MODEL}", "weights={run}", "model.num_classes=9"], zoo.BadWeights, "3"),
        ([f"model={MODEL}", "weights={run}/absent.pth"], zoo.BadWeights, "absent.pth"),
        (
            [f"model={MODEL}", "weights={run}", "model.pretrained=true"],
            zoo.BadInput,
            "give only one of them",
        ),
        ([f"model={MODEL}", "format=onxx"], zoo.BadInput, "did you mean 'onnx'"),
        ([f"model={MODEL}", "export.batch=some"], zoo.BadInput, "export.batch=some must be"),
        ([f"model={MODEL}", "export.batch=0"], zoo.BadInput, "export.batch=0"),
        ([f"model={MODEL}", "export.image_size=[3,4,5]"], zoo.BadInput, "export.image_size"),
        ([f"model={MODEL}", "export.image_size=wide"], zoo.BadInput, "export.image_size"),
        (["model=timm/vit_tiny_patch16_224", "export.image_size=100"], zoo.BadInput, "100"),
    ],
)
def test_values_that_cannot_work_are_refused(
    overrides, error, message, checkpoint, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    overrides = [word.format(run=checkpoint[0]) for word in overrides]
    with pytest.raises(error, match=message) as caught:
        run_command("export", overrides)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_random_weights_are_a_warning(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    overrides = [f"model={MODEL}", "export.image_size=32", "export.batch=2", "export.fuse=false"]
    (artefact,) = run_command("export", overrides)
    assert artefact.path.as_posix() == f"artefacts/{MODEL}_32/onnx/model.onnx"
    assert artefact.manifest["input"]["shape"] == [2, 3, 32, 32]
    printed, warned = capsys.readouterr()
    assert f"{MODEL} (unfused, random weights)" in printed
    assert warned.startswith("warning: the weights are random; give weights=<run or file>")
    assert printed.splitlines()[-1] == f"next: zoo predict artefacts/{MODEL}_32/onnx photo.jpg"


@pytest.mark.parametrize(
    ("overrides", "several", "expected"),
    [
        ([], False, "artefacts/emo_1m/onnx"),
        (["quantize.int8=true"], False, "artefacts/emo_1m/onnx_int8"),
        (["export.half=true"], True, "artefacts/emo_1m/onnx_half"),
        (["export.image_size=[128,96]"], False, "artefacts/emo_1m_128x96/onnx"),
        (["export.image_size=64", "quantize.int8=true"], True, "artefacts/emo_1m_64/onnx_int8"),
        (["export.out=a"], False, "a"),
        (["export.out=a"], True, "a/onnx"),
    ],
)
def test_each_variant_has_a_default_folder_of_its_own(overrides, several, expected):
    settings, _ = parse("export", overrides)
    origin = Origin("emo_1m", {})
    assert output_path(settings, origin, "onnx", several=several).as_posix() == expected


def test_artefacts_of_a_run_are_in_its_folder(tmp_path):
    settings, _ = parse("export", ["quantize.int8=true"])
    weights = tmp_path / "run/checkpoints/best.ckpt"
    origin = Origin("emo_1m", {}, weights=weights, data={"name": "digits"})
    path = output_path(settings, origin, "openvino", several=False)
    assert path == tmp_path / "run/export/openvino_int8"
    settings, _ = parse("export", [])  # trained in int8
    path = output_path(settings, origin, "openvino", several=False, is_int8=True)
    assert path == tmp_path / "run/export/openvino_int8"


def test_the_command(checkpoint, tmp_path, script, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = script("export", f"weights={checkpoint[0]}", "export.out=out")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{MODEL} (fused) -> out/model.onnx")
    assert done.stdout.splitlines()[4:] == ["next: python -m zoo predict out photo.jpg"]
    phases = [line.partition("] ")[2] for line in done.stderr.splitlines()]
    assert phases[-5:] == [
        "building the model",
        "fusing",
        "tracing, and writing onnx",
        "comparing 18 images of 32x48 in onnxruntime",
        "timing",
    ]
    message = r"^out/model\.onnx exists; export\.overwrite=true replaces it$"
    with pytest.raises(zoo.BadInput, match=message):
        run_command("export", [f"weights={checkpoint[0]}", "export.out=out"])
    assert os.listdir(tmp_path) == ["out"]
