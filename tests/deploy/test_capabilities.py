"""Stored outcomes of exports, a sample of which is repeated, and the page of them."""

import json
import os
import re
import signal

import pytest

import zoo
from tools import capabilities, capability_page
from tools.project import smallest
from zoo.deploy.formats import FORMATS
from zoo.errors import OutputsDiffer

CELLS = {(cell["model"], cell["format"], cell["mode"]): cell for cell in capabilities.read()}
# Quick samples.
WORKS = [
    ("mobilenetv2_035", "torchscript", "static"),
    ("mobilenetv2_035", "torchscript", "dynamic batch"),
    ("mobilenetv2_035", "torchscript", "fp16"),
    ("simplenet_cifar_310k", "pt2", "dynamic size"),
    ("simplenet_cifar_310k", "onnx", "static"),
    ("cvt_2_4_32", "torchscript", "dynamic size"),
    ("efficientvmamba_tiny", "torchscript", "dynamic size"),
]
REFUSED = [
    ("sret_t", "torchscript", "dynamic size"),
]
REFUSED_BY_THE_FORMAT = [
    ("mobilenetv2_035", "executorch", "dynamic batch"),
    ("mobilenetv2_035", "executorch", "dynamic size"),
    ("simplenet_cifar_310k", "coreml", "dynamic size"),
    ("simplenet_cifar_310k", "pt2", "int8"),
]


def export(name, format, mode, folder):
    calibrated = CELLS.get((name, format, mode), {}).get("calibrated_norms", False)
    model = capabilities.random_model(name, calibrated_norms=calibrated)
    return capabilities.export_in(mode, model, name, format, folder)


@pytest.mark.parametrize("cell", WORKS, ids=" ".join)
def test_what_works_works_again(cell, tmp_path):
    assert CELLS[cell]["outcome"] == capability_page.WORKS
    made = export(*cell, tmp_path)
    assert made.agreement.proven
    assert made.manifest["input"].get("multiple") == CELLS[cell]["multiple"]


@pytest.mark.parametrize("cell", REFUSED, ids=" ".join)
def test_what_is_refused_is_refused_again(cell, tmp_path):
    assert CELLS[cell]["outcome"] == capability_page.REFUSED
    with pytest.raises(zoo.NotExportable) as caught:
        export(*cell, tmp_path)
    assert CELLS[cell]["error"] == type(caught.value).__name__
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("cell", REFUSED_BY_THE_FORMAT, ids=" ".join)
def test_what_the_format_refuses_is_refused_with_the_reason(cell, tmp_path):
    assert cell not in CELLS
    with pytest.raises(zoo.NotExportable, match=re.escape(capabilities.refusal(*cell[1:]))):
        export(*cell, tmp_path)
    assert os.listdir(tmp_path) == []


def test_the_page_has_a_row_for_every_family():
    text = capabilities.PAGE.read_text(encoding="utf-8")
    for name in smallest():
        assert text.count(f"\n| {name} |") == len(capabilities.MODES), name


@pytest.mark.parametrize("name", sorted({name for name, _, _ in CELLS}))
def test_cells_state_their_outcome_and_versions(name):
    for key in (key for key in CELLS if key[0] == name):
        cell = CELLS[key]
        assert cell["format"] in FORMATS
        assert cell["mode"] in capabilities.MODES
        assert cell["versions"]["torch"]
        assert ("reason" in cell) == (cell["outcome"] in ("refused", "failed"))
        assert cell["outcome"] != "too inaccurate" or cell["snr_db"] < capabilities.MIN_SNR
        assert cell["outcome"] != "too slow" or cell["seconds"] >= capabilities.LIMIT
        assert cell["outcome"] != "failed", f"a bug: {cell['reason']}"
        if "reason" in cell:
            check_reason(cell["reason"])


def check_reason(reason):
    assert reason
    assert "\n" not in reason
    assert len(reason) < 300
    assert not re.search(r"(^|[\s'\"(])/\w|\\|site-packages|\w\.py\b|0x[0-9a-f]{4}", reason), (
        f"a reason names a place on a machine: {reason}"
    )


@pytest.fixture
def records(tmp_path, monkeypatch):
    """An empty file of records."""
    monkeypatch.setattr(capabilities, "RECORDS", tmp_path / "records.json")
    return tmp_path / "records.json"


def test_outcomes_are_stored_and_shown(records, monkeypatch):
    monkeypatch.setattr(capabilities, "smallest", lambda: ["mobilenetv2_035", "spnasnet_100"])

    def process(name, cells):
        for format, mode in cells:
            result = {"outcome": "refused", "reason": "no such operator", "error": "NotExportable"}
            yield {"model": name, "format": format, "mode": mode, **result}
        return 0, len(cells)

    monkeypatch.setattr(capabilities, "_process", process)
    assert capabilities.untested() == ["mobilenetv2_035", "spnasnet_100"]
    capabilities.measure(["mobilenetv2_035"])
    stored = json.loads(records.read_text())["cells"]
    assert len(stored) == len(capabilities.read()) == 27
    assert capabilities.untested() == ["spnasnet_100"]
    text = capabilities.render()
    assert "\n1. no such operator\n" in text
    assert "| spnasnet_100 | . | . | . | . | . | . | . |" in text
    assert (
        "| dynamic batch | 0 of 1 | 0 of 1 | 0 of 1 | 0 of 1 | 0 of 2 | 0 of 1 | 0 of 2 |" in text
    )


def test_an_unknown_model_is_refused(records):
    with pytest.raises(zoo.UnknownModel, match="mobilenetv2_035"):
        capabilities.measure(["mobilenetv2_35"])
    assert not records.exists()


@pytest.mark.parametrize(
    ("mode", "error", "attempts"),
    [
        ("static", zoo.NotExportable("no such operator"), 1),
        ("static", OutputsDiffer("by much"), 2),
        ("fp16", zoo.NotExportable("not finite"), 2),
        ("static", RuntimeError("a bug"), 1),
    ],
)
def test_lack_of_precision_is_tried_again_with_calibrated_norms(mode, error, attempts, monkeypatch):
    seen = []

    def fail(mode, calibrated, *rest):
        seen.append(calibrated)
        raise error

    monkeypatch.setattr(
        capabilities, "random_model", lambda name, calibrated_norms: calibrated_norms
    )
    monkeypatch.setattr(capabilities, "export_in", fail)
    result = capabilities.attempt("mobilenetv2_035", "onnx", mode)
    assert seen == [False, True][:attempts]
    assert result["outcome"] == ("failed" if isinstance(error, RuntimeError) else "refused")
    assert str(error) in result["reason"]
    assert "calibrated_norms" not in result


@pytest.mark.parametrize(
    ("comparison", "outcome"),
    [
        ({"runtime": "onnxruntime", "proven": True, "max_rel_error": 1e-6}, "works"),
        ({"runtime": "onnxruntime", "proven": False}, "not proven"),
        ({"runtime": None, "proven": False}, "converted"),
        ({"runtime": "onnxruntime", "proven": False, "snr_db": 3.04}, "works"),
        ({"runtime": "onnxruntime", "proven": False, "snr_db": 2.96}, "too inaccurate"),
    ],
)
def test_outcome_of_a_manifest(comparison, outcome):
    manifest = {"comparison": comparison, "input": {}}
    assert capabilities._outcome(manifest)["outcome"] == outcome


def test_a_crash_costs_one_cell(monkeypatch):
    """A cell that crashes after others is tried by itself; one that takes too long is not."""
    cells = [("onnx", "static"), ("pt2", "static"), ("aoti", "static"), ("coreml", "static")]
    began = []

    def process(name, cells):
        began.append([format for format, _ in cells])
        for count, (format, mode) in enumerate(cells):
            if format == "pt2":
                return -signal.SIGSEGV, count
            if format == "aoti":
                return -signal.SIGPROF, count
            yield {"model": name, "format": format, "mode": mode, "outcome": "works"}
        return 0, len(cells)

    monkeypatch.setattr(capabilities, "_process", process)
    found = {c["format"]: c for c in capabilities._isolated("mobilenetv2_035", cells)}
    assert {format: c["outcome"] for format, c in found.items()} == {
        "onnx": "works",
        "pt2": "failed",
        "aoti": "too slow",
        "coreml": "works",
    }
    assert "exit code -11" in found["pt2"]["reason"]
    assert began[:3] == [["onnx", "pt2", "aoti", "coreml"], ["pt2"], ["aoti", "coreml"]]


def test_marks_of_a_page():
    def cell(format, mode, outcome, **more):
        stamp = {"versions": {"zoo": "1"}, "date": "2026-01-01T00:00:00"}
        return {"model": "a", "format": format, "mode": mode, "outcome": outcome, **more, **stamp}

    records = [
        cell("onnx", "static", "works"),
        cell("pt2", "static", "refused", reason="cannot"),
        cell("torchscript", "static", "failed", reason="a bug"),
        cell("openvino", "static", "not proven"),
        cell("executorch", "static", "too slow"),
        cell("coreml", "static", "converted"),
        cell("onnx", "dynamic size", "works", multiple=32),
        cell("onnx", "int8", "works", snr_db=17.6),
        cell("openvino", "int8", "too inaccurate", snr_db=2.1),
    ]
    text = capability_page.render(["a", "b"], records, capabilities.MODES, limit=9, min_snr=3)
    marks = (
        "yes | no [1](#reasons) | failed [2](#reasons) | not proven | too slow | . | *converted*"
    )
    assert f"| a | {marks} |" in text
    assert "| a | yes ×32 | . |" in text
    assert "| a | yes, 18 dB | . | . | too inaccurate, 2 dB | . |" in text
    assert "| b | . | . | . | . | . | . | . |" in text
    assert (
        "| static batch and size | 1 of 1 | 0 of 1 | 0 of 1 | 0 of 1 | 0 of 1 | . | 1 of 1 |"
    ) in text
    assert "1. cannot\n2. a bug\n" in text
    assert "within 9 s" in text
