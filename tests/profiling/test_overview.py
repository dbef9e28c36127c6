"""The table of results/: how it is made, and that it is what it says."""

import json

import pytest
from synthetic import record

import zoo
from zoo.profiling import overview
from zoo.profiling.overview import FORMS
from zoo.profiling.records import read

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
    assert "3 of 3 are in" in capsys.readouterr().out, "what is there is not measured again"


def test_records_of_other_machines_and_models_go(checkout):
    overview.measure_and_write()
    good = read(overview.RECORDS)
    strange = [{"machine": {"cpu": "C"}}, {"model": "gone"}, {"asked": {}}, {"versions": {}}]
    old = {**good[0], "params": 1}
    lines = [json.dumps({**good[1], **change}) for change in strange]
    kept = [json.dumps(r) for r in [old, *good[1:]]]
    overview.RECORDS.write_text("\n".join([*lines, *kept]) + "\n")
    overview.prune(overview.RECORDS, overview.plan())
    assert read(overview.RECORDS) == good[1:], "the first is of the model as it was before"


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
    assert "- A, B, 2 cores, zoo 0.1.0, torch 2.15.0" in text


def test_a_form_that_could_not_be_measured_leaves_its_cell_empty():
    text = overview.results_table(rows("efficientformer_l1")[:1])
    assert cells(text, "efficientformer_l1")[2:] == (
        ["12.29 M", "", "1.00 G", "", "80.5", "9.00", "", "9.00", "eager", ""]
    )


# ---- what is in the repository


def kept():
    if not overview.RECORDS.is_file():
        pytest.skip(f"nothing was measured yet: {RENEW}")
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
