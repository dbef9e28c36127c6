"""Models from the Hugging Face hub, or rather from a stand-in of it: `hf-hub:owner/name`."""

import json
import re
import shlex
import time
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch
from hub_stand_in import (
    HUB,
    OWN,
    PREPROCESSING,
    SHARED,
    hub,
    make_run,
    pickled,
    pushed,
    read_card,
    same,
)
from PIL import Image
from support import images

import zoo
import zoo.timm_bridge
from zoo import cli

PAGE = Path(__file__).parents[1] / "docs" / "hub.md"
BASH = "".join(re.findall(r"^```bash\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S))
CFG = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 0.9}
GOOD = {"architecture": OWN, "num_classes": 2, "pretrained_cfg": CFG}

__all__ = ["hub"]  # the fixture


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
    with pytest.raises(zoo.BadWeights, match="of timm/mobilenetv3_small_050 cannot be fetched: "):
        zoo.create_model("timm/mobilenetv3_small_050", pretrained=True)
    assert slept == []  # no second try


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


def test_weights_of_timm_come_from_the_hub(hub):
    """They are fetched before timm looks for them; older repositories have another file."""
    for file, saved in (
        ("model.safetensors", safetensors.torch.save),
        ("pytorch_model.bin", pickled),
    ):
        peer = timm.create_model("mobilenetv3_small_050").eval()
        hub.repositories["timm/mobilenetv3_small_050.lamb_in1k"] = {file: saved(peer.state_dict())}
        same(peer, zoo.create_model("timm/mobilenetv3_small_050", pretrained=True).eval())


def test_a_server_that_says_less(hub, monkeypatch):
    """Plain statuses, without the hub's own headers."""
    monkeypatch.setattr(hub, "_send", sent_plainly)
    assert "does not exist, or it has no config.json" in refused("hf-hub:a/b")


def sent_plainly(handler, status, body=b"", **headers):
    handler.send_response(404 if status == 401 else status)
    handler.send_header("Content-Length", "0")
    handler.end_headers()


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
