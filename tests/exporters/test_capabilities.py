"""The table of capabilities: written from its records, and a sample of it is true both ways."""

import json

import pytest

import zoo
from zoo.exporters import Origin, capabilities, export
from zoo.exporters.formats import FORMATS
from zoo.factory import create_model
from zoo.reparam import shake

CELLS = {
    (cell["model"], cell["format"], cell["mode"]): cell for cell in capabilities.read()["cells"]
}
# Quick ones, of both kinds; what is said of them is tried again.
WORKS = [
    ("mobilenetv2_035", "torchscript", "static"),
    ("mobilenetv2_035", "torchscript", "dynamic size"),
    ("mobilenetv2_035", "onnx", "static"),
]
FAILS = [
    ("mobilenetv2_035", "executorch", "dynamic batch"),
    ("mobilenetv2_035", "executorch", "dynamic size"),
    ("mobilenetv2_035", "coreml", "dynamic size"),
]


def again(name, format, mode, folder):
    return export(
        shake(create_model(name)).eval(),
        format,
        folder,
        input_size=capabilities.small_input(name),
        origin=Origin(name),
        **capabilities.MODES[mode],
    )


@pytest.mark.parametrize("cell", WORKS, ids=" ".join)
def test_what_is_said_to_work_works(cell, tmp_path):
    assert CELLS[cell]["works"]
    made = again(*cell, tmp_path)
    assert made.agreement.proven
    assert made.manifest["input"].get("multiple") == CELLS[cell]["multiple"]


@pytest.mark.parametrize("cell", FAILS, ids=" ".join)
def test_what_is_said_not_to_work_fails_with_the_reason(cell, tmp_path):
    assert not CELLS[cell]["works"]
    assert CELLS[cell]["error"] == "NotExportable"
    with pytest.raises(zoo.NotExportable) as caught:
        again(*cell, tmp_path)
    assert CELLS[cell]["reason"] in str(caught.value)


def test_the_page_is_written_from_the_records():
    assert capabilities.PAGE.read_text(encoding="utf-8") == capabilities.page()


def test_every_cell_says_what_it_was_made_with():
    for key, cell in CELLS.items():
        assert cell["versions"]["torch"], key
        assert cell["works"] or cell["reason"], key
        assert cell["format"] in FORMATS
        assert cell["mode"] in capabilities.MODES


def test_an_attempt_that_fails_keeps_its_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(capabilities, "RECORDS", tmp_path / "records.json")
    monkeypatch.setattr(capabilities, "PAGE", tmp_path / "page.md")
    capabilities.main(["--models", "mobilenetv2_035", "--formats", "coreml",
                       "--modes", "dynamic size"])  # fmt: skip
    (cell,) = json.loads((tmp_path / "records.json").read_text())["cells"]
    assert (cell["works"], cell["error"]) == (False, "NotExportable")
    text = (tmp_path / "page.md").read_text()
    assert "| mobilenetv2_035 |" in text
    assert f"1. {cell['reason']}" in text
