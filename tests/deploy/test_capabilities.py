"""The capability table matches its records, and a sample of its cells is tested again."""

import json
import os
import re
import signal

import pytest

import zoo
from tools import capabilities, capability_page
from zoo.deploy.formats import FORMATS

CELLS = {
    (cell["model"], cell["format"], cell["mode"]): cell for cell in capabilities.read()["cells"]
}
# Quick cells of both kinds, which the tests try again.
SUPPORTED = [
    ("mobilenetv2_035", "torchscript", "static"),
    ("mobilenetv2_035", "torchscript", "dynamic batch"),
    ("mobilenetv2_035", "torchscript", "fp16"),
    ("simplenet_cifar_310k", "pt2", "dynamic size"),
    ("simplenet_cifar_310k", "onnx", "static"),
    ("cvt_2_4_32", "torchscript", "dynamic size"),
    ("efficientvmamba_tiny", "torchscript", "dynamic size"),
]
UNSUPPORTED = [
    ("mobilenetv2_035", "executorch", "dynamic batch"),
    ("mobilenetv2_035", "executorch", "dynamic size"),
    ("simplenet_cifar_310k", "coreml", "dynamic size"),
    ("simplenet_cifar_310k", "pt2", "int8"),
    ("sret_t", "pt2", "dynamic size"),
    ("sret_t", "torchscript", "dynamic size"),
]


def export_again(name, format, mode, folder):
    model = capabilities.weighted(name, settled=CELLS[name, format, mode].get("settled", False))
    return capabilities.export_in(mode, model, name, format, folder)


@pytest.mark.parametrize("cell", SUPPORTED, ids=" ".join)
def test_supported_cells_work(cell, tmp_path):
    assert CELLS[cell]["works"]
    made = export_again(*cell, tmp_path)
    assert made.agreement.proven
    assert made.manifest["input"].get("multiple") == CELLS[cell]["multiple"]


@pytest.mark.parametrize("cell", UNSUPPORTED, ids=" ".join)
def test_unsupported_cells_fail_with_the_recorded_reason(cell, tmp_path):
    assert not CELLS[cell]["works"]
    assert CELLS[cell]["error"] == "NotExportable"
    with pytest.raises(zoo.NotExportable) as caught:
        export_again(*cell, tmp_path)
    assert CELLS[cell]["reason"] in str(caught.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("format", FORMATS)
def test_every_family_was_tested(format):
    assert {name for name, kind, mode in CELLS if (kind, mode) == (format, "static")} == set(
        capabilities.smallest()
    )


def test_the_page_is_written_from_the_records():
    assert capabilities.PAGE.read_text(encoding="utf-8") == capabilities.page()


@pytest.mark.parametrize("name", sorted({name for name, _, _ in CELLS}))
def test_cells_state_versions_and_reasons(name):
    for key in (key for key in CELLS if key[0] == name):
        cell = CELLS[key]
        assert cell["format"] in FORMATS
        assert cell["mode"] in capabilities.MODES
        assert cell["versions"]["torch"]
        if not cell["works"]:
            check_reason(cell)


def check_reason(cell):
    reason = cell["reason"]
    others = (capabilities.NOISY, "took longer")
    assert cell.get("error") == "NotExportable" or reason.startswith(others), cell
    assert reason
    assert "\n" not in reason
    assert len(reason) < 300
    assert not re.search(r"(^|[\s'\"(])/\w|\\|site-packages|\w\.py\b|0x[0-9a-f]{4}", reason), (
        f"the reason contains a path, a file name or an address: {reason}"
    )


def test_a_failed_attempt_records_its_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(capabilities, "RECORDS", tmp_path / "records.json")
    monkeypatch.setattr(capabilities, "PAGE", tmp_path / "page.md")
    capabilities.main(["--models", "mobilenetv2_035", "--formats", "coreml",
                       "--modes", "dynamic size"])  # fmt: skip
    (cell,) = json.loads((tmp_path / "records.json").read_text())["cells"]
    assert (cell["works"], cell["error"]) == (False, "NotExportable")
    text = (tmp_path / "page.md").read_text()
    assert "| mobilenetv2_035 |" in text
    assert f"1. {cell['reason']}" in text


def test_a_crash_only_costs_one_cell(monkeypatch):
    """A cell that crashes after other cells is retried by itself; one that times out is not."""
    cells = [("onnx", "static"), ("pt2", "static"), ("aoti", "static"), ("coreml", "static")]
    began = []

    def process(name, cells):
        began.append([format for format, _ in cells])
        for count, (format, mode) in enumerate(cells):
            if format == "pt2":
                return -signal.SIGSEGV, count
            if format == "aoti":
                return -signal.SIGPROF, count
            yield {"model": name, "format": format, "mode": mode, "works": True}
        return 0, len(cells)

    monkeypatch.setattr(capabilities, "_process", process)
    found = {c["format"]: c for c in capabilities._apart("mobilenetv2_035", cells)}
    assert list(found) == ["onnx", "pt2", "aoti", "coreml"]
    assert [c["works"] for c in found.values()] == [True, False, False, True]
    assert "ended with -11" in found["pt2"]["reason"]
    assert "took longer" in found["aoti"]["reason"]
    assert began[:3] == [["onnx", "pt2", "aoti", "coreml"], ["pt2"], ["aoti", "coreml"]]


def test_the_marks_on_the_page():
    static, quick = {"model": "a", "format": "onnx", "mode": "static"}, {"error_of_spread": 1e-6}
    stamp = {"versions": {"zoo": "1"}, "date": "2026-01-01T00:00:00"}
    records = [
        {**static, **quick, **stamp, "works": True},
        {**static, **quick, **stamp, "works": True, "mode": "dynamic size", "multiple": 32},
        {**static, **stamp, "works": False, "format": "pt2", "reason": "cannot"},
        {**static, **stamp, "works": True, "format": "coreml", "error_of_spread": None},
        {**static, **stamp, "works": True, "mode": "int8", "snr_db": 17.6},
    ]
    text = capability_page.page(records, capabilities.MODES)
    assert "| a | yes | no [1](#reasons) | . | . | . | . | *converted* |" in text
    assert "| a | yes ×32 | . |" in text
    assert "| a | yes, 18 dB | . |" in text
    assert "| one batch, one size | 1 | 0 | . | . | . | . | 1 |" in text
    assert "1. cannot" in text
