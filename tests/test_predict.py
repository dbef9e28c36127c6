"""python -m zoo predict: predictions for images, using only the runtime and the manifest."""

import io
import json
import os
import re
import runpy
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode

import zoo
from zoo.cli import execute as main
from zoo.command_line.composition import compose
from zoo.command_line.composition import run as run_command
from zoo.data.segmentation import Fit
from zoo.data.transforms import eval_preparation
from zoo.deploy import files
from zoo.deploy.manifest import Origin
from zoo.deploy.predict import Predictor, resize
from zoo.deploy.predict_files import class_colours, list_images, predict, print_predictions

pytestmark = pytest.mark.slow

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
NAMES = ["red", "green", "blue"]


class Colour(nn.Module):
    """Predicts the strongest channel: of the image, or of each pixel."""

    num_classes, in_chans = 3, 3

    def __init__(self, dense: bool) -> None:
        super().__init__()
        self.dense = dense
        self.mix = nn.Conv2d(3, 3, 1, bias=False)
        nn.init.eye_(self.mix.weight[:, :, 0, 0].detach())
        self.mix.weight.data = 4 * torch.eye(3)[:, :, None, None]

    def forward(self, x):
        y = self.mix(x)
        return y if self.dense else y.mean((2, 3))


def made(folder, format="onnx", dense=False, **kwargs):
    name = "wavemix_seg_192_16_l3_cityscapes" if dense else "mobilenetv2_035"
    prepared = {"mean": MEAN, "std": STD, "interpolation": "bilinear", "crop_pct": 0.8}
    origin = Origin(name, class_names=NAMES, preprocessing=prepared)
    arguments = {"input_size": (1, 3, 32, 48), "origin": origin, "fuse": False, **kwargs}
    return zoo.export(Colour(dense).eval(), format, folder, **arguments)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return made(tmp_path_factory.mktemp("classifier")).path


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    return made(tmp_path_factory.mktemp("segmenter"), dense=True).path


def save_image(path, colour, size=(70, 50), mode="RGB"):
    Image.new("RGB", size, colour).convert(mode).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    """Images of several modes and sizes, and a file that is not an image."""
    images = tmp_path / "images"
    images.mkdir()
    save_image(images / "a.png", (250, 10, 10))
    save_image(images / "b.png", (10, 250, 10), (20, 90), "RGBA")
    save_image(images / "c.bmp", (10, 10, 250), (200, 200), "P")
    (images / "d.txt").write_text("not an image")
    return images


@pytest.mark.parametrize("size", [(32, 32), (32, 48), (48, 20)])
@pytest.mark.parametrize("shape", [(70, 50), (31, 95), (200, 201), (12, 12)])
@pytest.mark.parametrize("way", ["bilinear", "bicubic"])
def test_images_are_cropped_as_in_evaluation(size, shape, way):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8))
    cfg = compose(
        "train", [f"data.image_size=[{size[0]},{size[1]}]", f"data.interpolation={way}"]
    ).data
    cfg.crop_pct, cfg.mean, cfg.std = 0.8, MEAN, STD
    expected = eval_preparation(cfg).transform(image).numpy().transpose(1, 2, 0)
    found, inner = resize(image, size, {"interpolation": way, "crop_pct": 0.8, "resize": "crop"})
    np.testing.assert_array_equal(np.asarray(found), expected)
    assert inner is None


@pytest.mark.parametrize("shape", [(70, 50), (31, 95), (12, 12)])
def test_images_are_padded_as_in_evaluation(shape):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8))
    mask = tv_tensors.Mask(torch.zeros(1, *shape, dtype=torch.int64))
    fit = Fit((32, 48), InterpolationMode.BILINEAR, [round(255 * m) for m in MEAN])
    expected, marked = fit(image, mask)
    how = {"interpolation": "bilinear", "resize": "fit", "mean": MEAN, "size": [3, 32, 48]}
    found, inner = resize(image, (32, 48), how)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))
    assert inner is not None
    assert int((marked == 0).sum()) == inner[0] * inner[1]


@pytest.mark.parametrize(
    ("format", "inside"), [("onnx", False), ("torchscript", False), ("torchscript", True)]
)
def test_images_are_classified(format, inside, folder, tmp_path):
    path = made(tmp_path / "m", format, preprocess=inside, postprocess=inside).path
    answers = list(predict(Predictor(path), list_images([str(folder)]), batch_size=3, top=2))
    assert [answer["classes"][0]["name"] for answer in answers[:3]] == NAMES
    assert all(len(answer["classes"]) == 2 for answer in answers[:3])
    value = (250 / 255 - MEAN[0]) / STD[0]
    others = [(10 / 255 - m) / s for m, s in zip(MEAN[1:], STD[1:], strict=True)]
    powers = np.exp(4 * np.array([value, *others]))
    assert answers[0]["classes"][0]["probability"] == pytest.approx(powers[0] / powers.sum(), 1e-4)
    assert "not an image" in answers[3]["error"]


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_only_the_runtime_is_imported(format, folder, tmp_path):
    path = made(tmp_path / "m", format).path
    code = (
        "import sys; from zoo.cli import execute as main\n"
        f"code = main(['predict', {str(path)!r}, {str(folder / 'a.png')!r}, '--json'])\n"
        "assert 'torch' not in sys.modules and 'timm' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)[0]["classes"][0]["name"] == "red"


def test_a_static_batch_is_filled_up(folder, tmp_path):
    path = made(tmp_path / "m", input_size=(2, 3, 32, 48), dynamic_batch=False).path
    files = [folder / name for name in ("a.png", "b.png", "c.bmp")]
    answers = predict(Predictor(path), files)
    assert [answer["classes"][0]["name"] for answer in answers] == NAMES


def test_the_command(classifier, folder, capsys):
    files = [str(folder / name) for name in ("a.png", "b.png")]
    assert main(["predict", str(classifier.parent), *files, "--top", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{files[0]}: red 100.0%")
    assert lines[1].startswith(f"{files[1]}: green 100.0%")
    assert main(["predict", str(classifier), str(folder), "--json"]) == 1
    out, err = capsys.readouterr()
    answers = json.loads(out)
    assert [("error" in answer) for answer in answers] == [False, False, False, True]
    assert err.splitlines() == [
        f"error: cannot read image {folder}/d.txt (not an image)",
        "error: 1 of 4 files have no prediction",
    ]


@pytest.mark.parametrize("inside", [False, True])
def test_masks_have_the_size_of_the_image(inside, tmp_path, capsys):
    path = made(tmp_path / "m", dense=True, preprocess=inside, postprocess=inside).path
    image = np.zeros((60, 40, 3), np.uint8)
    image[:, :20, 1] = image[:, 20:, 2] = 250  # green next to blue
    Image.fromarray(image).save(tmp_path / "half.png")
    out = tmp_path / "out"
    assert main(["predict", str(path), f"{tmp_path}/half.png", "--out", str(out), "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert {entry["name"] for entry in answer["classes"]} == {"green", "blue"}
    mask = np.asarray(Image.open(answer["mask"]))
    assert mask.shape == (60, 40)
    assert (mask[:, :18] == 1).all()
    assert (mask[:, 22:] == 2).all()
    drawn = np.asarray(Image.open(answer["overlay"]))
    np.testing.assert_array_equal(drawn[0, 0], (image[0, 0].astype(int) + class_colours(3)[1]) // 2)
    assert sum(entry["share"] for entry in answer["classes"]) == pytest.approx(1)


def altered(artefact, folder, change):
    """Return the path of a copy of an artefact whose manifest is changed."""
    copy = folder / "altered"
    copy.mkdir()
    for file in files.members(artefact):
        (copy / file.name).write_bytes(file.read_bytes())
    content = json.loads((artefact.parent / files.MANIFEST).read_text())
    (copy / files.MANIFEST).write_text(json.dumps(content | change))
    return copy / artefact.name


def test_a_manifest_of_another_artefact_is_refused(classifier, tmp_path, folder):
    other = altered(classifier, tmp_path, {})
    assert Predictor(other)
    other.write_bytes(other.read_bytes() + b"\0")
    with pytest.raises(
        zoo.BadInput, match=r"does not match .*model\.onnx: the file's sha256 is"
    ) as caught:
        Predictor(other)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "else"}, "is not a manifest: its schema is 'else'"),
        ({"input": {}}, "lacks input.name"),
        (
            {"comparison": {"runtime": None, "proven": False}},
            "no runtime on this platform loads format 'onnx'",
        ),
    ],
)
def test_manifests_that_cannot_be_used(change, message, classifier, tmp_path):
    with pytest.raises(zoo.BadInput, match=message):
        Predictor(altered(classifier, tmp_path, change))


def test_weights_next_to_the_artefact_are_checked(tmp_path):
    path = made(tmp_path / "m", "openvino").path
    path.with_suffix(".bin").write_bytes(b"other")
    with pytest.raises(zoo.BadInput, match=r"does not match .*model\.bin"):
        Predictor(path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["absent.onnx", "{a}"], "artefact 'absent.onnx' does not exist"),
        (["{a}", "{a}"], "a.png has no manifest: "),
        (["{m}", "{a}", "--batch", "0"], "--batch=0 must be at least 1"),
        (["{m}", "{a}", "--out", "masks"], "--out=masks has no effect"),
    ],
)
def test_bad_input_is_reported_in_one_line(words, message, classifier, folder, capsys):
    words = [word.format(a=folder / "a.png", m=classifier) for word in words]
    assert main(["predict", *words]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert len(err.splitlines()) == 1


def test_an_empty_folder(tmp_path):
    with pytest.raises(zoo.BadInput, match="contains no file"):
        list_images([str(tmp_path)])


def test_images_of_any_mode_are_segmented(segmenter, folder, tmp_path):
    answers = list(predict(Predictor(segmenter), list_images([str(folder)]), out=tmp_path / "o"))
    assert [answer["classes"][0]["name"] for answer in answers[:3]] == NAMES
    assert len(list((tmp_path / "o").iterdir())) == 6


@pytest.fixture
def photos(tmp_path):
    """Images whose modes, sizes and metadata make every step of the preparation matter."""
    noise = np.random.default_rng(0).integers(0, 256, (90, 61, 4)).astype(np.uint8)
    rough = Image.fromarray(noise).resize((123, 77), Image.Resampling.BICUBIC)
    turned = Image.Exif()
    turned[0x0112] = 6
    rough.convert("RGB").save(tmp_path / "turned.jpg", exif=turned, quality=90)
    rough.save(tmp_path / "transparent.png")
    rough.convert("RGB").quantize(9).save(tmp_path / "palette.png", transparency=2)
    rough.convert("L").save(tmp_path / "grey.png")
    Image.fromarray(noise[..., 0].astype(np.uint16) * 257 + 3).save(tmp_path / "deep.png")
    rough.convert("CMYK").save(tmp_path / "print.tif")
    return sorted(map(str, tmp_path.iterdir()))


@pytest.mark.parametrize(
    ("format", "kwargs"),
    [
        ("onnx", {}),
        ("onnx", {"input_size": (2, 3, 32, 32), "dynamic_batch": False}),
        ("onnx", {"preprocess": True, "postprocess": True}),
        ("onnx", {"dense": True}),
        ("torchscript", {"dense": True, "preprocess": True, "postprocess": True}),
        ("openvino", {}),
        ("pt2", {}),
        ("executorch", {}),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_the_example_script_prints_what_predict_prints(
    format, kwargs, photos, tmp_path, monkeypatch, capsys
):
    path = made(tmp_path / "m", format, **kwargs).path
    script = path.parent / "predict_example.py"
    monkeypatch.chdir(tmp_path)  # masks
    assert main(["predict", str(path), *photos]) == 0
    expected = [line.partition(" -> ")[0] for line in capsys.readouterr().out.splitlines()]
    assert len({line.partition(": ")[2] for line in expected}) > 3
    monkeypatch.setattr(sys, "argv", [str(script), *photos])
    runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out.splitlines() == expected
    assert "zoo" not in re.findall(r"^(?:import|from) (\w+)", script.read_text(), re.MULTILINE)


class Finder(nn.Module):
    """Finds overlapping boxes, whose scores are the mean colours of quarters of the image."""

    num_classes, in_chans = 3, 3

    def forward(self, x):
        quarters = nn.functional.adaptive_avg_pool2d(x, 2).flatten(2).transpose(1, 2)  # B 4 3
        corners = torch.tensor([[0.1, 0.1, 0.6, 0.7], [0.12, 0.1, 0.62, 0.7], [0.5, 0, 1, 1]])
        corners = torch.cat([corners, corners[:1]]) + 0 * quarters[..., :1]
        return torch.cat([corners, (quarters * 3).sigmoid()], dim=-1)


@pytest.mark.parametrize("postprocess", [False, True])
def test_the_example_script_of_a_detector_finds_what_predict_finds(
    postprocess, photos, tmp_path, monkeypatch, capsys
):
    prepared = {"mean": MEAN, "std": STD, "interpolation": "bilinear", "crop_pct": 1.0}
    path = zoo.export(
        Finder().eval(), "onnx", tmp_path / "m", input_size=(1, 3, 32, 48), fuse=False,
        origin=Origin("ssdlite", class_names=NAMES, preprocessing=prepared),
        postprocess=postprocess,
    ).path  # fmt: skip
    monkeypatch.chdir(tmp_path)  # drawings
    assert main(["predict", str(path), *photos]) == 0
    expected = [line.partition(" -> ")[0] for line in capsys.readouterr().out.splitlines()]
    assert len(set(expected)) > 3
    assert max(line.count(" at ") for line in expected) > 2
    script = path.parent / "predict_example.py"
    monkeypatch.setattr(sys, "argv", [str(script), *photos])
    runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out.splitlines() == expected


def test_there_is_no_example_for_what_predict_does_not_support(tmp_path):
    net = nn.Conv2d(3, 4, 3).eval()
    made = zoo.export(net, "torchscript", tmp_path, input_size=(1, 3, 8, 8))  # no mean and std
    assert not (made.path.parent / "predict_example.py").exists()


def test_files_that_fail_do_not_stop_the_others(classifier, folder, capsys):
    os.mkfifo(folder / "pipe.png")
    words = [folder / "absent.png", folder / "a.png", folder / "pipe.png", folder / "b.png"]
    assert main(["predict", str(classifier), *map(str, words), "--top", "1"]) == 1
    out, err = capsys.readouterr()
    assert [line.split(": ")[1].split()[0] for line in out.splitlines()] == ["red", "green"]
    assert err.splitlines() == [
        f"error: image or folder '{folder}/absent.png' does not exist",
        f"error: cannot read image {folder}/pipe.png (a FIFO, not a regular file)",
        "error: 2 of 4 files have no prediction",
    ]


class Broken:
    """Returns NaN for dark images."""

    name = "broken"

    def __init__(self, manifest):
        self.manifest = manifest

    def __call__(self, images):
        return np.where(images.mean((2, 3)) > 0, images.mean((2, 3)), np.nan)


def test_outputs_that_are_not_finite_are_errors(classifier, tmp_path, capsys):
    files_ = [str(save_image(tmp_path / f"{c}.png", (c, c, c))) for c in (250, 3)]
    predictor = Predictor(Broken(files.read(classifier)[1]))
    with pytest.raises(zoo.BadInput, match="1 of 2 files have no prediction"):
        print_predictions(predictor, files_)
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1
    assert err == (
        f"error: the outputs for {files_[1]} are not finite (nan or inf), so there is no "
        "prediction; export weights that are finite\n"
    )


@pytest.mark.parametrize("as_json", [False, True])
def test_answers_are_printed_as_they_come(as_json, classifier, folder, capsys):
    class Interrupted(Broken):
        calls = 0

        def __call__(self, images):
            self.calls += 1
            if self.calls == 3:
                raise KeyboardInterrupt
            return images.mean((2, 3))

    predictor = Predictor(Interrupted(files.read(classifier)[1]))
    paths = [str(folder / name) for name in ("a.png", "b.png", "c.bmp")]
    with pytest.raises(KeyboardInterrupt):
        print_predictions(predictor, paths, as_json=as_json, batch_size=1)
    out = capsys.readouterr().out
    shown = [answer["file"] for answer in json.loads(out)] if as_json else out.splitlines()
    assert [line.startswith(path) for line, path in zip(shown, paths, strict=False)] == [True] * 2


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
@pytest.mark.parametrize("as_json", [False, True])
def test_any_file_name_on_any_terminal(encoding, as_json, classifier, tmp_path, monkeypatch):
    names = ["\u00fc.png", "\u732b.png", os.fsdecode(b"\xff.png")]  # the last is not UTF-8
    for name in names:
        save_image(tmp_path / name, (250, 0, 0))
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    paths = [str(tmp_path / name) for name in names]
    assert main(["predict", str(classifier), *paths, *["--json"] * as_json]) == 0
    written = stream.buffer.getvalue().decode(encoding)
    if as_json:
        assert [answer["file"] for answer in json.loads(written)] == paths
    else:
        assert len(written.splitlines()) == 3


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run folder as train.py writes it."""
    folder = tmp_path_factory.mktemp("run")
    arguments = {"name": "simplenet_cifar_310k", "num_classes": 3, "in_chans": 3}
    prepared = {"size": [3, 32, 32], "mean": MEAN, "std": STD, "interpolation": "bilinear",
                "crop_pct": 0.8}  # fmt: skip
    content = {
        "format": "zoo.checkpoint/1",
        "state_dict": zoo.create_model(**arguments).state_dict(),
        "model": arguments,
        "data": {"class_names": NAMES, "num_classes": 3, "preprocessing": prepared},
    }
    (folder / "checkpoints").mkdir()
    torch.save(content, folder / "checkpoints" / "best.ckpt")
    return folder


def test_a_run_predicts_what_its_artefact_predicts(run_folder, photos, tmp_path, capsys):
    run_command("export", [f"weights={run_folder}", f"export.out={tmp_path}/m"])
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "m"), *photos]) == 0
    expected = capsys.readouterr().out
    for given in (run_folder, run_folder / "checkpoints" / "best.ckpt"):
        assert main(["predict", str(given), *photos]) == 0
        assert capsys.readouterr().out == expected


def test_weights_that_do_not_name_a_model(tmp_path, photos, capsys):
    torch.save(zoo.create_model("simplenet_cifar_310k").state_dict(), tmp_path / "w x.pth")
    assert main(["predict", str(tmp_path / "w x.pth"), *photos]) == 1
    assert capsys.readouterr().err == (
        f"error: {tmp_path}/w x.pth does not say which model it belongs to; export it first: "
        f"zoo export \"weights='{tmp_path}/w x.pth'\" model=<name>\n"
    )


def test_images_of_other_formats_are_left_out_of_folders(folder, capsys):
    for name in ("x.gif", "y.GIF", "z.heic"):
        (folder / name).write_text("not opened")
    names = [path.name for path in list_images([str(folder), str(folder / "x.gif")])]
    assert names == ["a.png", "b.png", "c.bmp", "d.txt", "x.gif"]
    assert capsys.readouterr().err == (
        f"warning: {folder}: left out images of other formats (2 .gif, 1 .heic); convert them to "
        "jpg or png to use them\n"
    )
