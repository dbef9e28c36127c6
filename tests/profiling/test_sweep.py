"""benchmark.py: what is measured, what is kept, and what is refused before anything starts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import zoo
from zoo.config import compose
from zoo.profiling import sweep
from zoo.profiling.report import read

ROOT = Path(__file__).resolve().parents[2]
MODEL = "mobilenetv2_035"
QUICK = [
    "profile.min_runs=6",
    "profile.min_time=0",
    "profile.max_time=2",
    "profile.threads=1",
    "profile.image_sizes=[32]",
]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    asked = [
        "models=[mobilenetv2_03*,timm/mobilenetv2_035]",
        "profile.batch_sizes=[1,2]",
        f"profile.out={folder}",
    ]
    return folder, sweep.run(compose("benchmark", [*QUICK, *asked]))


def test_every_case_is_measured_once(swept):
    folder, rows = swept
    cases = [(row["model"], row["fused"], row["input_size"][0]) for row in rows]
    models = (MODEL, f"timm/{MODEL}")
    assert cases == [(m, f, b) for m in models for f in (False, True) for b in (1, 2)]
    assert read(folder / "results.jsonl") == json.loads(json.dumps(rows))


def test_a_record_holds_counts_latency_and_circumstances(swept):
    _, rows = swept
    for row in rows:
        name = row["model"]
        model = zoo.create_model(name).eval()
        counts = zoo.count(zoo.reparameterize(model) if row["fused"] else model, (1, 3, 32, 32))
        for key in ("params", "macs", "flops", "activations"):
            assert row[key] == getattr(counts, key)
        assert row["input_size"][1:] == [3, 32, 32]
        assert row["n"] >= 6
        assert 0 < row["min_ms"] <= row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
        assert row["threads"] == 1
        assert row["machine"]["cpu"]
        assert row["versions"]["torch"]
        assert row["date"]
        assert row["command"]


def test_fused_and_unfused_stand_beside_each_other(swept):
    _, rows = swept
    ours = [row for row in rows if row["model"] == MODEL]
    assert ours[0]["params"] > ours[2]["params"], "folding batch norms takes parameters away"
    assert ours[0]["macs"] == ours[2]["macs"]


@pytest.mark.parametrize(
    ("asked", "error", "said"),
    [
        (["models=[mobilenetv2_035,mobilenet_v2]"], zoo.UnknownModel, "mobilenetv2_"),
        (["models=[nothing*]"], zoo.UnknownModel, r"no model matches 'nothing\*'"),
        (["models=[timm/fastvit_t88]"], zoo.UnknownModel, "timm/fastvit_t8"),
        (["models=[timm/nothing*]"], zoo.UnknownModel, "no model matches"),
        (["profile.fused=maybe"], zoo.BadInput, "both, true or false"),
        (["profile.runtimes=[egaer]"], zoo.BadInput, "try eager"),
        (["profile.runtimes=[]"], zoo.BadInput, r"profile\.runtimes=\[\]"),
        (["profile.batch_sizes=[1,0]"], zoo.BadInput, "0 is not a number of images"),
        (["profile.image_sizes=[wide]"], zoo.BadInput, "profile.image_sizes='wide'"),
        (["profile.image_sizes=[[1,2,3]]"], zoo.BadInput, "height, width"),
        (["profile.dtype=int8"], zoo.BadInput, "float32 or bfloat16"),
        (["profile.threads=0"], zoo.BadInput, "threads=0"),
        (["profile.min_runs=0"], zoo.BadInput, "min_runs=0"),
        (["profile.min_time=3", "profile.max_time=2"], zoo.BadInput, "max_time=2"),
        (["profile.out=/proc/none"], zoo.BadInput, "cannot be written"),
        (
            ["model=timm/vit_tiny_patch16_224", "profile.image_sizes=[100]"],
            zoo.BadInput,
            r"timm/vit_tiny_patch16_224 does not run at 100x100: .*224",
        ),
    ],
)
def test_what_is_refused_before_anything_is_timed(asked, error, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "measure", None)
    with pytest.raises(error, match=said) as caught:
        sweep.run(compose("benchmark", asked))
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_an_operator_without_a_rule_is_shown_in_its_row(tmp_path, monkeypatch, capsys):
    def uncounted(model, input_size):
        raise zoo.UncountedOperator("no rule for aten::strange in stem")

    monkeypatch.setattr(sweep, "count", uncounted)
    asked = [f"model=timm/{MODEL}", "profile.fused=false", f"profile.out={tmp_path}"]
    with pytest.raises(zoo.UncountedOperator, match=f"not counted: timm/{MODEL}"):
        sweep.run(compose("benchmark", [*QUICK, *asked]))
    (kept,) = read(tmp_path / "results.jsonl")
    assert kept["macs"] is None
    assert kept["params"] == sum(p.numel() for p in zoo.create_model(f"timm/{MODEL}").parameters())
    assert kept["p50_ms"] > 0
    printed = capsys.readouterr().out
    assert "aten::strange" in printed
    assert printed.split().count("uncounted") == 3


def test_a_model_that_fails_in_one_runtime_does_not_end_the_sweep(tmp_path, monkeypatch, capsys):
    true_measure = sweep.measure

    def measure(model, size, runtime, **settings):
        if runtime == "onnxruntime":
            raise zoo.NotExportable("it cannot be exported")
        return true_measure(model, size, runtime, **settings)

    monkeypatch.setattr(sweep, "measure", measure)
    asked = [f"model={MODEL}", "profile.fused=true", f"profile.out={tmp_path}"]
    with pytest.raises(zoo.ZooError, match=f"not measured: {MODEL}"):
        sweep.run(compose("benchmark", [*QUICK, "profile.runtimes=[onnxruntime,eager]", *asked]))
    assert [row["runtime"] for row in read(tmp_path / "results.jsonl")] == ["eager"]
    assert "it cannot be exported" in capsys.readouterr().out


def test_an_interrupted_sweep_keeps_what_it_has(tmp_path, monkeypatch):
    true_measure, calls = sweep.measure, []

    def measure(*args, **settings):
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        return true_measure(*args, **settings)

    monkeypatch.setattr(sweep, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        sweep.run(compose("benchmark", [*QUICK, f"model={MODEL}", f"profile.out={tmp_path}"]))
    assert len(read(tmp_path / "results.jsonl")) == 1
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 2


def test_sizes_are_each_models_own_unless_given(tmp_path, monkeypatch):
    counted = []

    def count(model, input_size):
        counted.append(tuple(input_size))
        raise ZeroDivisionError("far enough")

    monkeypatch.setattr(sweep, "count", count)
    for sizes in ("null", "[[48,64]]", "[null,32]"):
        asked = [f"model={MODEL}", f"profile.image_sizes={sizes}", f"profile.out={tmp_path}"]
        with pytest.raises(zoo.BadInput, match="far enough"):
            sweep.run(compose("benchmark", asked))
    assert counted == [(1, 3, 224, 224), (1, 3, 48, 64), (1, 3, 224, 224)]


def test_the_command_prints_the_table_and_says_where_the_records_are(tmp_path):
    asked = [f"model={MODEL}", "profile.fused=true", *QUICK]
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmark.py"), *asked],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{MODEL}  fused" in done.stdout
    assert "1 record in runs/benchmark/" in done.stdout
    (record,) = [row for file in tmp_path.rglob("results.jsonl") for row in read(file)]
    assert record["command"].startswith("python ")
    assert f"model={MODEL}" in record["command"]
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_the_command_says_a_mistake_in_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmark.py"), "models=[mobilenet_v2]"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: no model named 'mobilenet_v2'")
    assert list(tmp_path.iterdir()) == []
