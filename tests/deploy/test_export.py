"""zoo.export: the artefact, its manifest, and that a failed export leaves nothing behind."""

import hashlib
import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from small_nets import SIZE, Net
from torch import nn

import zoo
from zoo.deploy import comparison
from zoo.deploy.manifest import Origin
from zoo.deploy.pipeline import export as export_module
from zoo.deploy.predict import Predictor


class Broken(Net):
    """Its exported program returns other values than the model."""

    def forward(self, x):
        y = super().forward(x)
        return y * 1.01 if torch.compiler.is_exporting() else y


ORIGIN = Origin(
    "mobilenetv2_035",
    {"num_classes": 5},
    class_names=["a", "b", "c", "d", "é"],
    preprocessing={"mean": [0.1, 0.2, 0.3], "crop_pct": 1.0},
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    model = Net().eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    artefact = zoo.export(model, "onnx", folder / "new" / "net", input_size=SIZE, origin=ORIGIN)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    return model, artefact


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_folder_contains_only_the_artefact_its_manifest_and_an_example(made):
    _, artefact = made
    names = ["manifest.json", "model.onnx", "predict_example.py"]
    assert sorted(os.listdir(artefact.path.parent)) == names
    assert artefact.manifest_path == artefact.path.parent / "manifest.json"


def test_the_artefact_runs_with_only_its_manifest(made):
    model, artefact = made
    manifest = read(artefact.manifest_path)
    session = onnxruntime.InferenceSession(artefact.path.parent / manifest["artefact"]["file"])
    for batch in (1, 2, 7):  # 7 was neither traced nor compared
        shape = [batch if n == "batch" else n for n in manifest["input"]["shape"]]
        x = np.random.default_rng(batch).standard_normal(shape).astype(manifest["input"]["dtype"])
        (found,) = session.run(None, {manifest["input"]["name"]: x})
        with torch.no_grad():
            expected = model(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_the_artefact_contains_no_paths_of_this_machine(made):
    content = made[1].path.read_bytes()
    assert str(Path(zoo.__file__).parent).encode() not in content
    assert b"site-packages" not in content


def test_the_content_of_the_manifest(made):
    model, artefact = made
    manifest = read(artefact.manifest_path)
    content = artefact.path.read_bytes()
    assert manifest["artefact"]["sha256"] == hashlib.sha256(content).hexdigest()
    assert manifest["artefact"]["bytes"] == len(content)
    assert manifest["format"] == "onnx"
    assert manifest["model"] == {
        "name": "mobilenetv2_035",
        "args": {"num_classes": 5},
        "class": "Net",
        "num_classes": 5,
        "fused": True,
    }
    assert manifest["class_names"] == ["a", "b", "c", "d", "é"]
    published = zoo.model_info("mobilenetv2_035")["input"]
    stated = {
        "name": "input",
        "shape": ["batch", 3, 16, 20],
        "size": [3, 16, 20],
        "layout": "NCHW",
        "dtype": "float32",
        "channels": "RGB",
        "range": [0.0, 1.0],
        "mean": [0.1, 0.2, 0.3],
        "std": published["std"],
        "normalised_inside": None,
        "interpolation": published["interpolation"],
        "crop_pct": 1.0,
        "resize": "crop",
    }
    # What preparing an image needs besides: tests/deploy/test_manifest.py.
    assert stated.items() <= manifest["input"].items()
    (output,) = manifest["outputs"]
    assert (output["name"], output["shape"]) == ("output", ["batch", 5])
    for package in ("zoo", "torch", "onnx", "onnxscript", "onnxruntime", "python"):
        assert manifest["versions"][package]
    assert manifest["artefact"]["opset"] >= 18
    comparison = manifest["comparison"]
    assert comparison["proven"]
    assert comparison["batch_sizes"] == [1, 2, 3]
    assert 0 < comparison["max_abs_error"] <= comparison["allowed"]
    assert manifest["weights"]["sha256"] is None
    assert len(manifest["weights"]["state_sha256"]) == 64
    assert artefact.manifest["comparison"] == comparison


def test_batch_norms_are_fused_unless_fuse_is_false(made, tmp_path):
    _, artefact = made
    plain = zoo.export(Net().eval(), "onnx", tmp_path / "plain.onnx", input_size=SIZE, fuse=False)
    assert plain.manifest["model"]["fused"] is False
    assert plain.path == tmp_path / "plain.onnx"
    measured = [
        zoo.measure(made.path, SIZE, "onnxruntime", min_runs=6, min_time=0, threads=1).fused
        for made in (plain, artefact)
    ]
    assert measured == [False, True]


def test_a_static_batch_is_static(tmp_path):
    artefact = zoo.export(
        Net().eval(), "onnx", tmp_path, input_size=(4, *SIZE[1:]), dynamic_batch=False, opset=18
    )
    assert artefact.manifest["input"]["shape"] == [4, *SIZE[1:]]
    assert artefact.manifest["outputs"][0]["shape"] == [4, 5]
    assert artefact.agreement.batch_sizes == [4]
    assert artefact.manifest["artefact"]["opset"] == 18


def test_an_artefact_that_does_not_match_the_model_is_deleted(tmp_path):
    target = tmp_path / "a" / "b"
    with pytest.raises(zoo.NotExportable, match="does not match the model"):
        zoo.export(Broken().eval(), "onnx", target, input_size=SIZE)
    assert os.listdir(tmp_path) == []


def test_a_failed_export_keeps_the_older_artefact(tmp_path):
    zoo.export(Net().eval(), "onnx", tmp_path, input_size=SIZE)
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    with pytest.raises(zoo.NotExportable):
        zoo.export(Broken().eval(), "onnx", tmp_path, input_size=SIZE, overwrite=True)
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before


def test_an_interrupted_export_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(comparison, "compare_outputs", interrupted)
    with pytest.raises(KeyboardInterrupt):
        zoo.export(Net().eval(), "onnx", tmp_path / "a", input_size=SIZE)
    assert os.listdir(tmp_path) == []


def test_an_existing_artefact_is_only_replaced_with_overwrite(tmp_path):
    model = Net().eval()
    first = zoo.export(model, "onnx", tmp_path, input_size=SIZE)
    with pytest.raises(zoo.BadInput, match=r"model\.onnx exists; export\.overwrite=true"):
        zoo.export(model, "onnx", tmp_path, input_size=SIZE)
    with pytest.raises(zoo.BadInput, match=r"manifest\.json belongs to another artefact"):
        zoo.export(model, "onnx", tmp_path / "other.onnx", input_size=SIZE, overwrite=True)
    with pytest.raises(zoo.BadInput, match=r"manifest\.json exists"):
        zoo.export(model, "onnx", tmp_path / "other.onnx", input_size=SIZE)
    torch.nn.init.zeros_(model.head.bias)
    second = zoo.export(model, "onnx", tmp_path, input_size=SIZE, overwrite=True)
    assert second.manifest["weights"]["state_sha256"] != first.manifest["weights"]["state_sha256"]
    assert read(second.manifest_path)["artefact"]["sha256"] == second.manifest["artefact"]["sha256"]


def test_a_model_whose_outputs_hardly_vary_is_not_called_equal(tmp_path):
    model = Net().eval()
    nn.init.normal_(model.head.weight, std=1e-7)
    artefact = zoo.export(model, "onnx", tmp_path, input_size=SIZE)
    assert not artefact.agreement.proven
    assert read(artefact.manifest_path)["comparison"]["proven"] is False


def test_a_model_that_needs_a_static_batch_is_refused(tmp_path):
    class Fixed(Net):
        def forward(self, x):
            return super().forward(x) * (1.0 if x.shape[0] == 2 else 2.0)

    with pytest.raises(
        zoo.NotExportable, match=r"Fixed cannot be .*dynamic batch.*set export\.batch to 1"
    ) as e:
        zoo.export(Fixed().eval(), "onnx", tmp_path / "a", input_size=SIZE)
    assert "\n" not in str(e.value)
    assert os.listdir(tmp_path) == []


def test_a_model_that_cannot_be_traced_is_refused(tmp_path):
    class Untraceable(Net):
        def forward(self, x):
            return super().forward(x) * float(np.float32(x.mean().item()))

    with pytest.raises(zoo.NotExportable, match="Untraceable cannot be exported to ONNX: .+") as e:
        zoo.export(Untraceable().eval(), "onnx", tmp_path / "a", input_size=SIZE)
    assert "\n" not in str(e.value)
    assert os.listdir(tmp_path) == []


def test_the_exporter_is_silent(tmp_path, capfd):
    zoo.export(Net().eval(), "onnx", tmp_path, input_size=SIZE)
    assert capfd.readouterr() == ("", "")


def test_several_outputs(tmp_path):
    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stages = nn.ModuleList(nn.Conv2d(3, 3, 3, stride=2) for _ in range(2))

        def forward(self, x):
            features = []
            for stage in self.stages:
                x = stage(x)
                features.append(x)
            return features

    artefact = zoo.export(Pyramid().eval(), "onnx", tmp_path, input_size=SIZE)
    assert [y["name"] for y in artefact.manifest["outputs"]] == ["output_0", "output_1"]
    assert artefact.manifest["outputs"][1]["shape"] == ["batch", 3, 3, 4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "onxx"}, "unknown format 'onxx'; did you mean 'onnx'"),
        ({"format": "tflite"}, "unknown format 'tflite'. Choices: onnx"),
        ({"input_size": (3, 16, 16)}, "B C H W"),
        ({"input_size": None}, "has no default input size"),
        ({"input_size": (1, 4, 16, 16)}, r"does not run on input_size=\(2, 4, 16, 16\)"),
        ({"opset": 3}, "opset=3 must be from 18 to"),
        ({"origin": Origin(class_names=["one"])}, "has 1 names, but the model has 5 classes"),
    ],
)
def test_values_that_cannot_work_are_refused(change, message, tmp_path):
    arguments = {"format": "onnx", "input_size": SIZE, "path": tmp_path / "a", **change}
    with pytest.raises(zoo.BadInput, match=message):
        zoo.export(Net().eval(), **arguments)
    assert os.listdir(tmp_path) == []


def test_a_model_in_training_mode_is_refused(tmp_path):
    model = Net().eval()
    model.body[1].train()
    for fuse in (True, False):
        with pytest.raises(zoo.BadInput, match=r"training mode; call model\.eval\(\)"):
            zoo.export(model, "onnx", tmp_path / "a", input_size=SIZE, fuse=fuse)
    assert os.listdir(tmp_path) == []


def test_a_target_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(zoo.BadInput, match="cannot write to .*file"):
        zoo.export(Net().eval(), "onnx", tmp_path / "file" / "a", input_size=SIZE)
    assert os.listdir(tmp_path) == ["file"]


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(zoo.ZooError, match="pip install onnx onnxscript onnxruntime"):
        zoo.export(Net().eval(), "onnx", tmp_path / "a", input_size=SIZE)
    assert os.listdir(tmp_path) == []


def test_a_registered_model_is_exported_with_the_preprocessing_of_its_facts(tmp_path):
    name = "mobilenetv2_035"
    model = zoo.create_model(name, num_classes=7).eval()
    artefact = zoo.export(
        model, "onnx", tmp_path, input_size=(1, 3, 64, 64), origin=Origin(name=name)
    )
    assert artefact.agreement.proven
    assert artefact.manifest["input"]["mean"] == zoo.model_info(name)["input"]["mean"]


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((None, "onnx", "x"), {}, "model=None is not an nn.Module"),
        (("emo_1m", "onnx", "x"), {}, "model='emo_1m' is not an nn.Module"),
        (([1], "onnx", "x"), {}, "model=list is not an nn.Module"),
        (("net", None, "x"), {}, "unknown format None"),
        (("net", ["onnx"], "x"), {}, r"unknown format \['onnx'\]"),
        (("net", "onnx", None), {}, "path=None is no path"),
        (("net", "onnx", ""), {}, "path='' is no path"),
        (("net", "onnx", 3), {}, "path=3 is no path"),
        (("net", "onnx", "x"), {"input_sise": 3}, "did you mean 'input_size'"),
        (("net", "onnx", "x"), {"input_size": 8}, "must be four positive integers"),
        (("net", "onnx", "x"), {"input_size": "abcd"}, "must be four positive integers"),
        (("net", "onnx", "x"), {"half": None}, "half=None must be True or False"),
        (("net", "onnx", "x"), {"fuse": "no"}, "fuse='no' must be True or False"),
        (("net", "onnx", "x"), {"dynamic_batch": 3}, "dynamic_batch=3 must be True, False or None"),
        (("net", "onnx", "x"), {"opset": "18"}, "opset='18' must be an integer"),
        (("net", "onnx", "x"), {"origin": "me"}, "origin='me' must be a"),
    ],
)
def test_arguments_of_other_types(arguments, options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net = nn.Conv2d(3, 4, 3).eval()
    model, *others = arguments
    options = {"input_size": (1, 3, 8, 8), **options}
    with pytest.raises(zoo.BadInput, match=message):
        export_module(net if model == "net" else model, *others, **options)
    with pytest.raises(zoo.BadInput):
        zoo.quantize(net if model == "net" else model, *others, batches=[], **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("source", [None, 3, [], {"manifest": 1}])
def test_what_is_no_artefact(source):
    with pytest.raises(zoo.BadInput, match="is no path; give a file or a folder"):
        Predictor(source)
