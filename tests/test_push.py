"""`zoo push`: what it publishes of a run, to a stand-in of the Hugging Face hub."""

import json
import os
import time

import pytest
import safetensors.torch
import timm
import torch
from hub_stand_in import (
    HUB,
    OWN,
    PREPROCESSING,
    SHARED,
    checkpoint_of,
    hub,
    make_run,
    pushed,
    read_card,
)
from PIL import Image
from support import images

import zoo
import zoo.timm_bridge
from zoo.hub import described
from zoo.training import checkpoint

__all__ = ["hub"]  # the fixture


def test_the_card_says_what_the_run_recorded(hub, tmp_path):
    make_run(tmp_path / "run", pretrained=True)
    (tmp_path / "run" / "eval_folder").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "run" / "eval_folder" / "confusion.png")
    row = {"model": OWN, "input_size": [1, 3, 32, 32], "runtime": "eager", "p50_ms": 1.25}
    row |= {"low_ms": 1.2, "high_ms": 1.3, "fused": True, "machine": {"cpu": "An Odd CPU"}}
    (tmp_path / "run" / "latency.jsonl").write_text(json.dumps(row) + "\n")
    zoo.push(tmp_path / "run", "owner/name", licence="mit", private=True)
    assert hub.private == {"owner/name"}
    head, body = read_card(hub)
    assert head["license"] == "mit"
    assert head["pipeline_tag"] == "image-classification"
    (result,) = head["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == 0.75
    for line in (
        "2 classes: cat, dog.",
        "| top-1 | 75.00 % | 62.77 to 84.22 % |",  # Wilson, 45 of the 60 images that it saw
        "also chose the checkpoint",
        "| train | 90 | 40 to 50 |",
        "| train.epochs | 3 |",
        "| train.mixup | 0.2 |",
        "Measured on An Odd CPU.",
        "| eager | fused | 1 | 1.25 | ±4 % |",
        "![pictures/eval_folder_confusion.png](pictures/eval_folder_confusion.png)",
        f"Started from the published weights of {OWN} (",
        f'zoo.create_model("{HUB}")',
        "import zoo.timm_bridge",
    ):
        assert line in body, line
    assert "/home/me" not in body
    assert "train.out" not in body
    assert "pictures/eval_folder_confusion.png" in hub.repositories["owner/name"]


def test_a_later_evaluation_is_the_accuracy_of_the_card(hub, tmp_path):
    make_run(tmp_path / "run")
    file = tmp_path / "run" / "eval_folder" / "report.json"
    file.parent.mkdir()
    top1 = {"value": 0.8, "low": 0.7, "high": 0.9}
    report = {"weights": "best.ckpt", "fused": False, "data": "folder", "images": 100, "top1": top1}
    file.write_text(json.dumps(report))
    os.utime(file, (time.time() + 9, time.time() + 9))
    zoo.push(tmp_path / "run", "owner/name", pictures=False)
    assert "| top-1 | 80.00 % | 70.00 to 90.00 % |" in read_card(hub)[1]
    assert "also chose" not in read_card(hub)[1]
    os.utime(file, (1, 1))  # of an earlier checkpoint
    zoo.push(tmp_path / "run", "owner/name", pictures=False)
    assert "75.00 %" in read_card(hub)[1]


def test_a_dry_run_writes_the_folder_only(hub, tmp_path, capsys):
    make_run(tmp_path / "run")
    Image.new("RGB", (8, 8)).save(tmp_path / "run" / "predictions.png")
    licence = tmp_path / "MY_LICENCE"
    licence.write_text("Do what you like.\n")
    out = tmp_path / "out"
    assert pushed(tmp_path / "run", "--dry-run", str(out), "--licence", str(licence)) == 0
    assert hub.requests == []
    assert (out / "LICENSE").read_text() == "Do what you like.\n"
    assert "license_link: LICENSE" in (out / "README.md").read_text()
    assert (out / "pictures" / "predictions.png").is_file()
    assert timm.create_model(f"local-dir:{out}", pretrained=True).num_classes == 2
    assert pushed(tmp_path / "run", "--dry-run", str(out)) == 1
    assert f"{out} is not an empty folder" in capsys.readouterr().err
    assert pushed(tmp_path / "run", "--dry-run", str(tmp_path / "b"), "--no-pictures") == 0
    assert not (tmp_path / "b" / "pictures").exists()
    assert "no licence is stated" in capsys.readouterr().out
    assert [path.name for path in tmp_path.glob(".zoo-*")] == []


@pytest.mark.parametrize(
    ("name", "given", "architecture"),
    [
        ("timm/mobilenetv3_small_050", {}, "mobilenetv3_small_050"),
        ("spnasnet_100", {"in_chans": 1}, "spnasnet_100"),
        ("cct_2_3x2_32", {"img_size": 64}, "zoo_cct_2_3x2_32"),
        ("wavemix_sisr_144_4_l1", {"depth": 1}, "wavemix_sisr_144_4_l1"),
    ],
)
def test_arguments_travel(name, given, architecture, tmp_path):
    """Of timm's models, of grey images, of tables of an image size, and for super-resolution."""
    arguments = {"name": name, "num_classes": 2, "in_chans": 3, **given}
    model = zoo.create_model(**arguments).eval()
    content = checkpoint_of(model, arguments)
    channels = arguments["in_chans"]
    statistics = {"mean": [0.5] * channels, "std": [0.5] * channels}
    content["data"]["preprocessing"] |= {"size": [channels, 64, 64], **statistics}
    checkpoint.save(content, tmp_path / "run" / "best.ckpt")
    out = tmp_path / "out"
    zoo.push(tmp_path / "run", "owner/name", dry_run=out)
    config = json.loads((out / "config.json").read_text())
    assert config["architecture"] == architecture
    x = images(1, (64, 64), channels=channels)
    state = safetensors.torch.load_file(out / "model.safetensors")
    again = zoo.create_model(**described(config, "out", state)["model"]).eval()
    zoo.load_weights(again, state)
    loaded = [again]
    if "wavemix" not in name:
        loaded.append(timm.create_model(f"local-dir:{out}", pretrained=True).eval())
    with torch.no_grad():
        for other in loaded:
            torch.testing.assert_close(other(x), model(x), rtol=1e-4, atol=1e-5)


def test_the_order_of_colours_travels(hub, tmp_path):
    model = zoo.create_model(OWN, num_classes=2)
    content = checkpoint_of(model, {"name": OWN, "num_classes": 2, "in_chans": 3})
    content["data"]["preprocessing"]["channel_order"] = "BGR"
    checkpoint.save(content, tmp_path / "run" / "best.ckpt")
    zoo.push(tmp_path / "run", "owner/name")
    assert "in the order blue, green, red" in read_card(hub)[1]
    assert zoo.weights.read_checkpoint(HUB)["data"] == {
        key: content["data"][key] for key in ("num_classes", "class_names", "preprocessing")
    }
    make_run(tmp_path / "another")
    zoo.push(tmp_path / "another", "owner/name")
    preprocessing = zoo.weights.read_checkpoint(HUB)["data"]["preprocessing"]
    assert preprocessing == PREPROCESSING | {"channel_order": "RGB"}


def test_a_segmentation_is_pushed_and_loaded_again(hub, tmp_path):
    """A decoder on a backbone: its arguments travel; timm does not have it."""
    arguments = {"name": "fpn", "encoder": SHARED, "num_classes": 2, "in_chans": 1}
    model = zoo.create_model(**arguments).eval()
    content = checkpoint_of(model, arguments)
    content["data"]["preprocessing"] |= {"size": [1, 32, 32], "mean": [0.5], "std": [0.25]}
    content["metrics"] = {"val/mean_iou": 0.5, "val/pixel_accuracy": 0.875}
    checkpoint.save(content, tmp_path / "run" / "best.ckpt")
    zoo.push(tmp_path / "run", "owner/name")
    config = json.loads(hub.repositories["owner/name"]["config.json"])
    assert config["architecture"] == "fpn"
    assert config["model_args"] == {"encoder": SHARED, "in_chans": 1}
    loaded = zoo.create_model(HUB).eval()
    assert loaded.class_names == ["cat", "dog"]
    x = images(1, (32, 32), channels=1)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
    head, body = read_card(hub)
    assert head["pipeline_tag"] == "image-segmentation"
    assert "| mean IoU | 0.5 |" in body
    assert "| pixel accuracy | 87.50 % |" in body
    assert "timm" not in body.split("## Accuracy")[0]


def test_what_cannot_be_pushed(hub, tmp_path, monkeypatch, capsys):
    make_run(tmp_path / "run")
    torch.save(zoo.create_model(OWN).state_dict(), tmp_path / "weights.pth")
    assert pushed(tmp_path / "weights.pth") == 1
    assert "does not say which model it belongs to" in capsys.readouterr().err
    for name, said in (
        ("name", "give hf-hub:owner/name"),
        ("owner/name@v1", "leave @... out"),
        ("somebody-else/name", "use one with the right to write"),
    ):
        with pytest.raises(zoo.BadInput, match=said):
            zoo.push(tmp_path / "run", name)
    with pytest.raises(zoo.BadInput, match="neither a file nor an identifier"):
        zoo.push(tmp_path / "run", "owner/name", licence="my own")
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    assert pushed(tmp_path / "run") == 1
    error = capsys.readouterr().err
    assert "the hub does not know you: log in with `hf auth login`" in error
    assert "--dry-run FOLDER writes the files only" in error
    assert error.count("\n") == 1
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(zoo.BadInput, match="log in with"):
        zoo.push(tmp_path / "run", "owner/name")
