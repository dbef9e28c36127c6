"""`zoo fit`: from a dirty folder to artefacts and a page, continued after any failure."""

import base64
import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import zoo
from zoo import cli
from zoo.commands import fit as command
from zoo.commands import fit_steps
from zoo.deploy.predict import Predictor
from zoo.errors import BadInput
from zoo.settings import FitConfig, PickConfig
from zoo.training import loop

COLOURS = {"ant": (200, 60, 60), "bee": (60, 200, 60), "cat & <dog>": (60, 60, 200)}


def noise(seed: int, colour: tuple[int, int, int]) -> Image.Image:
    """Return an image of large blocks around a colour, different for each seed."""
    generator = np.random.default_rng(seed)
    blocks = np.asarray(colour) + generator.integers(-55, 55, (6, 6, 3))
    return Image.fromarray(blocks.astype(np.uint8)).resize((48, 40), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return three classes of 10, 10 and 30 images, with copies and a broken file."""
    root = tmp_path_factory.mktemp("data") / "photos"
    for number, (name, colour) in enumerate(COLOURS.items()):
        (root / name).mkdir(parents=True)
        for index in range(30 if number == 2 else 10):
            noise(100 * number + index, colour).save(root / name / f"{index}.png")
    noise(3, COLOURS["ant"]).resize((96, 80)).save(root / "ant" / "large.jpg", quality=60)
    shutil.copy(root / "bee" / "1.png", root / "ant" / "bee.png")
    (root / "bee" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return root


@pytest.fixture(scope="module", autouse=True)
def _without_published_weights() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_steps, "first_weights", lambda model, classes: ("none", "no network"))
        yield


def fit(photos: Path, out: Path) -> dict[str, Any]:
    return zoo.fit(photos, model="simplenet_cifar_310k", size=32, epochs=2, out=out)


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fit")
    fit(photos, out)
    return out


def steps_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "fit.json").read_text())["steps"]


def test_the_inspection_finds_broken_files_copies_and_rare_classes(finished: Path) -> None:
    found = steps_of(finished)["inspect"]
    assert [one["file"] for one in found["broken"]] == ["bee/broken.png"]
    assert sorted(map(sorted, found["copies"])) == [
        ["ant/3.png", "ant/large.jpg"],
        ["ant/bee.png", "bee/1.png"],
    ]
    assert [sorted(group) for group in found["copies_across_classes"]] == [
        ["ant/bee.png", "bee/1.png"]
    ]
    assert found["copies_across_split"] == []
    assert found["images"] == 52
    assert found["sizes"] == {"smallest": [48, 40], "median": [48, 40], "largest": [96, 80]}
    assert found["is_imbalanced"] == (
        max(row["train"] for row in found["classes"])
        >= 3 * min(row["train"] for row in found["classes"])
    )
    assert all(row["train"] and row["val"] for row in found["classes"])


def test_the_artefacts_are_evaluated_on_the_images_that_were_held_out(
    photos: Path, finished: Path
) -> None:
    steps = steps_of(finished)
    for form in ("float", "int8"):
        about = steps["evaluate"][form]
        assert about["report"]["images"] == steps["inspect"]["val"]
        assert (finished / about["artefact"]).is_file()
        assert about["bytes"] > 0
        assert about["p50_ms"] > 0
    (ant,) = zoo.predict(finished / steps["export"]["folder"], photos / "ant" / "0.png")
    assert {row["name"] for row in ant["classes"]} == set(COLOURS)
    manifest = json.loads((finished / "onnx" / "manifest.json").read_text())
    found = steps["evaluate"]["float"]["report"]["calibration"]["temperature"]
    is_noted = fit_steps.TEMPERATURES[0] < found < fit_steps.TEMPERATURES[1]
    assert manifest.get("temperature") == (found if is_noted else None)


def test_predictions_are_calibrated_by_the_temperature() -> None:
    predictor = object.__new__(Predictor)
    logits = np.array([1.0, 3.0, -2.0], dtype=np.float32)
    expected = np.exp(logits / 2.5) / np.exp(logits / 2.5).sum()
    shares = np.exp(logits) / np.exp(logits).sum()
    for output, postprocessing in ((logits, None), (shares, "softmax")):
        predictor.manifest = {
            "postprocessing": postprocessing,
            "temperature": 2.5,
            "class_names": ["a", "b", "c"],
        }
        rows = predictor.classify(output, 3)
        assert [row["name"] for row in rows] == ["b", "a", "c"]
        assert [row["probability"] for row in rows] == pytest.approx(sorted(expected)[::-1])


def test_the_page_is_one_file_with_pictures_and_the_verdict(finished: Path) -> None:
    page = (finished / "fit.html").read_text()
    steps = steps_of(finished)
    assert "<h1>simplenet_cifar_310k on photos</h1>" in page
    assert "bee/broken.png" in page
    assert "cat &amp; &lt;dog&gt;" in page
    assert "<dog>" not in page
    assert "trained from random weights: no network" in page
    top1 = steps["evaluate"][command.recommended(steps)]["report"]["top1"]["value"]
    assert f"top-1 {top1:.2%}" in page
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    doubted = steps["labels"]["first"]
    assert len(pictures) == 2 + len(doubted)
    assert all(base64.b64decode(data).startswith(b"\x89PNG") for data in pictures)
    assert not re.search(r'src="(?!data:)', page)
    links = re.findall(r'href="([^"]+)"', page)
    assert "eval_float/report.html" in links
    assert all((finished / link).is_file() for link in links)


def test_a_model_that_is_no_better_than_one_answer_is_not_recommended(finished: Path) -> None:
    steps = steps_of(finished)
    form = command.recommended(steps)
    report = steps["evaluate"][form]["report"]
    for row, n in zip(report["classes"], (60, 30, 10), strict=True):
        row["n"] = n
    report["images"] = 100
    for value, is_used in ((0.6, False), (0.61, True)):
        report["top1"]["value"] = value
        text = " ".join(command.conclusion(steps))
        assert ("do not use it: always answering ant is right for 60.00%" in text) != is_used
        assert (f"use {form}" in text or "use onnx" in text) == is_used


def test_all_images_are_ranked_by_their_labels(photos: Path, finished: Path) -> None:
    with (finished / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    steps = steps_of(finished)
    assert len(rows) == steps["inspect"]["images"]
    assert all((photos / row["file"]).parent.name == row["class"] for row in rows)
    confidences = [float(row["confidence"]) for row in rows]
    assert confidences == sorted(confidences)
    assert [row["file"] for row in rows if row["class"] != row["suggested"]][:24] == [
        row["file"] for row in steps["labels"]["first"]
    ]
    assert rows.index(next(row for row in rows if row["file"] == "ant/bee.png")) < 10


def test_the_same_command_again_does_nothing_anew(
    photos: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    for name, (words, _) in fit_steps.ALL.items():
        monkeypatch.setitem(fit_steps.ALL, name, (words, lambda *_: 1 / 0))
    assert fit(photos, finished) == steps_of(finished)
    assert f"next: zoo predict {finished}" in capsys.readouterr().out


class Killed(Exception):
    pass


def test_after_a_failure_anywhere_the_same_command_ends_with_the_same_weights(
    photos: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = (
        "export",
        "int8",
        "evaluate",
        "labels",
    )  # they read the weights, and are repeated as a whole
    done = steps_of(finished)
    for name in late:
        monkeypatch.setitem(fit_steps.ALL, name, ("", lambda *_, name=name: done[name]))
    for name, (words, step) in dict(fit_steps.ALL).items():

        def failing(*arguments: Any, step: Any = step) -> Any:
            step(*arguments)
            raise Killed

        if name == "train":
            _kill_the_training(photos, tmp_path, monkeypatch)
        with monkeypatch.context() as patch:
            patch.setitem(fit_steps.ALL, name, (words, failing))
            with pytest.raises(Killed):
                fit(photos, tmp_path)
        assert name not in steps_of(tmp_path) if name != "inspect" else True
    again = fit(photos, tmp_path)
    assert list(again) == list(fit_steps.ALL)
    assert len(list((tmp_path / "train").iterdir())) == 1
    for which in ("last", "best"):
        a, b = (
            torch.load(
                out / steps_of(out)["train"]["run"] / "checkpoints" / f"{which}.ckpt",
                weights_only=True,
            )
            for out in (finished, tmp_path)
        )
        for key, tensor in a["state_dict"].items():
            assert torch.equal(tensor, b["state_dict"][key]), key
        assert a["progress"] == b["progress"]


def _kill_the_training(photos: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail before the first checkpoint, and within the second epoch."""
    original = loop.Loop._save

    def fail(self: loop.Loop, *_: Any, **__: Any) -> None:
        raise Killed

    def fail_later(self: loop.Loop, *arguments: Any, **named: Any) -> None:
        original(self, *arguments, **named)
        if self.progress.epoch == 1:
            raise Killed

    for replacement in (fail, fail_later):
        with monkeypatch.context() as patch:
            patch.setattr(loop.Loop, "_save", replacement)
            with pytest.raises(Killed):
                fit(photos, out)


def test_other_arguments_do_not_continue_a_folder(photos: Path, finished: Path) -> None:
    with pytest.raises(BadInput, match=r"has a run with epochs=2, not 3; .*another --out"):
        zoo.fit(photos, model="simplenet_cifar_310k", size=32, epochs=3, out=finished)
    (finished.parent / "bad").mkdir(exist_ok=True)
    (finished.parent / "bad" / "fit.json").write_text("{")
    with pytest.raises(BadInput, match=r"fit\.json cannot be read .*another --out"):
        fit(photos, finished.parent / "bad")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"photos": "nowhere"}, "nowhere is not a folder"),
        ({"ms": 5.0, "model": "emo_1m"}, "--ms picks a model and --model names one"),
        ({"ms": 5.0, "size": 32}, "leave --size out"),
        ({"ms": -1.0}, "--ms -1.0 must be above 0"),
        ({"epochs": 0}, "--epochs 0 must be above 0"),
        ({"model": "emo_1m", "weights": "nowhere.pth"}, "--weights nowhere.pth does not exist"),
    ],
)
def test_arguments_are_checked_first(tmp_path: Path, settings: Any, message: str) -> None:
    out = tmp_path / "out"
    with pytest.raises(BadInput, match=re.escape(message)):
        command.fit(FitConfig(**{"photos": str(tmp_path), "out": str(out), **settings}))
    assert not out.exists()


def test_the_command_line_is_the_function(photos: Path, finished: Path, capsys: Any) -> None:
    words = ["--model", "simplenet_cifar_310k", "--size", "32", "--epochs", "2"]
    assert cli.execute(["fit", str(photos), *words, "--out", str(finished)]) == 0
    assert f"page: {finished / 'fit.html'}" in capsys.readouterr().out
    assert cli.execute(["fit", str(photos), "--epochs", "many"]) == 1
    assert "--epochs 'many' is not a whole number" in capsys.readouterr().err


def test_with_a_latency_the_pick_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_for = []

    def pick(settings: PickConfig) -> dict[str, Any]:
        looked_for.append(settings)
        return {"winner": {"model": "emo_1m", "input_size": [1, 3, 192, 192]}}

    monkeypatch.setattr("zoo.picking.pick.pick", pick)
    data = {"classes": [{}, {}], "train": 9, "is_imbalanced": True}
    settings = FitConfig(photos="photos", ms=7.0)
    chosen = fit_steps.choose(settings, tmp_path, {"inspect": data})
    assert (looked_for[0].ms, looked_for[0].runtime) == (7.0, ["onnxruntime"])
    assert looked_for[0].out == str(tmp_path / "pick")
    assert (chosen["model"], chosen["image_size"], chosen["batch_size"]) == ("emo_1m", 192, 9)
    assert (chosen["class_weights"], chosen["best"]) == ("balanced", "macro_f1")
    assert (chosen["weights"], chosen["reason"], chosen["epochs"]) == ("none", "no network", 60)
    with_file = FitConfig(photos="photos", model="emo_1m", weights="own.pth", size=64)
    chosen = fit_steps.choose(with_file, tmp_path, {"inspect": data})
    assert (chosen["weights"], chosen["epochs"], chosen["lr"]) == ("own.pth", 20, 3e-4)
