"""`zoo weights`: what is known of published weights; --check loads them and records their sums."""

import hashlib
import json

import pytest
import torch

import zoo
from zoo import cli, registry
from zoo.commands import checked_weights
from zoo.fetch import cache_folder, cache_name

NAME = "cct_2_3x2_32"
GOOD, BAD = "https://example.org/good.pth", "https://example.org/bad.pth"


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """Two entries of weights whose files are in the cache: one fits, the other does not."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    state = zoo.create_model(NAME, num_classes=100).state_dict()
    cache_folder().mkdir(parents=True)
    torch.save({"net": state}, cache_folder() / cache_name(GOOD))
    torch.save({"a": torch.zeros(1)}, cache_folder() / cache_name(BAD))
    shared = {"keys": "none", "licence": "MIT"}
    entries = [
        {"tag": "good", "classes": 100, "branch": "net", "url": GOOD, **shared},
        {"tag": "bad", "url": BAD, "megabytes": 3, **shared},
        {"tag": "other", "page": "https://example.org/page", **shared},
    ]
    monkeypatch.setitem(registry.get_spec(NAME).facts, "weights", entries)
    return cache_folder() / cache_name(GOOD)


def printed(capsys, *words) -> tuple[int, str, str]:
    code = cli.execute(["weights", *words])
    return code, *capsys.readouterr()


def test_what_is_known_is_listed(cached, capsys):
    code, text, _ = printed(capsys, NAME)
    assert code == 0
    lines = text.splitlines()
    assert lines[0].startswith(f"{NAME}.good, about 1 MB, MIT, 100 classes, in the cache as zoo-")
    assert lines[1] == f"    {GOOD}"
    assert lines[2].startswith(f"{NAME}.bad, 3 MB, MIT, in the cache")
    assert lines[4] == f"{NAME}.other, about 1 MB, MIT, by hand: a program cannot fetch it"
    assert printed(capsys, f"{NAME}.good")[1].splitlines() == lines[:2]
    assert "publish no weights" in printed(capsys, "svt_s")[1]
    assert "publish no weights" in printed(capsys, "svt_*")[1]


def test_the_same_in_python(cached):
    good, bad, other = zoo.list_weights(NAME)
    assert good == {
        "name": f"{NAME}.good",
        "url": GOOD,
        "page": None,
        "licence": "MIT",
        "classes": 100,
        "has_classifier": True,
        "sha256": None,
        "git_sha1": None,
        "cached": str(cached),
        "bytes": None,
        "checked": None,
    }
    assert (other["url"], other["page"], other["cached"]) == (
        None,
        "https://example.org/page",
        None,
    )
    assert [row["name"] for row in zoo.list_weights([f"{NAME}.bad", "svt_*"])] == [bad["name"]]
    with pytest.raises(zoo.BadWeights, match="no model matches"):
        zoo.list_weights("nothing*")


def test_check_loads_each_file_and_records_it(cached, capsys):
    code, text, errors = printed(capsys, NAME, "--check")
    sha256 = hashlib.sha256(cached.read_bytes()).hexdigest()
    size = cached.stat().st_size
    assert f"    fits: {size:,} bytes, sha256 {sha256}" in text
    assert "    failed: cct_2_3x2_32.bad does not fit CompactTransformer: missing" in text
    assert (code, errors) == (1, "error: 1 of 2 files cannot be used; see the lines above\n")
    assert json.loads(checked_weights.path().read_text())[GOOD]["sha256"] == sha256
    code, text, _ = printed(capsys, f"{NAME}.good")
    assert f"sha256 {sha256[:8]}" in text
    assert "checked 20" in text
    (row,) = zoo.list_weights(f"{NAME}.good")
    assert (row["sha256"], row["bytes"]) == (sha256, size)


def test_names_that_are_none(cached, capsys):
    for name, message in (
        ("cct_2_3x2_33", "did you mean 'cct_2_3x2_32'"),
        (f"{NAME}.goof", "did you mean 'good'"),
        ("nothing*", "no model matches"),
        ("timm/resnet18", "not a model of this package"),
    ):
        code, _, errors = printed(capsys, name)
        assert code == 1
        assert message in errors
        assert errors.count("\n") == 1


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 3}', '{"a": {"sha256": 1}}'])
def test_a_damaged_record_is_left_out(content, cached):
    checked_weights.path().write_text(content)
    assert checked_weights.read() == {}
    checked_weights.record(GOOD, sha256="0" * 64, size=3)
    assert checked_weights.read()[GOOD]["bytes"] == 3


def test_all_models_are_listed_without_building_one(capsys):
    code, text, _ = printed(capsys)
    assert code == 0
    without = [name for name in zoo.list_models() if not zoo.model_info(name).get("weights")]
    assert text.count("publish no weights") == len(without) > 20
    assert "none stated" in text
