"""export.py quantize.int8=true, and the same in Python: report, manifest, mistakes."""

import hashlib
import json
import os

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

import zoo
from zoo.cli import execute as main
from zoo.command_line.composition import run as run_command
from zoo.compression import sensitivity
from zoo.compression.calibration import arrays, calibration
from zoo.compression.int8 import quantize
from zoo.compression.int8_report import table
from zoo.data.create import create_datamodule
from zoo.reparam import randomize_parameters
from zoo.settings import DataConfig
from zoo.training.tasks import get_task

MODEL = "mobilenetv2_035"
SIDE = 32
PREPARED = {
    "size": [3, SIDE, SIDE],
    "mean": [0.5, 0.4, 0.3],
    "std": [0.25, 0.3, 0.2],
    "interpolation": "bilinear",
    "crop_pct": 1.0,
}


class Net(torch.nn.Module):
    """Small, with two stages."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        stages = (torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.Conv2d(8, 8, 3, stride=2))
        self.stages = torch.nn.ModuleList(torch.nn.Sequential(conv) for conv in stages)
        self.head = torch.nn.Linear(8, 4)

    def forward(self, x):
        for stage in self.stages:
            x = stage(x).relu()
        return self.head(x.mean((2, 3)))


def checkpoint(folder, classes: int = 10):
    """Write a run folder with the checkpoint that train.py would leave; its weights are shaken."""
    arguments = {"name": MODEL, "num_classes": classes, "in_chans": 3}
    model = randomize_parameters(zoo.create_model(**arguments))
    content = {
        "format": "zoo.checkpoint/1",
        "state_dict": model.state_dict(),
        "model": arguments,
        "config": {"model": {"name": MODEL}, "data": {"name": "digits"}},
        "data": {
            "class_names": [str(i) for i in range(classes)],
            "num_classes": classes,
            "preprocessing": PREPARED,
        },
    }
    (folder / "checkpoints").mkdir()
    torch.save(content, folder / "checkpoints" / "best.ckpt")
    return folder


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def made(run_folder, tmp_path_factory):
    """An artefact with two layers in float, and what was printed."""
    out = tmp_path_factory.mktemp("made") / "out"
    asked = [f"weights={run_folder}", f"export.out={out}", "quantize.int8=true",
             "quantize.images=48", "quantize.keep_float=2"]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sensitivity, "HELD", 16)
        (artefact,) = run_command("export", asked)
    return artefact


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def validation():
    data = create_datamodule(
        DataConfig(name="digits", image_size=SIDE),
        batch_size=90,
        **{key: value for key, value in PREPARED.items() if key != "size"},
    )
    data.setup("validate")
    return data


def test_what_is_left(made):
    folder = made.path.parent
    assert sorted(os.listdir(folder)) == [
        "manifest.json", "model.onnx", "predict_example.py", "quantization.json", "sensitivity.csv",
        "sensitivity.json",
    ]  # fmt: skip
    manifest = read(folder / "manifest.json")
    assert manifest["precision"] == "int8"
    assert manifest["artefact"]["sha256"] == hashlib.sha256(made.path.read_bytes()).hexdigest()
    assert read(folder / "quantization.json") == manifest["quantization"]
    assert manifest["quantization"]["artefact_sha256"] == manifest["artefact"]["sha256"]
    assert manifest["comparison"]["runtime"] == "onnxruntime"
    assert not manifest["comparison"]["proven"]
    assert "float artefact" in manifest["comparison"]["compared_with"]
    assert manifest["comparison"]["float"]["proven"]
    assert manifest["model"]["fused"]


def test_the_worst_layers_stay_in_float(made):
    about = made.manifest["quantization"]
    rows = read(made.path.parent / "sensitivity.json")
    assert len(rows) == about["layers"] == 53
    assert set(about["keep_float"]) == {row["layer"] for row in rows[:2]}
    import onnx

    integers = [t for t in onnx.load(made.path).graph.initializer if t.data_type == 3
                and len(t.dims) > 1]  # fmt: skip
    assert len(integers) == 51


def test_the_report_is_what_the_bare_runtime_finds(made):
    about, data = made.manifest["quantization"], validation()
    session = onnxruntime.InferenceSession(made.path, providers=["CPUExecutionProvider"])
    right = count = 0
    for images, labels in data.val_dataloader():
        (logits,) = session.run(None, {"input": images.numpy()})
        right += int((logits.argmax(1) == labels.numpy()).sum())
        count += len(labels)
    assert about["evaluated_on"] == count == 360
    assert about["calibrated_on"] == 48
    assert about["data"] == "digits"
    assert about["score"]["int8"] == pytest.approx(right / count)
    assert about["score"]["lost"] == about["score"]["float"] - about["score"]["int8"]
    assert about["metrics"]["int8"]["top1"] == about["score"]["int8"]
    assert 0.5 < about["agreement"]["value"] <= 1
    assert about["bytes"]["int8"] == made.path.stat().st_size
    assert about["bytes"]["ratio"] == about["bytes"]["int8"] / about["bytes"]["float"] < 0.7
    assert about["latency"]["ratio"] > 0


def test_the_report_is_printed(made):
    lines = table(made.manifest["quantization"]).splitlines()
    assert [line.split()[0].rstrip(",") for line in lines[1:]] == [
        "top-1", "agreement", "size", "latency"
    ]  # fmt: skip
    score = made.manifest["quantization"]["score"]
    assert f"{score['int8']:.2%}" in lines[1]
    drop = made.manifest["quantization"]["drop"]
    assert 100 * score["lost"] == pytest.approx(drop["points"])
    half = (drop["high"] - drop["low"]) / 2
    assert f"{0 - drop['points']:+.2f} ± {half:.2f} points on 360 images" in lines[1]


def test_it_predicts(made, tmp_path, capsys):
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "x.png")
    main(["predict", str(made.path.parent), str(tmp_path / "x.png")])
    assert "c" in capsys.readouterr().out


def test_bytes_go_in_and_probabilities_come_out(run_folder, tmp_path, capsys):
    asked = [f"weights={run_folder}", f"export.out={tmp_path}", "quantize.int8=true",
             "quantize.images=16", "export.preprocess=true", "export.postprocess=true",
             "export.batch=3"]  # fmt: skip
    (artefact,) = run_command("export", asked)
    about = artefact.manifest["quantization"]
    assert artefact.manifest["input"]["dtype"] == "uint8"
    assert artefact.manifest["input"]["shape"] == [3, 3, SIDE, SIDE]
    assert about["agreement"]["value"] > 0.5
    assert about["evaluated_on"] == 360
    printed = capsys.readouterr().out
    assert printed.startswith(f"{MODEL} (fused) -> {artefact.path}")
    assert "int8: 53 of 53 layers; calibrated on 16 training images of digits" in printed
    assert "no better than chance" in printed, "shaken weights know nothing of digits"


def test_in_python_without_data(tmp_path):
    model = Net().eval()
    images = np.random.default_rng(0).standard_normal((8, 3, SIDE, SIDE)).astype(np.float32)
    options = {"batches": [images], "input_size": (1, 3, SIDE, SIDE)}
    artefact = quantize(model, "onnx", tmp_path, keep_float=["stages.0"], **options)
    about = artefact.manifest["quantization"]
    assert "score" not in about
    assert about["keep_float"] == ["stages.0.0"]
    assert (about["layers"], about["int8_layers"]) == (3, 2)
    sums = about["integer_sums"]
    assert "every processor" in sums["holds_for"]
    assert sums["check"]["largest_pair"] <= 128
    assert sums["check"]["images"] == 4
    assert sums["check"]["sums"] > 0 == sums["check"]["could_saturate"]
    assert sums["check"]["runtime_snr_db"] > 20
    assert about["calibrated_on"] == 8
    assert table(about)
    with pytest.raises(zoo.BadInput, match=r"model\.onnx exists"):
        quantize(model, "onnx", tmp_path, **options)
    with pytest.raises(zoo.BadInput, match="batches of 8x3x32x32: the artefact takes 2x3x32x32"):
        quantize(model, "onnx", tmp_path / "b", batches=[images], dynamic_batch=False,
                 input_size=(2, 3, SIDE, SIDE))  # fmt: skip
    with pytest.raises(zoo.BadInput, match="'stages.9' is not a convolution, a linear layer"):
        quantize(model, "onnx", tmp_path / "b", keep_float=["stages.9"], **options)
    assert os.listdir(tmp_path) != []
    assert not (tmp_path / "b").exists()
    zoo.export(model, "onnx", tmp_path, input_size=(1, 3, SIDE, SIDE), overwrite=True)
    assert not (tmp_path / "quantization.json").exists(), "it spoke of the artefact that is gone"


@pytest.mark.parametrize("name", ["digits_segmentation", "photos_superres"])
def test_maps_are_judged_by_their_own_score(name, tmp_path):
    settings = {"val_images": 8} if "seg" in name else {}
    data = create_datamodule(DataConfig(name=name, image_size=SIDE, **settings), batch_size=4)
    data.setup("validate")
    torch.manual_seed(0)
    if data.task == "segmentation":
        model = torch.nn.Conv2d(3, data.num_classes, 3, padding=1)
    else:  # what is next to copying each pixel four times
        model = torch.nn.Sequential(torch.nn.Conv2d(3, 12, 1), torch.nn.PixelShuffle(2))
        std, mean = torch.tensor(data.std), torch.tensor(data.mean)
        with torch.no_grad():
            model[0].weight.copy_(torch.diag(std).repeat_interleave(4, 0)[..., None, None])
            model[0].bias.copy_(mean.repeat_interleave(4))
    artefact = quantize(
        model.eval(),
        "onnx",
        tmp_path,
        batches=arrays(calibration(data, 16), data),
        data=data,
        input_size=(1, 3, SIDE, SIDE),
    )
    about = artefact.manifest["quantization"]
    plain = get_task(data.task).validate(model, data.val_dataloader(), data, torch.device("cpu"))
    assert about["evaluated_on"] == plain.images
    assert about["score"]["float"] == pytest.approx(plain.score, rel=1e-3)
    assert about["score"]["int8"] == pytest.approx(plain.score, rel=0.05)
    assert about["score"]["int8"] != about["score"]["float"]
    line, agreement = table(about).splitlines()[1:3]
    if data.task == "segmentation":
        assert line.startswith("mean IoU")
        assert 0.9 < about["agreement"]["value"] < 1
    else:
        assert line.startswith("PSNR, dB")
        assert f"{about['score']['int8']:.2f}" in line
        assert 35 < about["agreement"]["value"] < 70
        assert "dB" in agreement


@pytest.mark.parametrize(
    ("asked", "error", "said"),
    [
        (["quantize.int8=true", "quantize.images=0"], zoo.BadInput, "quantize.images=0"),
        (["quantize.int8=true", "quantize.keep_float=-1"], zoo.BadInput, "keep_float=-1"),
        (
            ["quantize.int8=true", "quantize.ranges=best"],
            zoo.BadInput,
            "unknown quantize.ranges 'best'",
        ),
        (
            ["quantize.int8=true", "quantize.repairs=[x]"],
            zoo.BadInput,
            "unknown quantize.repairs 'x'",
        ),
        (["quantize.int8=true", "quantize.max_drop=-1"], zoo.BadInput, "quantize.max_drop=-1"),
        (
            ["quantize.int8=true", "quantize.max_drop=1", "quantize.keep_float=2"],
            zoo.BadInput,
            "leave one out",
        ),
        (["quantize.max_drop=1"], zoo.BadInput, "quantize.max_drop has no effect without"),
        (["quantize.images=8"], zoo.BadInput, "quantize.images has no effect without quantize.int"),
        (["data.image_size=32"], zoo.BadInput, "data.image_size has no effect without quantize"),
        (["quantize.int8=true", "export.half=true"], zoo.BadInput, "two precisions"),
        (["quantize.int8=true", "format=pt2"], zoo.NotExportable, "float kernels"),
        (["quantize.int8=true", "format=coreml"], zoo.NotExportable, "choose onnx, openvino"),
        (["quantize.int8=true", "data.image_size=64"], zoo.BadInput, "set export.image_size"),
        (["quantize.int8=true", "data.in_chans=1"], zoo.BadInput, "data.in_chans=1"),
        (
            ["quantize.int8=true", "data=photos_superres"],
            zoo.BadInput,
            "is for classification, but",
        ),
        (["quantize.int8=true", "data=folder", "data.root=/absent"], zoo.BadInput, "/absent"),
    ],
)
def test_mistakes_are_one_line(asked, error, said, run_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = [f"weights={run_folder}", *asked]
    with pytest.raises(error, match=said) as caught:
        run_command("export", asked)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_fresh_weights_need_the_classes_of_the_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = [f"model={MODEL}", "quantize.int8=true", "export.image_size=32"]
    with pytest.raises(zoo.BadInput, match="model.num_classes=10 for random weights"):
        run_command("export", asked)
    assert os.listdir(tmp_path) == []
