"""Records made here are those that the project was given."""

import json

import make_record
import pytest
from test_records import RECORDS


@pytest.mark.parametrize("name", ["spnasnet_100"])
def test_a_record_of_timm_is_made_again(name, tmp_path, monkeypatch):
    monkeypatch.setattr(make_record, "RECORDS", tmp_path)
    make_record.main(
        [
            *("timm:create_model", name, "--public-kwargs", json.dumps({"model_name": name})),
            *("--repo", "huggingface/pytorch-image-models", "--commit", "v1.0.31"),
            *("--licence", "Apache-2.0", "--note", "timm key style"),
        ]
    )
    have = json.loads((tmp_path / f"{name}.json").read_text())
    want = json.loads(RECORDS[name].read_text())
    assert have["state"] == want["state"]
    assert have["dead"] == want["dead"]
    for key in ("name", "model", "kwargs", "input", "dtype", "params"):
        assert have[key] == want[key]
    for made, given in zip(have["outputs"], want["outputs"], strict=True):
        assert made.keys() == given.keys()
        for key, value in made.items():
            assert value == pytest.approx(given[key], rel=1e-6, abs=1e-7), key
    assert have["grad_norm"] == pytest.approx(want["grad_norm"], rel=1e-6)
    assert have["loss"] == pytest.approx(want["loss"], rel=1e-6)
