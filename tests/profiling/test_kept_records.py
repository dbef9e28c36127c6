"""Files of records: appending, recovering from a killed run, and invalid content."""

import csv
import errno
import io
import json
import os
from pathlib import Path

import pytest
from synthetic import record

import zoo
from zoo.reports.records import Results, case_key, flatten, load, parse, read

NESTED: dict = {}
for _ in range(30):
    NESTED = {"a": NESTED}


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
        assert parse(file.read_bytes()).torn_at == len(whole) + 1
        assert read(file) == [record(model="zoë")]
    results = Results(tmp_path)
    assert results.notes == ["removed the last line, which was incomplete"]
    assert file.read_bytes() == whole + b"\n"
    results.add(record())
    assert read(file) == [record(model="zoë"), record()]


def test_a_last_line_without_a_line_feed_is_kept(tmp_path):
    file = tmp_path / "results.jsonl"
    file.write_text(json.dumps(record()))
    results = Results(tmp_path)
    assert results.notes == []
    results.add(record(model="other"))
    assert [row["model"] for row in read(file)] == ["net", "other"]


def test_unicode_line_separators_do_not_split_records(tmp_path):
    results = Results(tmp_path)
    results.add(record(model="a\u2028b\x85c\nd"))
    assert read(results.path)[0]["model"] == "a\u2028b\x85c\nd"


def test_records_behind_a_torn_line_are_recovered(tmp_path):
    file = tmp_path / "results.jsonl"
    whole = [json.dumps(record(model=name)).encode() for name in ("a", "b", "c", "d")]
    for end in range(1, len(whole[1])):
        file.write_bytes(whole[0] + b"\n" + whole[1][:end] + whole[2] + b"\n" + whole[3])
        assert [row["model"] for row in read(file)] == ["a", "c", "d"]
    file.write_bytes(whole[0] + b"\n" + whole[1][:99] + whole[2] + whole[3][:50])
    results = Results(tmp_path)
    assert results.notes == [
        "recovered 1 record from torn lines",
        "removed the last line, which was incomplete",
    ]
    results.add(record(model="e"))
    assert [row["model"] for row in read(file)] == ["a", "c", "e"]


def test_damaged_lines_are_left_out_with_one_warning(tmp_path, capsys):
    file = tmp_path / "results.jsonl"
    lines = [json.dumps(record(model="a")), "nonsense", json.dumps(record(n=0)), "[1]"]
    file.write_text("\ufeff" + "\n".join([*lines, json.dumps(record(model="b"))]) + "\n")
    assert [row["model"] for row in load(file)] == ["a", "b"]
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning == (
        f"warning: {file}: ignoring 3 lines that are not valid records, the first of them: "
        "line 2 (not JSON)"
    )
    results = Results(tmp_path)
    results.add(record(model="c"))
    results.finish()
    assert [row["model"] for row in read(file)] == ["a", "b", "c"]
    assert file.read_text().splitlines()[1] == "nonsense", "the file itself is not rewritten"


class FullDisk(io.FileIO):
    """A file that takes only some bytes of a write, as on a disk that is nearly full."""

    def write(self, data):
        return super().write(data[:100])


def test_a_short_write_is_an_error_and_the_file_ends_as_before(tmp_path, monkeypatch):
    results = Results(tmp_path)
    results.add(record(model="a"))
    before = results.path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda path, *_, **__: FullDisk(path, "a+"))
        with pytest.raises(zoo.BadInput, match=r"No space left on device \(disk /.*\)") as error:
            results.add(record(model="b"))
    assert "\n" not in str(error.value)
    assert results.path.read_bytes() == before
    results.add(record(model="c"))
    assert [row["model"] for row in read(results.path)] == ["a", "c"]


def test_a_record_is_not_glued_to_a_line_that_another_process_left_torn(tmp_path):
    results = Results(tmp_path)
    results.add(record(model="a"))
    with results.path.open("a") as file:
        file.write('{"model": "to')
    results.add(record(model="b"))
    assert [row["model"] for row in read(results.path)] == ["a", "b"]
    assert len(parse(results.path.read_bytes()).faults) == 1


def test_a_csv_file_is_replaced_completely_or_not_at_all(tmp_path, monkeypatch):
    results = Results(tmp_path)
    results.add(record())
    results.finish()
    before = results.csv.read_text()
    results.add(record(model="b"))

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(zoo.BadInput, match="No space left on device"):
        results.finish()
    assert results.csv.read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.csv", "results.jsonl"]
    with pytest.raises(ValueError, match="the first error"), results:
        raise ValueError("the first error")  # not hidden by that of the full disk


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"a": 1}', "model is missing"),
        (json.dumps(record(p50_ms=None)), "p50_ms is missing"),
        (json.dumps(record(p90_ms="fast")), "p90_ms='fast' is not a number"),
        (json.dumps(record(p50_ms=float("nan"))), "not JSON"),
        (json.dumps(record()).replace("12.346", "1e999"), "p50_ms=inf is not a finite number"),
        (json.dumps(record(p50_ms=-1)), "p50_ms=-1 is negative"),
        (json.dumps(record(p50_ms=0)), "p50_ms=0 is not above 0"),
        (json.dumps(record(low_ms=13.0)), "low_ms=13 exceeds p50_ms=12.346"),
        (json.dumps(record(high_ms=None)), "low_ms and high_ms belong together"),
        (json.dumps(record(params=10**400)), "has too many digits"),
        (json.dumps(record(n=2.5)), "n=2.5 is not an integer"),
        (json.dumps(record(runtime=3)), "runtime=3 is not a string"),
        (json.dumps(record(model=" ")), "model=' ' is empty"),
        (json.dumps(record(machine="mine")), "machine='mine' is not an object"),
        (json.dumps(record(versions={"torch": {}})), "has a nested value, 'torch'"),
        (json.dumps(record(input_size=[224])), "is not a shape"),
        (json.dumps(record(input_size=[1, 3, 0, 4])), "is not a shape"),
        (json.dumps(record(fused="yes")), "fused='yes' is not true, false or null"),
        (json.dumps(record(date="soon")), "date='soon' is not a date"),
        (json.dumps(record(args=NESTED)), "nested more than 20 levels deep"),
        (json.dumps(record(layers=[1])), "layers=list is not an object with a list of layers"),
        (json.dumps(record(layers={"layers": [{}]})), "has a layer that lacks a valid value"),
    ],
)
def test_a_file_without_any_valid_line_is_an_error_and_stays_unchanged(line, message, tmp_path):
    file = tmp_path / "results.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(zoo.BadInput, match="line 1 is not a valid record") as error:
        Results(tmp_path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert file.read_text() == line + "\n"


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
    with pytest.raises(zoo.BadInput, match="is not a file"):
        Results(tmp_path)
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(zoo.BadInput, match="is not a file"):
        Results(tmp_path / "pipe.jsonl")


def test_texts_that_cannot_be_encoded_or_printed_are_replaced(tmp_path):
    results = Results(tmp_path)
    results.add(record(model="a\udc80b", command="x\x1b[2J\x00"))
    (found,) = read(results.path)
    assert (found["model"], found["command"]) == ("a\ufffdb", "x\ufffd[2J\ufffd")


def test_formulas_in_names_are_texts_in_the_csv(tmp_path):
    results = Results(tmp_path)
    names = ["=cmd|' /C calc'!A0", "+1", "-1", "@x", "\t=1"]
    for name in names:
        results.add(record(model=name, machine={"=1": name}))
    results.finish()
    with results.csv.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == [f"'{name}" for name in names]
    assert [row["machine.=1"] for row in rows] == [f"'{name}" for name in names]


def test_flatten():
    assert flatten({"a": {"b": {"c": 1}}, "d": [1, 2]}) == {"a.b.c": 1, "d": "1x2"}
