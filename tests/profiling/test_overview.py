"""The table of results/: how it is made, and that it is what it says."""

import json

import pytest
from synthetic import record

import zoo
from tools import overview
from tools.overview import FORMS
from zoo.reports.records import read

RENEW = "run `make results` (or `python -m zoo results --write` where nothing was measured anew)"


def rows(name, **changes):
    """Records of one model in every form that is measured."""
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
def checkout(tmp_path, monkeypatch):
    """A folder that looks like the project, with one small model in it."""
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(overview, "ROOT", tmp_path)
    monkeypatch.setattr(overview, "TABLE", tmp_path / "results" / "README.md")
    monkeypatch.setattr(overview, "RECORDS", tmp_path / "results" / "models.jsonl")
    monkeypatch.setattr(overview, "EFFORT", {"min_runs": 6, "min_time": 0.0, "max_time": 1.0})
    monkeypatch.setattr(overview, "finished", lambda: ["cct_2_3x2_32"])
    return tmp_path


def cells(text, start):
    (row,) = [line for line in text.splitlines() if line.startswith(f"| {start} |")]
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_one_command_measures_and_writes(checkout, capsys):
    overview.measure_and_write()
    records = read(checkout / "results" / "models.jsonl")
    assert [(r["runtime"], r["fused"]) for r in records] == list(FORMS)
    table = (checkout / "results" / "README.md").read_text()
    row = cells(table, "cct_2_3x2_32")
    best = min(records, key=lambda r: r["p50_ms"])
    assert row[1] == "32x32"
    assert row[2] == "283.7 k"
    assert float(row[9]) == pytest.approx(best["p50_ms"], abs=0.006)
    assert row[10] == best["runtime"]
    capsys.readouterr()
    overview.measure_and_write()
    assert "1 of 1 models are in models.jsonl" in capsys.readouterr().out
    again = read(checkout / "results" / "models.jsonl")
    assert again == records, "what is there is not measured again"


def test_records_of_models_that_changed_or_are_gone_go(checkout):
    overview.measure_and_write()
    good = read(overview.RECORDS)
    elsewhere = {**good[1], "machine": {"cpu": "C"}, "versions": {}}
    strange = [{**good[1], "model": "gone"}, {**good[1], "asked": {}}, {**good[0], "params": 1}]
    lines = [json.dumps(r) for r in [elsewhere, *strange, *good[1:]]]
    overview.RECORDS.write_text("\n".join(lines) + "\n")
    assert overview.prune(overview.RECORDS) == [elsewhere, *good[1:]]
    assert read(overview.RECORDS) == [elsewhere, *good[1:]]


def test_what_another_machine_measured_is_not_measured_again(checkout, monkeypatch):
    records = rows(
        "cct_2_3x2_32", asked=overview.plan([]).requested_settings(), machine={"cpu": "C"}
    )
    overview.RECORDS.write_text("".join(json.dumps(r) + "\n" for r in records))
    monkeypatch.setattr(overview, "sweep", None)
    overview.measure_and_write()
    assert read(overview.RECORDS) == records


def test_several_machines_are_numbered():
    there, here = rows("cct_2_3x2_32", machine={"cpu": "C"}), rows("efficientformer_l1")
    text = overview.results_table(there + here)
    assert "1. C, zoo 0.1.0" in text
    assert "2. A, B, 2 cores" in text
    assert [cells(text, r[0]["model"])[-1] for r in (there, here)] == ["1", "2"]
    assert cells(text, "model")[-1] == "on"


def test_writing_alone_measures_nothing(checkout, monkeypatch):
    monkeypatch.setattr(overview, "sweep", None)
    with pytest.raises(zoo.BadInput, match="no file"):
        overview.write()
    overview.RECORDS.write_text("".join(json.dumps(r) + "\n" for r in rows("cct_2_3x2_32")))
    overview.write()
    assert overview.TABLE.is_file()


def test_a_folder_that_is_no_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(overview, "RECORDS", tmp_path / "results" / "models.jsonl")
    with pytest.raises(zoo.BadInput, match="no checkout"):
        overview.write()


def test_a_row_of_a_model():
    text = overview.results_table(rows("efficientformer_l1"))
    top1 = max(e["top1"] for e in zoo.model_info("efficientformer_l1")["published"])
    assert cells(text, "efficientformer_l1") == (
        f"efficientformer_l1,224x224,12.29 M,12.29 M,1.00 G,900.0 M,{top1:.1f},"
        "9.00,8.00,4.00,onnxruntime,5 MiB"
    ).split(",")
    assert "1 models, one image of each model's own size, 2 threads, float32" in text
    assert "measured 2026-01-02." in text
    assert "1. A, B, 2 cores, zoo 0.1.0, torch 2.15.0" in text


def test_a_form_that_could_not_be_measured_leaves_its_cell_empty():
    text = overview.results_table(rows("efficientformer_l1")[:1])
    assert cells(text, "efficientformer_l1")[2:] == (
        ["12.29 M", "", "1.00 G", "", "80.5", "9.00", "", "9.00", "eager", ""]
    )


# ---- what is in the repository


def kept():
    return read(overview.RECORDS)


def test_every_finished_model_is_in_results():
    found = overview.by_model(kept())
    for name in overview.finished():
        assert set(found.get(name, {})) == set(FORMS), f"{name}: {RENEW}"
        params = found[name]["eager", False]["params"]
        assert params == zoo.model_info(name)["params"], f"{name} has changed: {RENEW}"


def test_results_are_what_is_written_of_them():
    wanted = overview.results_table(kept())
    assert overview.TABLE.read_text() == wanted, RENEW
