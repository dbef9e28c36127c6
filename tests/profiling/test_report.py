"""Reports as Markdown, CSV and HTML: their content, escaping and errors."""

import csv
import errno
import json
import os
import re
import subprocess
import sys

import pytest
from synthetic import record

import zoo
from zoo.cli import execute as main
from zoo.reports.markdown import escape
from zoo.reports.page import LAYERS_BYTES, render
from zoo.reports.report import markdown, write
from zoo.reports.view import View

EVIL = "</script><script>alert(1)</script>\"'&<img src=x onerror=alert(1)>|`*[a](javascript:b)"


def layers(count=3, start=0):
    rows = [
        {
            "name": f"stages.{i}.conv",
            "type": "Conv2d 3x3",
            "ms": 0.5 + i,
            "macs": 10**6,
            "params": 100,
            "bytes": 2**20,
            "gmacs_per_s": 2.0,
            "gbytes_per_s": 1.0,
            "bound": ("memory", "compute", "overhead")[i % 3],
        }
        for i in range(start, start + count)
    ]
    roofline = {"gmacs_per_s": 50.0, "gbytes_per_s": 10.0}
    return {"layers": rows, "roofline": roofline, "total_ms": 9.0}


def save(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def data_of(page):
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    return json.loads(text)


def both():
    a = record(model="efficientformer_l1", params=12_289_928)
    b = record(model="efficientformer_l1", fused=True, params=12_000_000, p50_ms=10.0)
    return [a, b | {"low_ms": 9.9, "high_ms": 10.1, "peak_memory_bytes": 2**20}]


def test_the_report_command_writes_three_files(tmp_path, capsys):
    source = save(tmp_path / "mine.jsonl", both())
    assert main(["report", str(source)]) == 0
    written = [tmp_path / f"mine.{suffix}" for suffix in ("md", "csv", "html")]
    assert capsys.readouterr().out.splitlines() == [f"wrote {file}" for file in written]
    with written[1].open(newline="") as file:
        assert [row["params"] for row in csv.DictReader(file)] == ["12289928", "12000000"]
    text = written[0].read_text()
    assert text.startswith("# mine\n")
    assert "2 measurements of 1 model, measured 2026-01-02." in text
    row = next(line for line in text.splitlines() if "| fused |" in line)
    assert row.split(" | ")[-4:] == ["10.00 [9.90, 10.10]", "10.53", "12.15", "1.0 MiB |"]


def test_a_folder_works_like_the_file_in_it(tmp_path):
    (tmp_path / "run").mkdir()
    save(tmp_path / "run" / "results.jsonl", both())
    out = tmp_path / "a" / "b"
    files = write(tmp_path / "run", out)
    assert [file.name for file in files] == ["results.md", "results.csv", "results.html"]
    assert all(file.parent == out and file.is_file() for file in files)
    assert "<title>efficientformer_l1 on A, B, 2 threads, eager</title>" in files[2].read_text()
    assert '"summary":"run: 2 measurements' in files[2].read_text()


def test_markdown_contains_the_front_the_pairs_and_the_machine():
    text = markdown(View(both()), "t")
    (front,) = re.findall(r"^\| efficientformer_l1 \| fused \| 10.00 \| ([\d.]+) \|", text, re.M)
    entries = zoo.model_info("efficientformer_l1")["published"]
    assert float(front) == max(entry["top1"] for entry in entries)
    assert "| not timed in turn |" in text
    a, b = both()
    text = markdown(View([a, b | {"paired": {"ratio": 0.81, "low": 0.8, "high": 0.82}}]), "t")
    pair = next(line for line in text.splitlines() if line.endswith("| faster |"))
    assert "12.29 M | 12.00 M" in pair
    assert "12.35 | 10.00 | 0.810 [" in pair
    assert "| cpu | A, B |" in text
    assert "    python benchmark.py model=net" in text


def test_the_page_contains_all_values_and_loads_nothing():
    page = render(View([*both(), record(model="timm/x", layers=layers())]), "a title")
    assert {link[0] for link in re.findall(r"""(?:src|href)\s*=\s*["']?(.)""", page)} == {"#"}
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)
    data = data_of(page)
    titles = [column["title"] for column in data["columns"]]
    assert len({column["key"] for column in data["columns"]}) == len(titles)
    assert data["rows"][1][titles.index("p50 ms")] == 10.0
    assert data["rows"][2][titles.index("family")] == "timm"
    (points,) = data["points"].values()
    assert [(p["row"], p["front"], p["at_size"]) for p in points] == [
        (0, False, True),
        (1, True, True),
        (2, False, False),
    ]
    assert points[2]["top1"] is None
    assert data["families"] == ["efficientformer", "efficientformer", "timm"]
    ((*_, params, fused_params, _, _),) = data["pairs"]
    assert (params, fused_params) == (12_289_928, 12_000_000)
    (entry,) = data["layers"]
    assert entry["name"] == ["stages.0.conv", "stages.1.conv", "stages.2.conv"]
    assert [data["bounds"][b] for b in entry["bound"]] == ["memory", "compute", "overhead"]
    assert data["environments"] == [
        [["cpu", "A, B"], ["cores", "2"], ["zoo", "0.1.0"], ["torch", "2.15.0"]]
    ]


def test_points_at_another_size_than_published_are_not_on_the_front():
    fast = record(model="efficientformer_l1", input_size=[1, 3, 64, 64], p50_ms=1.0)
    ((one, two),) = View([fast, record(model="efficientformer_l1")]).points().values()
    assert (one.at_size, one.front) == (False, False)
    assert (two.at_size, two.front) == (True, True)


def test_only_settings_that_differ_have_a_column():
    view = View([record(), record(threads=4, machine={"cpu": "C"})])
    keys = [column.key for column in view.columns]
    assert "threads" in keys
    assert "machine" in keys
    assert "batch" not in keys
    assert "energy_j" not in keys
    assert "batch 1" in view.shared_settings()
    assert [
        column.value(view.records[1]) for column in view.columns if column.key == "machine"
    ] == [2]
    points = View([record(), record(threads=4)]).points()
    assert list(points) == ["eager 2.15.0, threads 2", "eager 2.15.0, threads 4"]
    assert all(point.top1 is None for group in points.values() for point in group)


def test_runtime_versions_are_shown_without_the_build():
    view = View([record(runtime="openvino", runtime_version="2026.4.1-22982-e21-releases/2026/4")])
    (shown,) = [c.value(view.records[0]) for c in view.columns if c.key == "runtime"]
    assert shown == "openvino 2026.4.1"


def test_the_setting_with_most_models_then_the_fastest_comes_first():
    rows = [record(model=name, runtime="a", p50_ms=9.0) for name in ("x", "y")]
    rows += [record(model=name, runtime="b", p50_ms=5.0) for name in ("x", "y")]
    rows += [record(model="x", runtime="c", p50_ms=1.0)]
    settings = [setting.split()[0] for setting in View(rows).points()]
    assert settings == ["b", "a", "c"]


def test_the_heading_says_what_was_measured_and_where():
    rows = [record(model="x"), record(model="y", runtime="onnxruntime", threads=1)]
    assert View(rows).headline() == "2 backbones on A, B, 1 and 2 threads, eager and onnxruntime"
    many = [record(model="x", machine={"cpu": f"C{i}"}, threads=None) for i in range(5)]
    assert View(many).headline() == "x on 5 machines, eager"


def test_different_settings_have_separate_fronts_and_no_pairs():
    a = record(model="efficientformer_l1")
    b = record(model="efficientformer_l1", fused=True, threads=1, p50_ms=1.0)
    view = View([a, b])
    assert view.pairs() == []
    assert [len(points) for points in view.points().values()] == [1, 1]
    assert all(point.front for points in view.points().values() for point in points)


def test_text_from_records_is_escaped():
    evil = record(
        model=EVIL,
        runtime=EVIL,
        dtype=EVIL,
        machine={EVIL: EVIL},
        versions={EVIL: EVIL},
        command=EVIL,
        layers=layers()
        | {"layers": [layers()["layers"][0] | dict.fromkeys(("name", "bound"), EVIL)]},
    )
    page = render(View([evil, evil | {"fused": True}]), EVIL)
    assert page.count("<script") == 2
    assert page.count("</script>") == 2
    assert "<img" not in page
    assert data_of(page)["rows"][0][0] == EVIL
    text = markdown(View([evil]), EVIL)
    prose = "\n".join(line for line in text.splitlines() if not line.startswith("    "))
    assert not re.search(r"(?<!\\)<", prose)
    assert "[a](" not in prose
    widths = {len(re.split(r"(?<!\\)\|", line)) for line in prose.split("\n\n")[3].splitlines()}
    assert len(widths) == 1, "a bar in a name must not start a new column"


def test_escape_markdown():
    assert escape("a|b\n<c> [x](y) `*`") == r"a\|b \<c\> [x]\(y) \`\*\`"
    assert escape("mobilenetv2_035") == "mobilenetv2_035"


def test_three_hundred_models_stay_under_six_megabytes(tmp_path):
    names = zoo.list_models()
    records = [
        record(
            model=f"{names[i % len(names)]}",
            args={"i": i},
            fused=fused,
            runtime=runtime,
            p50_ms=1.0 + i / 7,
            layers=layers(120) if runtime == "eager" else None,
        )
        for i in range(300)
        for fused in (False, True)
        for runtime in ("eager", "onnxruntime")
    ]
    *_, page = write(save(tmp_path / "many.jsonl", records))
    assert page.stat().st_size < 6_000_000
    data = data_of(page.read_text())
    assert len(data["rows"]) == 1200
    assert {data["rows"][entry["row"]][0] for entry in data["layers"]} == {
        r["model"] for r in records
    }


def test_layers_beyond_the_size_limit_are_omitted_and_counted(monkeypatch):
    monkeypatch.setattr("zoo.reports.page.LAYERS_BYTES", 1500)
    records = [record(model=name, layers=layers(5)) for name in ("a", "a", "b", "c", "d", "e", "f")]
    data = data_of(render(View(records), "t"))
    shown = [data["rows"][entry["row"]][0] for entry in data["layers"]]
    assert 0 < len(shown) < 6
    assert len(set(shown)) == len(shown), "a second record of a model comes after all first ones"
    assert data["omitted"] == 7 - len(shown)
    assert LAYERS_BYTES < 5_000_000


def test_an_incomplete_last_line_is_a_warning(tmp_path, capsys):
    source = save(tmp_path / "a.jsonl", both())
    with source.open("a") as file:
        file.write('{"model": "cut o')
    assert main(["report", str(source)]) == 0
    assert capsys.readouterr().err == (
        f"warning: {source}: ignoring the last line, which is incomplete\n"
    )
    assert len(data_of((tmp_path / "a.html").read_text())["rows"]) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "{path} does not exist"),
        ("", "{path} contains no records"),
        ('{"model": "cut', "{path} contains no records"),
        ("nonsense\n", "{path}, line 1 is not a valid record (not JSON)"),
    ],
)
def test_errors_are_one_line(content, message, tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    if content is not None:
        path.write_text(content)
    assert main(["report", str(path)]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message.format(path=path) in error
    assert not (tmp_path / "a.html").exists()


def test_an_unwritable_folder_is_an_error(tmp_path, capsys):
    source = save(tmp_path / "a.jsonl", both())
    assert main(["report", str(source), "--out", str(source)]) == 1
    assert capsys.readouterr().err.startswith("error: the report cannot be written to")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a" * 300, "is not a path"),
        ("x\0y", "does not exist"),
        ("pipe", "is not a file"),
        ("", "does not"),
    ],
)
def test_paths_that_cannot_be_read_are_an_error(name, message, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(zoo.BadInput, match=message):
        write(tmp_path / name)
    source = save(tmp_path / "a.jsonl", both())
    if name in ("a" * 300, "x\0y"):
        with pytest.raises(zoo.BadInput, match="the report cannot be written"):
            write(source, tmp_path / name)


def test_a_report_is_replaced_completely_or_not_at_all(tmp_path, monkeypatch, capsys):
    source = save(tmp_path / "a.jsonl", both())
    files = write(source)
    before = [file.read_bytes() for file in files]
    save(source, [record(model="other")])
    calls = []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert main(["report", str(source)]) == 1
    assert re.search(
        r"^error: .*a\.html cannot be written: No space .* \(disk /", capsys.readouterr().err
    )
    assert [file.read_bytes() for file in files] == before
    assert len(list(tmp_path.iterdir())) == 4, "no temporary file is left"


def test_drafts_of_killed_processes_are_removed(tmp_path):
    source = save(tmp_path / "a.jsonl", both())
    old, new = (tmp_path / f".a.md.{name}.partial" for name in ("old", "new"))
    for draft in (old, new):
        draft.write_text("")
    os.utime(old, (0, 0))
    write(source)
    assert (old.exists(), new.exists()) == (False, True)


def test_report_and_compare_do_not_import_torch(tmp_path):
    source = save(tmp_path / "a.jsonl", both())
    code = f"""
import sys
from zoo.cli import execute as main
assert main(["report", {str(source)!r}]) == 0
assert main(["compare", {str(source)!r}, {str(source)!r}]) == 0
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
