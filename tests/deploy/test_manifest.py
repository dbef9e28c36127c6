"""Manifests with any content: refused in one line, or harmless."""

import copy
import json

import pytest
from PIL import Image
from torch import nn

import zoo
from zoo.deploy import files, schema
from zoo.deploy.manifest import MEANINGS, Origin
from zoo.deploy.predict import Predictor
from zoo.deploy.predict_files import predict

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
DROPPED = object()
MUTANTS = (DROPPED, None, "", " ", "x", "../x", -1, 0, 1.5, 10**30, True, [], {}, [[1]], {"x": 1})
TEXTS = ("NaN", "-Infinity", "1e999", "9" * 5000)  # written into the JSON as they are
# Entries that change what predict prints.
USED = ("format", "artefact", "task", "class_names", "input", "outputs", "postprocessing")


@pytest.fixture(scope="module")
def artefact(tmp_path_factory):
    folder = tmp_path_factory.mktemp("artefact")
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    prepared = {"mean": MEAN, "std": STD, "interpolation": "bilinear", "crop_pct": 0.8}
    origin = Origin(class_names=list("abcd"), preprocessing=prepared)
    made = zoo.export(net, "onnx", folder, input_size=(1, 3, 16, 16), origin=origin)
    Image.radial_gradient("L").convert("RGB").save(folder / "a.png")
    return made


def places(content, path=()):
    """Yield the path of each entry, tables and lists included."""
    items = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


def changed(content, path, value):
    content = copy.deepcopy(content)
    parent = content
    for key in path[:-1]:
        parent = parent[key]
    if value is DROPPED:
        del parent[path[-1]]
    else:
        parent[path[-1]] = value
    return content


def answer(made):
    """Return the classes that predict finds."""
    (found,) = predict(Predictor(made.path), [made.path.parent / "a.png"], top=4)
    return found.get("classes") or found["error"]


def is_another_statement(name, value):
    """Return whether a value is as good as the one before: null, another name or number."""
    if value is None:
        return name in ("class_names", "input.interpolation")
    if name.startswith("class_names."):
        return isinstance(value, str) and bool(value.strip())
    return name.startswith(("input.mean.", "input.std.")) and type(value) in (int, float)


def test_every_entry_is_checked(artefact):
    manifest = artefact.manifest_path
    original = manifest.read_text()
    content = json.loads(original)
    right, wrong = answer(artefact), []
    try:
        for path in places(content):
            name = ".".join(map(str, path))
            for value in (*MUTANTS, *TEXTS):
                text = json.dumps(changed(content, path, "<here>" if value in TEXTS else value))
                manifest.write_text(text.replace('"<here>"', str(value)))
                try:
                    read = files.read(manifest)[1]
                    # What follows does not depend on the other entries.
                    if all(read[key] == content[key] for key in USED):
                        continue
                    is_right = answer(artefact) == right or is_another_statement(name, value)
                except zoo.ZooError as error:
                    is_right = len(str(error).splitlines()) == 1 and len(str(error)) < 400
                if not is_right:
                    wrong.append((name, value))
    finally:
        manifest.write_text(original)
    assert wrong == []


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("schema", "zoo.manifest/2", "a newer version of this package wrote it"),
        ("schema", DROPPED, "is not a manifest: its schema is None"),
        ("artefact.file", "../model.onnx", "the name of a file, without a folder"),
        ("artefact.file", "/etc/passwd", "the name of a file, without a folder"),
        ("artefact.parts", {"../../x": "0" * 64}, "the sha256 of further files"),
        ("artefact.parts", {"model.bin": "0" * 64}, "an ONNX file has no further files"),
        ("format", "openvino", "artefact.file does not end in .xml"),
        ("input.interpolation", "cubic", "one of nearest"),
        ("input.std", [0, 0, 0], "one positive number per channel"),
        ("input.std", [1e30] * 3, "one positive number per channel"),
        ("input.mean", [0.5], "input.mean: [0.5], but the input has 3 channels"),
        ("input.mean", None, "only one of input.mean and input.std"),
        ("input.size", [3, 32, 32], "does not fit input.shape"),
        ("input.shape", ["batch", 3, 16, 32], "does not fit input.shape"),
        ("input.dtype", "uint8", "does not fit its mean and std"),
        ("input.crop_pct", 1e-9, "too small"),
        ("input.resize_shorter", 21, "must be 20"),
        ("input.exif_orientation", "ignored", "must be applied"),
        ("class_names", ["a", "b"], "which does not fit 2 classes"),
        ("model.num_classes", 7, "says 4 class_names, but model.num_classes is 7"),
        ("task", "segmentation", "must be fit"),
        ("postprocessing", DROPPED, "lacks postprocessing"),
        ("postprocessing", "argmax", "does not fit task"),
        ("artefact.bytes", 5, "says artefact.bytes: 5, but it has"),
    ],
)
def test_what_is_wrong_is_named(path, value, message, artefact, tmp_path):
    content = changed(json.loads(artefact.manifest_path.read_text()), path.split("."), value)
    (tmp_path / "model.onnx").write_bytes(artefact.path.read_bytes())
    (tmp_path / files.MANIFEST).write_text(json.dumps(content))
    with pytest.raises(zoo.BadInput) as caught:
        files.read(tmp_path)
    assert message in str(caught.value)
    assert str(tmp_path / files.MANIFEST) in str(caught.value)


def test_a_size_that_is_not_that_of_the_file(artefact, tmp_path):
    """Both entries agree, the checksum is right; only the file itself knows better."""
    content = json.loads(artefact.manifest_path.read_text())
    content["input"] |= {"shape": ["batch", 3, 32, 32], "size": [3, 32, 32], "resize_shorter": 40}
    (tmp_path / "model.onnx").write_bytes(artefact.path.read_bytes())
    (tmp_path / files.MANIFEST).write_text(json.dumps(content))
    with pytest.raises(zoo.BadInput, match=r"but model\.onnx takes \['any', 3, 16, 16\]"):
        Predictor(tmp_path)


@pytest.mark.parametrize("change", ["parts", "file"])
def test_missing_weights_are_noticed(change, tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 4, 3)).eval()
    made = zoo.export(net, "openvino", tmp_path, input_size=(1, 3, 16, 16))
    if change == "file":
        made.path.with_suffix(".bin").unlink()
        message = r"model\.bin: the file does not exist, the manifest expects"
    else:
        content = json.loads(made.manifest_path.read_text())
        del content["artefact"]["parts"]
        made.manifest_path.write_text(json.dumps(content))
        message = r"model\.bin: the file's sha256 is .*, the manifest does not name it"
    with pytest.raises(zoo.BadInput, match=message):
        files.read(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "3", "{", "[" * 100_000, "\0", '{"schema": NaN}'])
def test_a_file_that_is_no_manifest(text, tmp_path):
    (tmp_path / files.MANIFEST).write_text(text)
    with pytest.raises(zoo.BadInput, match="manifest") as caught:
        files.read(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_export_that_would_not_be_readable_is_refused(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 4, 3)).eval()
    origin = Origin(preprocessing={"mean": [0.5] * 3, "std": [0.0] * 3})
    with pytest.raises(zoo.BadInput, match=r"input\.std: \[0\.0, 0\.0, 0\.0\]"):
        zoo.export(net, "torchscript", tmp_path / "x", input_size=(1, 3, 8, 8), origin=origin)
    assert list(tmp_path.iterdir()) == []


def test_every_task_of_a_model_can_be_in_a_manifest():
    tasks = {zoo.model_info(name)["task"] for name in zoo.list_models()}
    assert tasks <= set(schema.TASKS)
    assert all((task, None) in MEANINGS for task in tasks)
