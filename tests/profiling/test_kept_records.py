"""Files of records: appending, recovering from a killed run, and invalid content."""

import csv
import json

import pytest
from synthetic import record

import zoo
from zoo.reports.records import Results, case_key, flatten, last_line_incomplete, read


def test_records_are_written_immediately_and_copied_to_csv(tmp_path):
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


def test_records_are_appended_to_an_existing_file(tmp_path):
    for _ in range(2):
        results = Results(tmp_path)
        results.add(record())
        results.finish()
    assert results.earlier == [record()]
    assert len(read(tmp_path / "results.jsonl")) == 2
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 3


def test_a_new_folder_without_records_is_removed(tmp_path):
    Results(tmp_path / "a" / "b").finish()
    assert list(tmp_path.iterdir()) == []


def test_a_file_path_works_like_a_folder(tmp_path):
    results = Results(tmp_path / "a" / "b.jsonl")
    results.add(record())
    results.finish()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["b.csv", "b.jsonl"]


def test_an_incomplete_last_line_is_ignored_and_removed(tmp_path):
    file = tmp_path / "results.jsonl"
    whole = json.dumps(record(model="zoë"), ensure_ascii=False).encode()
    for end in range(1, len(whole)):
        file.write_bytes(whole + b"\n" + whole[:end])
        assert last_line_incomplete(file)
        assert read(file) == [record(model="zoë")]
    results = Results(tmp_path)
    assert results.dropped
    assert file.read_bytes() == whole + b"\n"
    results.add(record())
    assert read(file) == [record(model="zoë"), record()]


def test_a_last_line_without_a_line_feed_is_kept(tmp_path):
    file = tmp_path / "results.jsonl"
    file.write_text(json.dumps(record()))
    assert not last_line_incomplete(file)
    results = Results(tmp_path)
    assert not results.dropped
    results.add(record(model="other"))
    assert [row["model"] for row in read(file)] == ["net", "other"]


def test_unicode_line_separators_do_not_split_records(tmp_path):
    results = Results(tmp_path)
    results.add(record(model="a\u2028b\x85c\nd"))
    assert read(results.path)[0]["model"] == "a\u2028b\x85c\nd"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"a": 1}', "model is missing"),
        (json.dumps(record(p50_ms=None)), "p50_ms is missing"),
        (json.dumps(record(p90_ms="fast")), "p90_ms='fast' is not a number"),
        (json.dumps(record(p50_ms=float("nan"))), "not JSON"),
        (json.dumps(record()).replace("12.346", "1e999"), "p50_ms is not a finite number"),
        (json.dumps(record(runtime=3)), "runtime is not a string"),
        (json.dumps(record(machine="mine")), "machine is not an object"),
        (json.dumps(record(input_size=[224])), "is not a shape"),
        (json.dumps(record(fused="yes")), "fused is not true, false or null"),
    ],
)
def test_an_invalid_line_is_an_error_and_the_file_stays_unchanged(line, message, tmp_path):
    file = tmp_path / "results.jsonl"
    content = json.dumps(record()) + "\n" + line + "\n"
    file.write_text(content)
    with pytest.raises(zoo.BadInput, match="line 2 is not a valid record") as error:
        Results(tmp_path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert file.read_text() == content


@pytest.mark.parametrize("content", [b"notes of mine", b"\xff\xfe\x00", b"\x89PNG\r\n"])
def test_a_file_of_another_format_is_an_error_and_stays_unchanged(content, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(zoo.BadInput, match="is not a valid record|contains no records"):
        Results(tmp_path / "a.jsonl")
    assert (tmp_path / "a.jsonl").read_bytes() == content


def test_unreadable_files_are_an_error(tmp_path):
    with pytest.raises(zoo.BadInput, match="cannot be read: No such file"):
        read(tmp_path / "none.jsonl")
    with pytest.raises(zoo.BadInput, match="cannot be read: Is a directory"):
        read(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"model": "other"},
        {"args": {"in_chans": 1}},
        {"input_size": [2, 3, 224, 224]},
        {"fused": True},
        {"runtime": "onnxruntime"},
        {"asked": {"threads": 1}},
        {"machine": {"cpu": "C"}},
        {"versions": {}},
    ],
)
def test_the_case_key_depends_on_case_settings_machine_and_versions(change):
    assert case_key(record(**change)) != case_key(record())
    assert case_key(record(p50_ms=1.0, date="later")) == case_key(record())


def test_layers_are_in_the_json_lines_but_not_in_the_csv(tmp_path):
    results = Results(tmp_path)
    texts = dict.fromkeys(("name", "type", "bound"), "stem")
    layers = {"layers": [texts | dict.fromkeys(("ms", "macs", "params", "bytes"), 1)]}
    results.add(record(layers=layers))
    results.finish()
    assert read(results.path)[0]["layers"] == layers
    assert "stem" not in results.csv.read_text()


def test_an_unwritable_folder_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(zoo.BadInput, match=r"profile\.out=.*cannot be written"):
        Results(tmp_path / "file" / "a")
    (tmp_path / "results.jsonl").mkdir()
    with pytest.raises(zoo.BadInput, match="cannot be written"):
        Results(tmp_path)


def test_flatten():
    assert flatten({"a": {"b": {"c": 1}}, "d": [1, 2]}) == {"a.b.c": 1, "d": "1x2"}
