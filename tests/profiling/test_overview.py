"""The latencies in results/: how they are measured, and the table."""

import json

import pytest
from synthetic import record

import zoo
from tools import counts, latencies
from tools.latencies import FORMS
from zoo.reports.records import read

COUNTS = counts.read()


def rows(name, **changes):
    """Return the records of a model, one for each form."""
    times = dict(zip(FORMS, (9.0, 8.0, 4.0), strict=True))
    size = [1, *zoo.model_info(name)["input"]["size"]]
    return [
        record(
            model=name,
            runtime=runtime,
            fused=fused,
            p50_ms=ms,
            params=zoo.model_info(name)["params"] - 1000 * fused,
            macs=10**9 - 10**8 * fused,
            input_size=size,
            **{"peak_memory_bytes": 5 * 2**20, **changes},
        )
        for (runtime, fused), ms in times.items()
    ]


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A folder of results with a project of one small model, measured briefly."""
    monkeypatch.setattr(latencies, "RECORDS", tmp_path / "models.jsonl")
    monkeypatch.setattr(latencies, "EFFORT", {"min_runs": 6, "min_time": 0.0, "max_time": 1.0})
    monkeypatch.setattr(latencies, "finished", lambda: ["cct_2_3x2_32"])
    return tmp_path


def cells(text, start):
    (row,) = [line for line in text.splitlines() if line.startswith(f"| {start} |")]
    return [cell.strip() for cell in row.strip("|").split("|")]


def table(records):
    return latencies.render(COUNTS, records)


def write(records):
    latencies.RECORDS.write_text("".join(json.dumps(r) + "\n" for r in records))


def test_a_model_is_measured_once(results, capsys):
    latencies.measure(["cct_2_3x2_32"])
    records = read(results / "models.jsonl")
    assert [(r["runtime"], r["fused"]) for r in records] == list(FORMS)
    row = cells(table(records), "cct_2_3x2_32")
    best = min(records, key=lambda r: r["p50_ms"])
    assert row[1] == "32x32"
    assert row[2] == "283.7 k"
    assert float(row[9]) == pytest.approx(best["p50_ms"], abs=0.006)
    assert row[10] == best["runtime"]
    assert latencies.is_measured("cct_2_3x2_32", latencies.by_model(records))
    capsys.readouterr()
    latencies.measure(["cct_2_3x2_32"])
    assert "1 of 1 models are in models.jsonl" in capsys.readouterr().out
    assert read(results / "models.jsonl") == records


@pytest.mark.usefixtures("results")
def test_records_of_models_that_are_gone_or_changed_are_dropped():
    good = rows("cct_2_3x2_32", asked=latencies.plan([]).asked())
    elsewhere = {**good[1], "machine": {"cpu": "C"}, "versions": {}}
    outdated = [{**good[1], "model": "gone"}, {**good[1], "asked": {}}, {**good[0], "params": 1}]
    write([elsewhere, *outdated, *good[1:]])
    assert latencies.prune() == [elsewhere, *good[1:]]
    assert latencies.read() == [elsewhere, *good[1:]]
    assert not latencies.is_measured("cct_2_3x2_32", latencies.by_model(outdated))


@pytest.mark.usefixtures("results")
def test_a_model_that_another_machine_measured_is_not_measured_again(monkeypatch):
    records = rows("cct_2_3x2_32", asked=latencies.plan([]).asked(), machine={"cpu": "C"})
    write(records)
    monkeypatch.setattr(latencies, "sweep", None)
    latencies.measure(["cct_2_3x2_32"])
    assert latencies.read() == records


def test_several_machines_are_numbered():
    there, here = rows("cct_2_3x2_32", machine={"cpu": "C"}), rows("efficientformer_l1")
    text = table(there + here)
    assert "1. C, zoo 0.1.0" in text
    assert "2. A, B, 2 cores" in text
    assert [cells(text, r[0]["model"])[-1] for r in (there, here)] == ["1", "2"]
    assert cells(text, "model")[-1] == "machine"


def test_a_model_without_records_is_not_measured():
    text = table([])
    assert f"0 of {len(COUNTS)} models are measured." in text
    top1 = max(e["top1"] for e in zoo.model_info("efficientformer_l1")["published"])
    missing = ["not measured"] * 3
    assert cells(text, "efficientformer_l1") == (
        ["efficientformer_l1", "224x224", "12.29 M", "", "1.29 G", "", f"{top1:.1f}", *missing]
        + ["", ""]
    )


def test_a_row_of_a_model():
    text = table(rows("efficientformer_l1"))
    top1 = max(e["top1"] for e in zoo.model_info("efficientformer_l1")["published"])
    assert cells(text, "efficientformer_l1") == (
        f"efficientformer_l1,224x224,12.29 M,12.29 M,1.29 G,900.0 M,{top1:.1f},"
        "9.00,8.00,4.00,onnxruntime,5 MiB"
    ).split(",")
    assert f"1 of {len(COUNTS)} models are measured, with one image of each model's own" in text
    assert "2 threads, float32, 2026-01-02." in text
    assert "1. A, B, 2 cores, zoo 0.1.0, torch 2.15.0" in text


def test_a_form_that_could_not_be_measured():
    text = table(rows("efficientformer_l1")[:1])
    assert cells(text, "efficientformer_l1")[7:] == ["9.00", "not measured", "9.00", "eager", ""]
