"""The commands as Python functions: plain arguments become the settings of the command line."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import zoo
from zoo.command_line import composition


@pytest.fixture
def ran(monkeypatch):
    """Return the settings of the commands that would run, as dictionaries of explicit keys."""
    found = []

    def run(command, words):
        settings, explicit = composition.parse(command, words)
        found.append((command, settings, explicit))
        return "result"

    monkeypatch.setattr(composition, "run", run)
    return found


def test_groups_dotted_keys_and_last_parts(ran, tmp_path):
    out = zoo.train(
        model="emo_1m",
        data="folder",
        root=tmp_path / "a=b (1)",
        epochs=np.int64(3),
        lr=1e-3,
        mean=(0.5, 0.5, 0.25),
        train={"weight_decay": 0, "freeze": ["all-but-head"]},
        optimizer_args={"betas": [0.9, 0.99]},
        **{"model.kwargs.depth": 2, "data.in_chans": 1, "train.sync_bn": True},
    )
    assert out == "result"
    ((command, settings, explicit),) = ran
    assert command == "train"
    assert explicit == {
        "data.in_chans": 1,
        "data.mean": [0.5, 0.5, 0.25],
        "data.name": "folder",
        "data.root": str(tmp_path / "a=b (1)"),
        "model.kwargs": {"depth": 2},
        "model.name": "emo_1m",
        "train.devices": 1,
        "train.epochs": 3,
        "train.freeze": ["all-but-head"],
        "train.lr": 1e-3,
        "train.optimizer_args": {"betas": [0.9, 0.99]},
        "train.sync_bn": True,
        "train.weight_decay": 0.0,
    }
    assert settings.train.optimizer_args == {"betas": [0.9, 0.99]}


def test_a_group_with_its_name_and_keys(ran):
    zoo.train(model={"name": "emo_1m", "pretrained": True}, data={"name": "digits"}, devices=2)
    ((_, settings, explicit),) = ran
    assert (settings.model.name, settings.model.pretrained) == ("emo_1m", True)
    assert explicit["train.devices"] == 2


def test_the_other_commands(ran):
    zoo.eval(weights=Path("runs/lr=0.1"), fused=True, root="x")
    zoo.eval(artefact="a b", runtime="openvino")
    zoo.benchmark("emo_*", min_runs=3, layers=True)
    zoo.export("emo_1m", ["onnx", "pt2"], Path("a,b"), half=True, int8=False)
    zoo.export(weights="runs/x")
    assert [(command, explicit) for command, _, explicit in ran] == [
        ("eval", {"weights": "runs/lr=0.1", "fused": True, "data.root": "x"}),
        ("eval", {"artefact": "a b", "runtime": "openvino"}),
        ("benchmark", {"models": ["emo_*"], "profile.min_runs": 3, "profile.layers": True}),
        (
            "export",
            {
                "model.name": "emo_1m",
                "format": ["onnx", "pt2"],
                "export.out": "a,b",
                "export.half": True,
                "quantize.int8": False,
            },
        ),
        ("export", {"weights": "runs/x", "format": "onnx"}),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epoch": 1}, "unknown argument 'epoch' of zoo.train; did you mean 'train.epochs'?"),
        ({"in_chans": 1}, "in_chans can be model.in_chans or data.in_chans; name one of them: "),
        ({"epochs": "x"}, "train.epochs: 'x' is not a whole number"),
        ({"epochs": 1, "train": {"epochs": 2}}, "train.epochs is given twice"),
        ({"train": {"epoch": 1}}, "unknown key 'train.epoch' of zoo train"),
        ({"model": nn.Linear(1, 1)}, "model is a module; zoo.train takes the name of a model"),
        ({"data": "flder"}, "unknown data 'flder'; did you mean 'folder'?"),
        ({"lr": float("nan")}, "train.lr=nan must be a finite number"),
    ],
)
def test_mistakes(arguments, message, ran):
    with pytest.raises(zoo.BadInput) as error:
        zoo.train(**arguments)
    assert str(error.value).startswith(message)
    assert ran == []


def test_an_unknown_model(ran):
    with pytest.raises(zoo.UnknownModel, match="did you mean 'emo_1m'"):
        zoo.export("emo_1n")


def test_modules_are_exported_and_counted_as_before(tmp_path):
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    artefact = zoo.export(module, "pt2", tmp_path / "model.pt2", input_size=(1, 3, 8, 8))
    assert artefact.path.is_file()
    assert zoo.count(module, (1, 3, 8, 8)).macs == 6 * 6 * 4 * 27
    with pytest.raises(zoo.BadInput, match="takes one format and a path"):
        zoo.export(module, "pt2")


def test_a_name_is_counted_at_its_own_size():
    counts = zoo.count("cct_2_3x2_32")
    assert tuple(counts.input_size) == (1, 3, 32, 32)
    assert counts.params == zoo.count(zoo.create_model("cct_2_3x2_32"), (1, 3, 32, 32)).params


def test_a_notebook_can_train_evaluate_export_and_predict(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = zoo.train(
        "cct_2_3x2_32", epochs=1, warmup_epochs=0, limit_train_batches=1, limit_val_batches=1,
        image_size=32, num_workers=0, accelerator="cpu",
    )  # fmt: skip
    report = zoo.eval(run, num_workers=0)
    assert "top1" in report
    (artefact,) = zoo.export(weights=run, format="torchscript")
    from torchvision.utils import save_image

    save_image(torch.zeros(3, 32, 32), tmp_path / "photo.png")
    (answer,) = zoo.predict(artefact.path.parent, "photo.png", top=2)
    assert len(answer["classes"]) == 2
