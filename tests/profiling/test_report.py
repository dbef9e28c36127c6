"""Records on disk and in the table."""

import csv
import json

import pytest
from rich.console import Console

import zoo
from zoo.profiling.report import Results, flatten, legend, quantity, read, table


def record(**changes):
    return {
        "model": "net",
        "params": 12_289_928,
        "macs": 1_304_000_000,
        "flops": 2_700_000_000,
        "activations": 5530,
        "count_error": None,
        "p50_ms": 12.346,
        "low_ms": 12.1,
        "high_ms": 12.6,
        "p90_ms": 13.0,
        "p99_ms": 15.0,
        "min_ms": 11.9,
        "n": 50,
        "steady": True,
        "input_size": [1, 3, 224, 224],
        "runtime": "eager",
        "runtime_version": "2.15.0",
        "threads": 2,
        "dtype": "float32",
        "layout": "NCHW",
        "fused": False,
        "machine": {"cpu": "A, B", "cores": 2},
        **changes,
    }


def text(records):
    console = Console(width=300)
    with console.capture() as capture:
        console.print(table(records))
    return capture.get()


def test_a_row_holds_every_figure_and_its_form():
    rows = text([record(), record(fused=True, params=12_000)]).splitlines()
    unfused, fused = (row.split() for row in rows if "net" in row)
    assert unfused[:2] == ["net", "unfused"]
    assert fused[:2] == ["net", "fused"]
    figures = "12.29 M 1.30 G 2.70 G 5.53 k 12.35 12.10 - 12.60 13.00 15.00 11.90 50"
    assert " ".join(unfused[2:]) == figures
    assert fused[2:4] == ["12.00", "k"]


def test_settings_stand_in_columns_only_where_they_differ():
    one, two = record(), record(runtime="onnxruntime", runtime_version="1.31", threads=1)
    assert "eager" not in text([one])
    assert legend([one]) == [
        "eager 2.15.0, image 224x224, batch 1, threads 2, dtype float32, layout NCHW"
    ]
    header = text([one, two]).splitlines()[1].split()
    assert header[2:4] == ["runtime", "threads"]
    assert legend([one, two])[0].startswith("eager 2.15.0, onnxruntime 1.31, image 224x224")


def test_what_is_missing_is_shown_as_missing():
    uncounted = record(macs=None, flops=None, activations=None, count_error="no rule for x")
    assert text([uncounted]).split().count("uncounted") == 3
    failed = {k: v for k, v in record(error="it broke").items() if not k.endswith("_ms")}
    assert "failed" in text([failed])
    assert "12.35*" in text([record(steady=False)])
    assert legend([record(steady=False)])[1].startswith("* the median was still moving")


@pytest.mark.parametrize(
    ("value", "said"),
    [(0, "0"), (999, "999"), (1000, "1.00 k"), (12_289_928, "12.29 M"), (123_456_789, "123.5 M")],
)
def test_quantities(value, said):
    assert quantity(value) == said


def test_records_are_on_disk_as_they_come_and_csv_mirrors_them(tmp_path):
    folder = tmp_path / "a" / "b"
    results = Results(folder)
    results.add(record())
    assert read(folder / "results.jsonl") == [record()]
    results.add(record(fused=True))
    results.finish()
    with (folder / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["fused"] for row in rows] == ["False", "True"]
    assert rows[0]["machine.cpu"] == "A, B"
    assert rows[0]["input_size"] == "1x3x224x224"
    assert float(rows[0]["p50_ms"]) == 12.346
    assert sorted(path.name for path in folder.iterdir()) == ["results.csv", "results.jsonl"]


def test_records_are_appended_to_those_that_are_there(tmp_path):
    for _ in range(2):
        results = Results(tmp_path)
        results.add(record())
        results.finish()
    assert results.before == 1
    assert len(read(tmp_path / "results.jsonl")) == 2
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 3


def test_a_folder_without_records_disappears_again(tmp_path):
    Results(tmp_path / "a" / "b").finish()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("line", ["{", "[1]", '{"a": 1}'])
def test_a_file_of_something_else_is_left_alone(line, tmp_path):
    file = tmp_path / "results.jsonl"
    content = json.dumps(record()) + "\n" + line + "\n"
    file.write_text(content)
    with pytest.raises(zoo.BadInput, match="line 2 is not a record"):
        Results(tmp_path)
    assert file.read_text() == content


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(zoo.BadInput, match=r"profile\.out=.*cannot be written"):
        Results(tmp_path / "file" / "a")
    (tmp_path / "results.jsonl").mkdir()
    with pytest.raises(zoo.BadInput, match="cannot be written"):
        Results(tmp_path)


def test_flattening():
    assert flatten({"a": {"b": {"c": 1}}, "d": [1, 2]}) == {"a.b.c": 1, "d": "1x2"}
