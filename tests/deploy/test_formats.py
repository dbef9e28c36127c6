"""Every format: its files run without this package and return what the model returns."""

import importlib.util
import json
import os
import resource
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from small_nets import SIZE, Net
from torch import nn

import zoo
from zoo import runtimes
from zoo.command_line.composition import run as run_command
from zoo.deploy import files, formats
from zoo.deploy.manifest import Origin
from zoo.runtimes.openvino import core

MODEL = "mobilenetv2_035"


class Dense(Net):
    """Logits for each pixel."""

    def forward(self, x):
        return self.head(self.body(x).movedim(1, 3)).movedim(3, 1)


class FixedSize(Net):
    """Has a parameter with one entry per pixel, so that only one size works."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, 3, 16, 20))

    def forward(self, x):
        return super().forward(x + self.table)


def export(model, format, folder, **kwargs):
    return zoo.export(model.eval(), format, folder, input_size=SIZE, **kwargs)


def random_images(batch, size=SIZE[2:]):
    return np.random.default_rng(batch).standard_normal((batch, 3, *size)).astype(np.float32)


def run_outside_the_package(artefact, x):
    """Run an artefact with its runtime only."""
    path = str(artefact.path)
    if path.endswith(".onnx"):
        import onnxruntime

        session = onnxruntime.InferenceSession(path)
        return session.run(None, {artefact.manifest["input"]["name"]: x})[0]
    if path.endswith(".xml"):
        settings = {"INFERENCE_PRECISION_HINT": "f32"}
        return core().compile_model(path, "CPU", settings)(x)[0]
    with torch.no_grad():
        if path.endswith(".aoti.pt2"):
            return torch._inductor.aoti_load_package(path)(torch.from_numpy(x)).numpy()
        if path.endswith(".pt2"):
            return torch.export.load(path).module()(torch.from_numpy(x)).numpy()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch.jit is called deprecated
            return torch.jit.load(path)(torch.from_numpy(x)).numpy()


DYNAMIC = ["onnx", "openvino", "pt2", "torchscript"]


@pytest.mark.parametrize("format", DYNAMIC)
def test_dynamic_batch_and_size(format, tmp_path):
    model = Net().eval()
    made = export(model, format, tmp_path, dynamic_size=True)
    assert made.manifest["input"]["shape"] == ["batch", 3, "height", "width"]
    assert made.manifest["input"]["multiple"] == 1
    assert made.manifest["comparison"]["sizes"] == [[16, 20], [64, 96], [65, 97]]
    assert made.manifest["comparison"]["proven"]
    assert files.read(tmp_path) == (made.path, json.loads(made.manifest_path.read_text()))
    for batch, size in ((1, (16, 20)), (5, (41, 23))):  # neither traced nor compared
        x = random_images(batch, size)
        with torch.no_grad():
            expected = model(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(run_outside_the_package(made, x), expected, rtol=0, atol=1e-5)


def test_compiled_code_runs(tmp_path, monkeypatch):
    from torch._inductor import config

    # Compiling headers in advance pays for many programs.
    monkeypatch.setattr(config.aot_inductor, "precompile_headers", False)
    model = Net().eval()
    made = export(model, "aoti", tmp_path)
    assert made.path.name == "model.aoti.pt2"
    assert made.manifest["comparison"]["runtime"] == "aoti"
    assert runtimes.load(made.path, "aoti").input_dtype is torch.float32  # from its metadata
    x = random_images(4)
    with torch.no_grad():
        np.testing.assert_allclose(
            run_outside_the_package(made, x), model(torch.from_numpy(x)).numpy(), atol=1e-5
        )


def test_executorch_files_have_a_static_shape(tmp_path):
    made = export(Net(), "executorch", tmp_path)
    assert made.manifest["input"]["shape"] == list(SIZE)
    assert made.manifest["comparison"]["proven"]
    (output,) = made.manifest["outputs"]
    assert (output["name"], output["shape"]) == ("output", [1, 5])


def test_core_ml_files_are_converted_but_not_compared(tmp_path):
    pytest.importorskip("coremltools")
    made = export(Net(), "coreml", tmp_path)
    assert made.path.is_dir()
    assert made.agreement is None
    comparison = made.manifest["comparison"]
    assert comparison["runtime"] is None
    assert comparison["proven"] is False
    assert "not compared" in comparison["why"]
    assert made.manifest["artefact"]["operations"]["conv"] == 1
    assert (
        sum(made.manifest["artefact"]["operations"].values())
        == (made.manifest["artefact"]["nodes"])
    )
    files.read(tmp_path)
    part = next(iter(made.manifest["artefact"]["parts"]))
    (tmp_path / part).write_bytes(b"other")
    with pytest.raises(zoo.BadInput, match="does not match"):
        files.read(tmp_path)


@pytest.mark.parametrize("format", ["openvino", "torchscript"])
def test_half_precision_halves_the_weights(format, tmp_path):
    model = Net().eval()
    model.head = nn.Sequential(nn.Linear(8, 30000), nn.Linear(30000, 5))
    model.num_classes = 5
    whole = export(model, format, tmp_path / "float", fuse=False)
    half = export(model, format, tmp_path / "half", half=True, fuse=False)
    share = half.manifest["artefact"]["bytes"] / whole.manifest["artefact"]["bytes"]
    assert 0.45 < share < 0.6
    assert half.manifest["precision"] == "float16"
    assert half.manifest["comparison"]["proven"]
    assert half.agreement.max_abs_error > 10 * whole.agreement.max_abs_error
    assert half.manifest["input"]["dtype"] == "float32"


@pytest.mark.parametrize("affine", [True, False])
def test_wide_layer_norms_in_half_precision(affine, tmp_path):
    """ExecuTorch's own kernel is wrong there by several standard deviations of the output."""

    class Normed(Net):
        def __init__(self) -> None:
            super().__init__()
            self.wide = nn.Linear(8, 300)
            self.norm = nn.LayerNorm(300, elementwise_affine=affine)
            self.head = nn.Linear(300, 5)
            if affine:
                nn.init.normal_(self.norm.weight)
                nn.init.normal_(self.norm.bias)

        def forward(self, x):
            return self.head(self.norm(self.wide(self.body(x).mean((2, 3)))))

    made = export(Normed(), "executorch", tmp_path, half=True, dynamic_batch=False, fuse=False)
    assert made.agreement.proven
    assert made.manifest["precision"] == "float16"


def test_half_precision_that_overflows_is_refused(tmp_path):
    class Large(Net):
        def forward(self, x):
            return super().forward(x * 1e5) * 1e-5

    with pytest.raises(zoo.NotExportable, match="exceed 65504|does not match the model"):
        export(Large(), "torchscript", tmp_path / "a", half=True)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("kind", "format"), [(Net, "onnx"), (Dense, "torchscript")])
def test_preprocessing_and_postprocessing_inside_the_artefact(kind, format, tmp_path):
    task = MODEL if kind is Net else "wavemix_seg_192_16_l3_cityscapes"
    model, mean, std = kind().eval(), [0.4, 0.5, 0.6], [0.1, 0.2, 0.3]
    origin = Origin(task, preprocessing={"mean": mean, "std": std})
    made = export(model, format, tmp_path, origin=origin, preprocess=True, postprocess=True)
    x = np.random.default_rng(0).integers(0, 256, (2, *SIZE[1:]), np.uint8)
    found = run_outside_the_package(made, x)
    scaled = (x / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    with torch.no_grad():
        logits = model(torch.from_numpy(scaled).float())
    if kind is Net:
        np.testing.assert_allclose(found, logits.softmax(1).numpy(), atol=1e-5)
    else:
        assert np.mean(found == logits.argmax(1).numpy()) > 0.99
    assert made.manifest["input"]["dtype"] == "uint8"
    assert made.manifest["input"]["mean"] is None
    assert made.manifest["input"]["normalised_inside"] == {"mean": mean, "std": std}
    assert made.manifest["postprocessing"] == ("softmax" if kind is Net else "argmax")
    assert made.manifest["comparison"]["measure"] == ("value" if kind is Net else "class")


@pytest.mark.parametrize(
    ("format", "options", "error", "message"),
    [
        (
            "executorch",
            {"dynamic_batch": True},
            zoo.NotExportable,
            "plans memory for one batch size",
        ),
        (
            "executorch",
            {"dynamic_size": True},
            zoo.NotExportable,
            "plans memory for one image size",
        ),
        ("coreml", {"dynamic_size": True}, zoo.NotExportable, "static sizes only"),
        (
            "executorch",
            {"preprocess": True},
            zoo.NotExportable,
            "cannot run programs with uint8 inputs",
        ),
        ("coreml", {"preprocess": True}, zoo.NotExportable, "has no uint8 tensors"),
        (
            "pt2",
            {"opset": 18},
            zoo.BadInput,
            "only applies to formats 'onnx' and 'openvino', not 'pt2'",
        ),
        ("onnx", {"preprocess": True}, zoo.BadInput, "mean and std, which are unknown"),
    ],
)
def test_options_that_a_format_does_not_support(format, options, error, message, tmp_path):
    with pytest.raises(error, match=message) as caught:
        export(Net(), format, tmp_path / "a", **options)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("format", ["onnx", "pt2", "torchscript"])
def test_a_model_for_one_size_is_refused_with_a_dynamic_size(format, tmp_path):
    with pytest.raises(zoo.NotExportable, match="does not run at 32x64; .*dynamic_size=false"):
        export(FixedSize(), format, tmp_path / "a", dynamic_size=True)
    assert os.listdir(tmp_path) == []
    assert export(FixedSize(), format, tmp_path / "a").agreement.proven


def test_postprocessing_needs_classes(tmp_path):
    origin = Origin("wavemix_sisr_144_4_l1")
    with pytest.raises(
        zoo.BadInput, match="does not apply to super-resolution, which has no classes"
    ):
        export(Net(), "onnx", tmp_path / "a", origin=origin, postprocess=True)


@contextmanager
def limited_file_size(size):
    """Refuse to let files grow beyond `size` bytes, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("format", ["onnx", "pt2", "torchscript"])
def test_a_full_disk(format, tmp_path):
    with (
        limited_file_size(500),
        pytest.raises(zoo.BadInput, match="cannot write to .*too large") as caught,
    ):
        export(Net(), format, tmp_path / "a")
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_too_little_free_space_for_the_weights(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 9}))
    with pytest.raises(zoo.BadInput, match="the weights take .* MiB, only 0.0 MiB are free"):
        export(Net(), "torchscript", tmp_path / "a")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("format", "package", "command"),
    [
        ("openvino", "openvino", "pip install openvino"),
        ("executorch", "executorch", "pip install executorch"),
        ("coreml", "coremltools", "pip install coremltools"),
    ],
)
def test_a_missing_package(format, package, command, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else found(name)
    )
    with pytest.raises(zoo.MissingExtra, match=command):
        export(Net(), format, tmp_path / "a")
    assert os.listdir(tmp_path) == []


def test_all_files_of_an_artefact_are_replaced(tmp_path):
    first = export(Net(), "openvino", tmp_path)
    with pytest.raises(zoo.BadInput, match="export.overwrite=true"):
        export(Net(), "openvino", tmp_path)
    other = Net()
    nn.init.zeros_(other.head.bias)
    second = export(other, "openvino", tmp_path, overwrite=True)
    parts = [made.manifest["artefact"]["parts"]["model.bin"] for made in (first, second)]
    assert parts[0] != parts[1]
    assert sorted(os.listdir(tmp_path)) == ["manifest.json", "model.bin", "model.xml"]
    files.read(tmp_path)


def test_several_formats_in_one_run(tmp_path, capsys):
    overrides = [f"model={MODEL}", "format=[torchscript,executorch]", "export.image_size=32"]
    more = ["export.dynamic_size=true", f"export.out={tmp_path}"]
    with pytest.raises(zoo.NotExportable, match=r"1 of 2 formats failed\. executorch: .*size"):
        run_command("export", [*overrides, *more])
    assert os.listdir(tmp_path) == ["torchscript"]
    assert files.read(tmp_path / "torchscript")[1]["format"] == "torchscript"
    assert "model.pt" in capsys.readouterr().out
    with pytest.raises(zoo.BadInput, match="did you mean 'openvino'"):
        run_command("export", [*overrides[:1], "format=[onnx,openvno]"])


def test_the_longest_suffix_names_the_format():
    assert formats.format_of_file("a.pt2") is formats.FORMATS["pt2"]
    assert formats.format_of_file("a.aoti.pt2") is formats.FORMATS["aoti"]
    assert formats.format_of_file("a.pt") is formats.FORMATS["torchscript"]
