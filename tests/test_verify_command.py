"""`zoo verify` and the ledger: published weights that were run, and what is said of them."""

import copy
import hashlib
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import zoo
from zoo import cli, registry
from zoo.cache import cache_folder
from zoo.errors import OutputsDiffer
from zoo.fetch import cache_name
from zoo.reports import ledger
from zoo.reports.page import render
from zoo.reports.view import View

ROOT = Path(__file__).parents[1]

NAME, ADDRESS = "simplenet_cifar_310k", "https://example.org/two.pth"
SHA = "ab" * 32
ACCURACY = {
    "date": "2026-01-31",
    "sha256": SHA,
    "data": "imagenet",
    "images": 50000,
    "metric": "top1",
    "value": 0.7288,
    "low": 0.7249,
    "high": 0.7327,
    "size": [3, 224, 224],
    "interpolation": "bicubic",
    "crop_pct": 0.875,
}
OUTPUTS = {
    "date": "2026-01-31",
    "sha256": SHA,
    "picture": "china.jpg",
    "shape": [1, 10],
    "mean": 0.5,
    "std": 1.5,
    "probe": 0.1,
    "first": [1, 2.5],
    "top": [[3, 2.5], [1, 1.5]],
    "torch": "2.15.0",
}


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """An empty cache, and weights for two classes in it; return their file."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    cache_folder().mkdir(parents=True)
    torch.manual_seed(0)
    state = zoo.create_model(NAME, num_classes=2).state_dict()
    file = cache_folder() / cache_name(ADDRESS)
    torch.save({"net": state}, file)
    entry = {"tag": "two", "keys": "none", "licence": "MIT", "classes": 2, "branch": "net"}
    facts = registry.get_spec(NAME).facts
    monkeypatch.setitem(facts, "weights", [{**entry, "url": ADDRESS}])
    return file


def test_outputs_are_recorded_and_then_compared(cached, capsys):
    sha256 = hashlib.sha256(cached.read_bytes()).hexdigest()
    assert cli.execute(["verify", NAME]) == 0
    printed = capsys.readouterr().out
    assert f"{NAME}.two: {cached.name} fits, sha256 {sha256}" in printed
    assert f"outputs for china.jpg: recorded in {ledger.own_file()}" in printed
    recorded = json.loads(ledger.own_file().read_text())["weights"][f"{NAME}.two"]["outputs"]
    assert recorded["sha256"] == sha256
    assert recorded["shape"] == [1, 2]
    values = recorded["first"]
    assert recorded["top"] == sorted(([k, v] for k, v in enumerate(values)), key=lambda p: -p[1])
    assert recorded["mean"] == pytest.approx(sum(values) / 2, abs=1e-5)
    assert cli.execute(["verify", f"{NAME}.two"]) == 0
    assert "equal to those recorded on" in capsys.readouterr().out
    assert "two: accuracy never verified; outputs for china.jpg" in info(capsys)


def info(capsys):
    capsys.readouterr()
    assert cli.execute(["info", NAME]) == 0
    return " ".join(capsys.readouterr().out.split())


def test_outputs_depend_on_the_published_preprocessing(cached, monkeypatch):
    first = zoo.verify(NAME)["outputs"]["first"]
    ledger.own_file().unlink()
    changed = {**registry.get_spec(NAME).facts["input"], "mean": [0.1, 0.1, 0.1]}
    monkeypatch.setitem(registry.get_spec(NAME).facts, "input", changed)
    assert zoo.verify(NAME)["outputs"]["first"] != first


def test_other_outputs_are_an_error(cached, tmp_path):
    found = zoo.verify(NAME)["outputs"]
    ledger.add(ledger.own_file(), f"{NAME}.two", outputs={**found, "mean": found["mean"] + 0.1})
    with pytest.raises(OutputsDiffer, match="the code has changed since"):
        zoo.verify(NAME)
    changed = {**found, "mean": found["mean"] + 0.1, "sha256": SHA}
    ledger.add(ledger.own_file(), f"{NAME}.two", outputs=changed)
    with pytest.raises(OutputsDiffer, match="it is another file"):
        zoo.verify(NAME)
    ledger.add(ledger.own_file(), f"{NAME}.two", outputs={**found, "sha256": SHA})
    assert zoo.verify(NAME)["outputs"]["sha256"] == SHA  # another file with the same weights


def test_the_accuracy_is_measured_and_recorded(cached, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for label in ("a", "b"):
        (tmp_path / "photos" / "val" / label).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (40, 40), "red").save(tmp_path / f"photos/val/{label}/{number}.png")
    words = ["--data", "folder", "root=photos", "num_workers=0", "--ledger", "mine.json"]
    assert cli.execute(["verify", NAME, *words]) == 0
    found = json.loads((tmp_path / "mine.json").read_text())["weights"][f"{NAME}.two"]["accuracy"]
    assert (found["data"], found["images"], found["value"]) == ("folder", 6, 0.5)
    assert found["low"] == pytest.approx(0.1876, abs=1e-4)  # Wilson, 3 of 6
    assert found["size"] == [3, 32, 32]
    assert "top-1 50.00 % (95 %: 18.76 to 81.24) of 6 images of folder" in capsys.readouterr().out
    assert not ledger.own_file().exists()
    again = zoo.verify(NAME, "folder", root=tmp_path / "photos", num_workers=0)
    assert {**again["accuracy"]} == found
    assert "top-1 50.00 %" in info(capsys)


def test_a_file_fetched_by_hand(cached, tmp_path, monkeypatch):
    entry = {"tag": "two", "keys": "none", "licence": "MIT", "classes": 2, "branch": "net"}
    monkeypatch.setitem(registry.get_spec(NAME).facts, "weights", [{**entry, "page": "https://p"}])
    with pytest.raises(zoo.BadWeights, match="fetch them from https://p"):
        zoo.verify(NAME)
    assert zoo.verify(NAME, weights=str(cached))["outputs"]["shape"] == [1, 2]
    entry["sha256"] = SHA
    monkeypatch.setitem(registry.get_spec(NAME).facts, "weights", [{**entry, "page": "https://p"}])
    with pytest.raises(zoo.BadWeights, match="has sha256"):
        zoo.verify(NAME, weights=str(cached))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["no_such_model"], "unknown model"),
        (["timm/resnet18"], "keeps no ledger of it"),
        (["asvit_base"], "no published weights"),
        ([NAME, "--data", "folder", "photos"], "give settings as key=value"),
        ([NAME, "--data", "folder", "rot=photos"], "did you mean 'root'"),
        ([NAME, "--data", "folder", "crop_pct=half"], "data=folder"),
        ([NAME, "--data", "folder", "batch_size=many"], "data=folder"),
        ([NAME, "--data", "no_such_data"], "no_such_data"),
        ([NAME, "--ledger", "."], "cannot be read"),
    ],
)
def test_what_cannot_be_verified(cached, words, said, capsys):
    assert cli.execute(["verify", *words]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("error: ") == 1


def test_what_the_ledger_says_in_words(tmp_path, monkeypatch):
    name = "mobilenetv2_100"
    spec = registry.get_spec(name)
    tags = [entry["tag"] for entry in spec.weights]
    assert list(ledger.lines(spec, {})) == [f"{tag}: never" for tag in tags]
    assert ledger.in_short(name, {}) == "never"
    assert ledger.in_short("asvit_base", {}) == ledger.in_short("timm/resnet18", {}) == ""
    known = {f"{name}.{tags[0]}": {"outputs": OUTPUTS}}
    assert ledger.in_short(name, known) == "outputs"
    known[f"{name}.{tags[0]}"]["accuracy"] = ACCURACY
    assert ledger.in_short(name, known) == "top-1 72.88 %"
    assert next(ledger.lines(spec, known)) == (
        f"{tags[0]}: top-1 72.88 % (95 %: 72.49 to 73.27) of 50,000 images of imagenet, 224 x 224,"
        " bicubic, crop 0.875 (2026-01-31, sha256 abababab), claimed 72.91 %, inside the interval;"
        " outputs for china.jpg recorded (2026-01-31, sha256 abababab)"
    )
    low = {**ACCURACY, "value": 0.7, "low": 0.69, "high": 0.71}
    assert "claimed 72.91 %, outside the interval" in ledger.accuracy_in_words(name, low)
    other = {**ACCURACY, "data": "folder"}
    assert "claimed" not in ledger.accuracy_in_words(name, other)
    assert ledger.counted(known, [name]) == (len(tags), 1, 0)


def test_the_later_record_counts(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    packaged = tmp_path / "packaged.json"
    monkeypatch.setattr(ledger, "packaged_file", lambda: packaged)
    ledger.add(packaged, "a.b", accuracy=ACCURACY, outputs=OUTPUTS)
    later = {**ACCURACY, "date": "2026-02-01", "value": 0.73}
    earlier = {**OUTPUTS, "date": "2026-01-01", "mean": 0.7}
    ledger.add(ledger.own_file(), "a.b", accuracy=later, outputs=earlier)
    assert ledger.entries() == {"a.b": {"accuracy": later, "outputs": OUTPUTS}}
    assert ledger.entries(own=False) == {"a.b": {"accuracy": ACCURACY, "outputs": OUTPUTS}}


def changes():
    """Yield ledgers with one fault each."""
    good = {"format": ledger.FORMAT, "weights": {"a.b": {"accuracy": ACCURACY, "outputs": OUTPUTS}}}
    yield [good]
    yield {**good, "format": "zoo.ledger/9"}
    yield {**good, "weights": []}
    yield {**good, "weights": {"a.b": []}}
    yield {**good, "weights": {"a.b": {"speed": {}}}}
    for kind, record in (("accuracy", ACCURACY), ("outputs", OUTPUTS)):
        for key in record:
            for value in ([], {}, "x\n", True, -(10**40)):
                wrong = copy.deepcopy(good)
                wrong["weights"]["a.b"][kind][key] = value
                yield wrong
            less = copy.deepcopy(good)
            del less["weights"]["a.b"][kind][key]
            yield less


def test_a_damaged_ledger_is_said_in_one_line(tmp_path):
    file = tmp_path / "ledger.json"
    for text in ("{", "\x00", "[" * 100_000, *map(json.dumps, changes())):
        file.write_text(text)
        with pytest.raises(zoo.BadInput) as caught:
            ledger.read(file)
        assert str(caught.value).startswith(f"the ledger {file} "), text
        assert "\n" not in str(caught.value)
    with pytest.raises(zoo.BadInput, match="cannot be recorded"):
        ledger.add(tmp_path / "new.json", "a.b", accuracy={**ACCURACY, "value": "much"})
    assert ledger.read(tmp_path / "none.json") == {}


def test_the_packaged_ledger_is_of_files_in_the_facts():
    """Its sums are those that the facts state, so it belongs to the files that users get."""
    for name, entry in ledger.read(ledger.packaged_file()).items():
        model, _, tag = name.partition(".")
        weights = next(w for w in registry.get_spec(model).weights if w["tag"] == tag)
        for record in entry.values():
            assert "sha256" in weights or "git_sha1" in weights, name
            assert record["sha256"].startswith(weights.get("sha256", ""))


def test_the_cache_is_found_without_pytorch(monkeypatch):
    """As torch.hub finds it, whatever the environment says."""
    for changes in ({}, {"XDG_CACHE_HOME": "/a"}, {"TORCH_HOME": "~/b"}):
        for key in ("XDG_CACHE_HOME", "TORCH_HOME"):
            monkeypatch.delenv(key, raising=False)
        for key, value in changes.items():
            monkeypatch.setenv(key, value)
        known = cache_folder()
        with monkeypatch.context() as patch:
            patch.delitem(sys.modules, "torch")
            assert cache_folder() == known


def test_the_commands_of_the_page(cached, tmp_path, monkeypatch, capsys):
    """As typed, but for the model, and another data set in the place of ImageNet."""
    monkeypatch.chdir(tmp_path)
    for label in ("a", "b"):
        (tmp_path / "photos" / "val" / label).mkdir(parents=True)
        Image.new("RGB", (40, 40), "red").save(tmp_path / f"photos/val/{label}/photo.png")
    page = (ROOT / "docs" / "verify.md").read_text("utf-8")
    (block,) = re.findall(r"^```bash\n(.*?)^```", page, re.M | re.S)
    first, second = block.splitlines()
    for command in (first, f"{second} num_workers=0"):
        typed = command.replace("mobilenetv2_100", NAME).replace("torchvision_v2", "two")
        typed = typed.replace("imagenet root=path/to/imagenet", "folder root=photos")
        assert cli.execute(typed.split()[1:]) == 0
    assert {"accuracy", "outputs"} == ledger.entries()[f"{NAME}.two"].keys()


def test_the_web_page_has_a_column_of_it(cached):
    ledger.add(ledger.own_file(), f"{NAME}.two", accuracy={**ACCURACY, "data": "cifar10"})
    names = (NAME, "mobilenetv2_100", "asvit_base", "timm/resnet18")
    records = [
        {"model": name, "input_size": [1, 3, 32, 32], "runtime": "eager", "p50_ms": 1.0}
        for name in names
    ]
    view = View(records)
    column = next(column for column in view.columns if column.key == "verified")
    assert [column.value(record) for record in records] == ["top-1 72.88 %", "never", None, None]
    assert "top-1 72.88 %" in render(view, "measurements")
