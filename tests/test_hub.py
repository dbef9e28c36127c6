"""Models on the Hugging Face hub, from and to a stand-in of it: `hf-hub:owner/name`, `zoo push`."""

import io
import json
import os
import re
import shlex
import time
from pathlib import Path

import hub_stand_in
import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch
import yaml
from hub_stand_in import TOKEN
from PIL import Image
from support import images

import zoo
import zoo.timm_bridge
from zoo import cli
from zoo.hub import described
from zoo.settings import TrainConfig
from zoo.training import checkpoint

OWN, SHARED = "simplenet_cifar_310k", "mobilenetv2_035"
PREPROCESSING = {
    "size": [3, 32, 32],
    "crop_pct": 0.9,
    "interpolation": "bilinear",
    "mean": [0.1, 0.2, 0.3],
    "std": [0.4, 0.5, 0.6],
}
HUB = "hf-hub:owner/name"
PAGE = Path(__file__).parents[1] / "docs" / "hub.md"
BASH = "".join(re.findall(r"^```bash\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The stand-in in place of the hub, and an empty cache."""
    constants = huggingface_hub.constants
    with hub_stand_in.running() as handler:
        monkeypatch.setattr(constants, "ENDPOINT", handler.address)
        template = "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", handler.address + template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield handler


def checkpoint_of(model, arguments, **changes):
    """Return a checkpoint of `train.py` for two classes."""
    train = TrainConfig(epochs=3, mixup=0.2, limit_val_batches=2, batch_size=30, out="/home/me")
    return {
        "state_dict": model.state_dict(),
        "model": arguments,
        "data": {
            "num_classes": 2,
            "class_names": ["cat", "dog"],
            "preprocessing": dict(PREPROCESSING),
            "splits": {
                "train": {"images": 90, "names": "a", "classes": [40, 50]},
                "val": {"images": 100, "names": "b"},
            },
        },
        "config": {
            "model": {"name": arguments["name"], **changes},
            "data": {"name": "folder", "root": "/home/me/photos"},
            "train": vars(train),
        },
        "metrics": {"val/top1": 0.75, "val/loss": 0.5},
        "versions": {"torch": "2.15.0"},
    }


def make_run(folder, name=OWN, **changes):
    """Write the run folder of a model with random weights, and return the model."""
    model = zoo.create_model(name, num_classes=2).eval()
    arguments = {"name": name, "num_classes": 2, "in_chans": 3, "drop_rate": 0.0}
    content = checkpoint_of(model, arguments, **changes)
    checkpoint.save(content, folder / "checkpoints" / "best.ckpt")
    return model


def pushed(folder, *options):
    return cli.execute(["push", str(folder), "owner/name", *options])


def read_card(hub):
    text = hub.repositories["owner/name"]["README.md"].decode()
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


def pickled(state):
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def same(model, other):
    x = images(2, (32, 32))
    with torch.no_grad():
        torch.testing.assert_close(other(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_run_is_pushed_and_loaded_again(hub, tmp_path, capsys):
    model = make_run(tmp_path / "run")
    assert pushed(tmp_path / "run", "--licence", "MIT") == 0
    assert capsys.readouterr().out == f"published at {hub.address}/owner/name\n"
    assert sorted(hub.repositories["owner/name"]) == [
        "README.md", "config.json", "model.safetensors",
    ]  # fmt: skip
    assert not hub.private
    loaded = zoo.create_model(HUB).eval()
    assert type(loaded) is type(model)
    same(model, loaded)
    assert loaded.class_names == ["cat", "dog"]
    same(model, zoo.create_model("hf_hub:owner/name@main", pretrained=True).eval())
    same(model, timm.create_model(HUB, pretrained=True).eval())
    again = zoo.create_model(OWN, num_classes=2).eval()
    zoo.load_weights(again, HUB)
    same(model, again)


def test_weights_can_be_left_out_and_sizes_changed(hub, tmp_path):
    model = make_run(tmp_path / "run")
    zoo.push(tmp_path / "run", "owner/name")
    first = model.state_dict()
    random = zoo.create_model(HUB, pretrained=False).state_dict()
    assert random["head.fc.weight"].shape[0] == 2
    assert not torch.equal(random["stem.conv.weight"], first["stem.conv.weight"])
    tuned = zoo.create_model(HUB, num_classes=5)
    assert tuned.num_classes == 5
    assert not hasattr(tuned, "class_names")
    torch.testing.assert_close(tuned.state_dict()["stem.conv.weight"], first["stem.conv.weight"])
    levels = zoo.create_model(HUB, features_only=True, out_indices=(1, 2))
    assert len(levels(images(1, (32, 32)))) == 2
    with pytest.raises(zoo.BadInput, match="both name weights"):
        zoo.create_model(HUB, checkpoint_path="file.pth")


def test_timm_loads_what_it_has_itself(hub, tmp_path):
    """Without our package: its own architecture under its own names, in other sizes too."""
    model = make_run(tmp_path / "run", SHARED)
    zoo.push(tmp_path / "run", "owner/name", licence="apache-2.0")
    config = json.loads(hub.repositories["owner/name"]["config.json"])
    assert config["architecture"] == SHARED
    own = timm.create_model(HUB, pretrained=True).eval()
    assert type(own).__module__.startswith("timm.")
    same(model, own)
    assert own.pretrained_cfg["label_names"] == ["cat", "dog"]
    assert own.pretrained_cfg["mean"] == PREPROCESSING["mean"]
    assert timm.create_model(HUB, pretrained=True, num_classes=7).num_classes == 7
    same(model, zoo.create_model(HUB).eval())
    assert "import zoo.timm_bridge" not in read_card(hub)[1]


def test_a_repository_of_timm_is_loaded(hub):
    """As timm writes them: another model than ours, and ours under timm's names."""
    for name in ("mobilenetv3_small_050", SHARED):
        model = timm.create_model(name, num_classes=3).eval()
        config = {"architecture": name, "num_classes": 3, "pretrained_cfg": {"crop_pct": 0.8}}
        hub.repositories["owner/name"] = {
            "config.json": json.dumps(config).encode(),
            "model.safetensors": safetensors.torch.save(model.state_dict()),
        }
        same(model, zoo.create_model(HUB).eval())


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


def test_commands_take_a_repository_as_weights(hub, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "run")
    zoo.push(tmp_path / "run", "owner/name")
    Image.new("RGB", (50, 40), "red").save("photo.jpg")
    capsys.readouterr()
    assert cli.execute(["predict", HUB, "photo.jpg", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert {entry["name"] for entry in found["classes"]} == {"cat", "dog"}
    for label in ("cat", "dog"):
        (tmp_path / "data" / "val" / label).mkdir(parents=True)
        Image.new("RGB", (40, 40), "red").save(tmp_path / "data" / "val" / label / "a.png")
    report = zoo.eval(weights=HUB, data="folder", root="data", num_workers=0)
    assert report["preprocessing"]["mean"] == PREPROCESSING["mean"]
    assert report["preprocessing"]["interpolation"] == "bilinear"
    assert (tmp_path / "runs" / f"eval_{OWN}_folder").is_dir()
    assert cli.execute(["info", HUB]) == 1
    assert "zoo.create_model takes" in capsys.readouterr().err


def refused(name=HUB, **arguments):
    with pytest.raises(zoo.ZooError) as caught:
        zoo.create_model(name, **arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_repository_that_is_not_there(hub, monkeypatch):
    message = refused()
    assert message.startswith(f"{HUB} cannot be fetched: there is no such repository")
    assert "HF_TOKEN" in message
    hub.repositories["owner/name"] = {}
    assert "not a repository of an image model" in refused()
    assert "no such revision" in refused(f"{HUB}@v2")
    for name in ("hf-hub:", "hf-hub:name", "hf-hub:a/b/c", "hf-hub:../b", "hf-hub:a/b@"):
        assert "give hf-hub:owner/name" in refused(name)


def test_without_a_network_what_is_in_the_cache_is_taken(hub, tmp_path, monkeypatch):
    model = make_run(tmp_path / "run")
    zoo.push(tmp_path / "run", "owner/name")
    zoo.create_model(HUB)
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    same(model, zoo.create_model(HUB).eval())
    assert "cannot be fetched: " in refused("hf-hub:owner/other")
    with pytest.raises(zoo.BadWeights, match="put it at"):
        zoo.load_weights(model, "hf:owner/other/file.pth")
    with pytest.raises(zoo.BadInput, match="owner/name cannot be uploaded"):
        zoo.push(tmp_path / "run", "owner/name")
    assert slept == []  # no second try


CFG = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 0.9}
GOOD = {"architecture": OWN, "num_classes": 2, "pretrained_cfg": CFG}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "config.json cannot be read"),
        (b"[" * 100_000, "config.json cannot be read"),
        (b"[]", "config.json is not an object"),
        (b"{}", "names no architecture"),
        ({"architecture": 3}, "names no architecture"),
        ({"architecture": "no_such_net"}, "neither zoo nor timm has the architecture no_such_net"),
        ({"architecture": "os.system"}, "neither zoo nor timm"),
        ({"pretrained_cfg": [1]}, "pretrained_cfg=[1] in config.json must be an object"),
        ({"model_args": "x"}, "model_args='x' in config.json must be an object"),
        ({"model_args": {"checkpoint_path": "/etc/passwd"}}, "model_args.checkpoint_path="),
        ({"model_args": {"pretrained": True}}, "model_args.pretrained=True"),
        ({"model_args": {"no_such": 1}}, "unknown argument 'no_such'"),
        ({"model_args": {"in_chans": 0}}, "in_chans=0"),
        ({"model_args": {"in_chans": 10**12}}, "model_args.in_chans=1000000000000"),
        ({"model_args": {"drop_rate": "a lot"}}, "drop_rate='a lot' must"),
        ({"model_args": {"global_pool": [1]}}, "global_pool"),
        ({"num_classes": "two"}, "num_classes='two' in config.json must be a number of classes"),
        ({"num_classes": 10**12}, "has 1000000000000 classes, but the weights have others"),
        ({"num_classes": 3}, "has 3 classes, but the weights have others"),
        ({"label_names": ["cat"]}, "label_names=['cat'] in config.json must be a list of 2 names"),
        ({"label_names": {"0": "cat", "2": "dog"}}, "must be a list of 2 names"),
        ({"label_names": [1, 2]}, "must be a list of 2 names"),
        ({"pretrained_cfg": {**CFG, "input_size": [3, 32]}}, "input_size=[3, 32]"),
        ({"pretrained_cfg": {**CFG, "input_size": [3, 32, 1e9]}}, "input_size="),
        ({"pretrained_cfg": {**CFG, "mean": "grey"}}, "mean='grey' in config.json must be a list"),
        ({"pretrained_cfg": {**CFG, "std": [0.5, 0.5, 0]}}, "std=[0.5, 0.5, 0]"),
        ({"pretrained_cfg": {**CFG, "crop_pct": -1}}, "crop_pct=-1"),
        ({"channel_order": "GRB"}, "channel_order='GRB'"),
        ({"pretrained_cfg": {**CFG, "interpolation": "magic"}}, "must be one of nearest"),
    ],
)
def test_a_configuration_that_cannot_be_true(hub, content, said):
    if isinstance(content, dict):
        content = json.dumps({**GOOD, **content}).encode()
    weights = zoo.create_model(OWN, num_classes=2).state_dict()
    hub.repositories["owner/name"] = {
        "config.json": content,
        "model.safetensors": safetensors.torch.save(weights),
    }
    message = refused()
    assert said in message
    assert message.startswith(HUB)


def test_weights_that_are_none_or_of_another_model(hub):
    files = {"config.json": json.dumps(GOOD).encode(), "model.safetensors": b"\x00" * 64}
    hub.repositories["owner/name"] = files
    assert "truncated or not a checkpoint" in refused()
    other = zoo.create_model("cct_2_3x2_32", num_classes=2).state_dict()
    files["model.safetensors"] = safetensors.torch.save(other)
    assert f"{HUB} does not fit" in refused()


def test_a_damaged_file_in_the_cache_is_fetched_again(hub, tmp_path):
    model = zoo.create_model(OWN, num_classes=2).eval()
    hub.repositories["owner/name"] = {
        "config.json": json.dumps(GOOD).encode(),
        "pytorch_model.bin": pickled(model.state_dict()),
    }
    zoo.create_model(HUB)
    (file,) = tmp_path.rglob("snapshots/*/pytorch_model.bin")
    file.resolve().write_bytes(b"")
    same(model, zoo.create_model(HUB).eval())


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
    assert "the hub does not know your token: log in with `hf auth login`" in error
    assert "--dry-run FOLDER writes the files only" in error
    assert error.count("\n") == 1


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


def test_the_commands_of_the_page(hub, tmp_path, monkeypatch, capsys):
    """As typed, one after the other, but for a smaller model and a quicker format."""
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs" / "run")
    Image.new("RGB", (50, 40), "red").save("photo.jpg")
    for label in ("train/cat", "train/dog", "val/cat", "val/dog"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (40, 40), "red").save(tmp_path / f"photos/{label}/{number}.png")
    commands = [line for line in BASH.splitlines() if line]
    short = {
        "train": "train.epochs=1 train.warmup_epochs=0 train.batch_size=4 data.image_size=32",
        "eval": "data.num_workers=0",
    }
    assert len(commands) == 6
    for command in sorted(commands, key=lambda command: "push" not in command):
        typed = command.replace("<run>", "run").replace("mobilenetv2_100", OWN)
        typed = typed.replace("format=onnx", "format=torchscript")
        words = shlex.split(typed)[1:]
        assert cli.execute([*words, *short.get(words[0], "").split()]) == 0, command
    assert (tmp_path / "repository" / "model.safetensors").is_file()
    assert hub.private == {"owner/name"}


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
