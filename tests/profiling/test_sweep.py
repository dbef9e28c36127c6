"""benchmark.py: cases, records, resuming a sweep, and settings that are refused early."""

import dataclasses
import json
import os
import subprocess
import sys
import time
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest

import zoo
from zoo.command_line.composition import run as run_command
from zoo.profiling import sweep
from zoo.profiling.plan import Plan
from zoo.reports.records import read

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
    overrides = [
        "models=[mobilenetv2_03*,timm/mobilenetv2_035]",
        "profile.batch_sizes=[1,2]",
        f"profile.out={folder}",
    ]
    return folder, run_command("benchmark", [*QUICK, *overrides])


def test_every_case_is_measured_once(swept):
    folder, rows = swept
    cases = [(row["model"], row["fused"], row["input_size"][0]) for row in rows]
    models = (MODEL, f"timm/{MODEL}")
    assert cases == [(m, f, b) for m in models for f in (False, True) for b in (1, 2)]
    assert read(folder / "results.jsonl") == json.loads(json.dumps(rows))


def test_a_record_contains_counts_latency_and_environment(swept):
    _, rows = swept
    for row in rows:
        name = row["model"]
        model = zoo.create_model(name).eval()
        counts = zoo.count(zoo.reparameterize(model) if row["fused"] else model, (1, 3, 32, 32))
        for key in ("params", "macs", "flops", "activations"):
            assert row[key] == getattr(counts, key)
        assert row["input_size"][1:] == [3, 32, 32]
        assert row["n"] >= 6
        assert 0 < row["min_ms"] <= row["p50_ms"]
        assert row["threads"] == 1
        assert row["machine"]["cpu"]
        assert row["versions"]["torch"]
        assert row["date"]
        assert row["command"]


def test_fused_and_unfused_models_are_both_measured(swept):
    _, rows = swept
    ours = [row for row in rows if row["model"] == MODEL]
    assert ours[0]["params"] > ours[2]["params"], "folding batch norms removes parameters"
    assert ours[0]["macs"] == ours[2]["macs"]


def test_both_variants_are_timed_in_turn(swept):
    _, rows = swept
    for row in rows:
        assert ("paired" in row) == row["fused"]
        if row["fused"]:
            found = row["paired"]
            assert found["low"] <= found["ratio"] <= found["high"]
            assert found["n"] >= 6


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["models=[mobilenetv2_035,mobilenet_v2]"], zoo.UnknownModel, "mobilenetv2_"),
        (["models=[nothing*]"], zoo.UnknownModel, r"no model matches 'nothing\*'"),
        (["models=[timm/fastvit_t88]"], zoo.UnknownModel, "timm/fastvit_t8"),
        (["models=[timm/nothing*]"], zoo.UnknownModel, "no model matches"),
        (["profile.fused=maybe"], zoo.BadInput, "both, true or false"),
        (["profile.runtimes=[egaer]"], zoo.BadInput, "did you mean 'eager'"),
        (["profile.runtimes=[]"], zoo.BadInput, r"profile\.runtimes=\[\]"),
        (["profile.batch_sizes=[1,0]"], zoo.BadInput, "0 is not a batch size"),
        (["profile.image_sizes=[wide]"], zoo.BadInput, "profile.image_sizes='wide'"),
        (["profile.image_sizes=[[1,2,3]]"], zoo.BadInput, "height, width"),
        (["profile.dtype=int8"], zoo.BadInput, "Choices: float32, bfloat16"),
        (["profile.threads=0"], zoo.BadInput, "threads=0"),
        (["profile.min_runs=0"], zoo.BadInput, "min_runs=0"),
        (["profile.min_time=3", "profile.max_time=2"], zoo.BadInput, "max_time=2"),
        (["profile.out=/proc/none"], zoo.BadInput, "cannot be written"),
        (
            ["profile.layers=true", "profile.runtimes=[compile]"],
            zoo.BadInput,
            "profile.layers=true needs the runtime 'eager'",
        ),
        (
            ["model=timm/vit_tiny_patch16_224", "profile.image_sizes=[100]"],
            zoo.BadInput,
            r"timm/vit_tiny_patch16_224 cannot run at 100x100: .*224",
        ),
        (
            ["model=wavemix_192_16_l3", "profile.image_sizes=[100]"],
            zoo.BadInput,
            "wavemix_192_16_l3 cannot run at 100x100: every side must be a multiple of 32",
        ),
        (["profile.image_sizes=[[1,2,3,4]]"], zoo.BadInput, "is not a number of pixels"),
        (
            ["model=lightm_unet_3d", "profile.image_sizes=[32]"],
            zoo.BadInput,
            r"lightm_unet_3d takes \[depth, height, width\]",
        ),
    ],
)
def test_invalid_settings_are_refused_before_measuring(
    overrides, error, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "measure", None)
    with pytest.raises(error, match=message) as caught:
        run_command("benchmark", overrides)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_a_model_with_an_unknown_operator_is_shown_as_uncounted(tmp_path, monkeypatch, capsys):
    def uncounted(model, input_size):
        raise zoo.UncountedOperator("no rule for aten::strange in stem")

    monkeypatch.setattr(sweep, "count", uncounted)
    overrides = [f"model=timm/{MODEL}", "profile.fused=false", f"profile.out={tmp_path}"]
    with pytest.raises(zoo.UncountedOperator, match=f"not counted: timm/{MODEL}"):
        run_command("benchmark", [*QUICK, *overrides])
    (kept,) = read(tmp_path / "results.jsonl")
    assert kept["macs"] is None
    assert kept["params"] == sum(p.numel() for p in zoo.create_model(f"timm/{MODEL}").parameters())
    assert kept["p50_ms"] > 0
    printed = capsys.readouterr().out
    assert "aten::strange" in printed
    assert printed.split().count("uncounted") >= 2, "as many as fit the width"


def test_a_model_that_fails_in_one_runtime_does_not_end_the_sweep(tmp_path, monkeypatch, capsys):
    true_measure = sweep.measure

    def measure(model, size, runtime, **settings):
        if runtime == "onnxruntime":
            raise zoo.NotExportable("it cannot be exported")
        return true_measure(model, size, runtime, **settings)

    monkeypatch.setattr(sweep, "measure", measure)
    overrides = [f"model={MODEL}", "profile.fused=true", f"profile.out={tmp_path}"]
    with pytest.raises(zoo.ZooError, match=f"not measured: {MODEL}"):
        run_command("benchmark", [*QUICK, "profile.runtimes=[onnxruntime,eager]", *overrides])
    assert [row["runtime"] for row in read(tmp_path / "results.jsonl")] == ["eager"]
    assert "it cannot be exported" in capsys.readouterr().out


def test_a_model_that_does_not_take_a_size_does_not_end_the_sweep(tmp_path, capsys):
    overrides = ["models=[wavemix_144_7_l1_cifar10,mobilenetv2_035]", "profile.fused=true"]
    sizes = ["profile.image_sizes=[33]", f"profile.out={tmp_path}"]
    with pytest.raises(zoo.ZooError, match="not measured: wavemix_144_7_l1_cifar10;"):
        run_command("benchmark", [*QUICK, *overrides, *sizes])
    assert [row["model"] for row in read(tmp_path / "results.jsonl")] == [MODEL]
    assert "every side must be a multiple of 2" in capsys.readouterr().out


def test_an_interrupted_sweep_keeps_its_records(tmp_path, monkeypatch, capsys):
    true_measure, calls = sweep.measure, []

    def measure(*args, **settings):
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        return true_measure(*args, **settings)

    monkeypatch.setattr(sweep, "measure", measure)
    with pytest.raises(SystemExit):
        run_command("benchmark", [*QUICK, f"model={MODEL}", f"profile.out={tmp_path}"])
    assert len(read(tmp_path / "results.jsonl")) == 1
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 2
    message = capsys.readouterr().err
    assert message.startswith("interrupted: 1 of 2 measurements are in")
    assert f"profile.out={tmp_path} to continue" in message


def replace_measure(monkeypatch):
    """Replace `sweep.measure` by a function that only records its calls; return these calls."""
    calls = []
    first = sweep.measure(zoo.create_model(MODEL), (1, 3, 32, 32), min_runs=1, min_time=0)

    def measure(model, size, runtime, **settings):
        calls.append((tuple(size), settings["min_runs"]))
        return dataclasses.replace(first, input_size=tuple(size), runtime=runtime)

    monkeypatch.setattr(sweep, "measure", measure)
    same = SimpleNamespace(ratio=1.0, low=0.9, high=1.1, n=6)
    monkeypatch.setattr(sweep, "compare", lambda *args, **settings: same)
    return calls


def test_earlier_measurements_are_skipped(tmp_path, monkeypatch, capsys):
    calls = replace_measure(monkeypatch)
    overrides = [*QUICK, f"model={MODEL}", "profile.fused=true", f"profile.out={tmp_path}"]
    run_command("benchmark", overrides)
    assert "skipping" not in capsys.readouterr().out
    rows = run_command("benchmark", [*overrides, "profile.batch_sizes=[1,2]"])
    assert calls == [((1, 3, 32, 32), 6), ((2, 3, 32, 32), 6)]
    assert [row["input_size"][0] for row in rows] == [1, 2]
    assert "skipping 1 of 2 measurements" in capsys.readouterr().out
    run_command("benchmark", [*overrides, "profile.min_runs=7"])
    assert calls[2:] == [((1, 3, 32, 32), 7)], "other settings need another measurement"
    assert len(read(tmp_path / "results.jsonl")) == 3


@pytest.mark.parametrize("what", ["versions", "describe_machine"])
def test_other_versions_and_machines_are_measured_again(what, tmp_path, monkeypatch):
    calls = replace_measure(monkeypatch)
    overrides = [*QUICK, f"model={MODEL}", "profile.fused=true", f"profile.out={tmp_path}"]
    run_command("benchmark", overrides)
    other = {**getattr(sweep, what)(), "python": "4.0"}
    monkeypatch.setattr(sweep, what, lambda: other)
    run_command("benchmark", overrides)
    run_command("benchmark", overrides)
    assert len(calls) == 2


def test_a_continued_sweep_builds_only_the_missing_models(tmp_path, monkeypatch):
    replace_measure(monkeypatch)
    overrides = [*QUICK, "profile.fused=false", f"profile.out={tmp_path}"]
    run_command("benchmark", [*overrides, f"model={MODEL}"])
    built, alive = [], weakref.WeakSet()
    true_create = sweep.create_model

    def create(name, **arguments):
        assert len(alive) == 0, "more than one model is in memory"
        built.append((name, len(read(tmp_path / "results.jsonl"))))
        model = true_create(name, **arguments)
        alive.add(model)
        return model

    monkeypatch.setattr(sweep, "create_model", create)
    run_command("benchmark", [*overrides, "models=[mobilenetv2_0*]"])
    assert built == [("mobilenetv2_050", 1), ("mobilenetv2_075", 2)], (
        "each record is written before the next model is built"
    )


def test_a_killed_sweep_continues_where_it_stopped(tmp_path, capsys):
    overrides = ["models=[mobilenetv2_0*]", "profile.fused=true", "profile.min_time=0.3"]
    command = [sys.executable, str(ROOT / "benchmark.py"), *QUICK, *overrides]
    command += [f"profile.out={tmp_path}/a.jsonl"]
    file = tmp_path / "a.jsonl"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) as running:
        until = time.monotonic() + 60
        while not (file.exists() and file.stat().st_size) and time.monotonic() < until:
            time.sleep(0.02)
        running.kill()
    (first, *_) = kept = read(file)
    assert len(kept) < 3
    with file.open("a") as incomplete:
        incomplete.write('{"model": "mobilenetv2_05')
    run_command("benchmark", command[2:])
    printed = capsys.readouterr()
    assert "removed the last line, which was incomplete" in printed.err
    assert f"skipping {len(kept)} of 3 measurements that {file} already" in printed.out
    records = read(file)
    assert [row["model"] for row in records] == [f"mobilenetv2_{w}" for w in ("035", "050", "075")]
    assert records[0] == first
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 4


def test_layers_are_profiled_only_in_eager(tmp_path):
    overrides = [f"model={MODEL}", "profile.fused=true", "profile.layers=true"]
    runtimes = ["profile.runtimes=[onnxruntime,eager]", f"profile.out={tmp_path}"]
    rows = run_command("benchmark", [*QUICK, *overrides, *runtimes])
    layers = {row["runtime"]: row.get("layers") for row in rows}
    assert layers["onnxruntime"] is None
    assert sum(layer["macs"] for layer in layers["eager"]["layers"]) == rows[0]["macs"]
    assert layers["eager"]["roofline"]["gmacs_per_s"] > 0
    assert read(tmp_path / "results.jsonl")[1]["layers"] == layers["eager"]
    assert "stages" not in (tmp_path / "results.csv").read_text()


def test_runtimes_share_exported_files(tmp_path, monkeypatch):
    files = []
    true_convert = sweep.convert

    def convert(model, file, **settings):
        files.append(file)
        true_convert(model, file, **settings)

    monkeypatch.setattr(sweep, "convert", convert)
    replace_measure(monkeypatch)
    overrides = ["profile.runtimes=[onnxruntime,openvino]", "profile.batch_sizes=[1,2]"]
    rows = run_command(
        "benchmark",
        [*QUICK, *overrides, f"model={MODEL}", "profile.fused=true", f"profile.out={tmp_path}"],
    )
    assert [(row["runtime"], row["input_size"][0]) for row in rows] == [
        ("onnxruntime", 1),
        ("onnxruntime", 2),
        ("openvino", 1),
        ("openvino", 2),
    ]
    assert len(files) == 2, "one for each batch size"
    assert not any(file.exists() for file in files)


def test_image_sizes_default_to_those_of_each_model(tmp_path, monkeypatch):
    counted = []

    def count(model, input_size):
        counted.append(tuple(input_size))
        raise ZeroDivisionError("stop here")

    monkeypatch.setattr(sweep, "count", count)
    for sizes in ("null", "[[48,64]]", "[null,32]"):
        overrides = [f"model={MODEL}", f"profile.image_sizes={sizes}", "profile.fused=false"]
        with pytest.raises(zoo.ZooError, match="stop here|not measured"):
            run_command("benchmark", [*overrides, f"profile.out={tmp_path}"])
    assert counted == [(1, 3, 224, 224), (1, 3, 48, 64), (1, 3, 224, 224), (1, 3, 32, 32)]


@pytest.mark.parametrize(
    ("name", "sizes", "arguments", "images"),
    [
        ("mobilemamba_t2", [None], {}, [(3, 192, 192)]),
        ("timm/fastvit_t8", [None], {}, [(3, 256, 256)]),
        ("timm/vit_tiny_patch16_224", [None], {"img_size": 64}, [(3, 64, 64)]),
        ("mobilenetv2_035", [(32,), (32, 48), (32, 32)], {}, [(3, 32, 32), (3, 32, 48)]),
        ("mobilenetv2_035", [(32,)], {"in_chans": 1}, [(1, 32, 32)]),
        ("lightm_unet_3d", [None, (8, 16, 16)], {}, [(1, 32, 32, 32), (1, 8, 16, 16)]),
    ],
)
def test_image_sizes_of_a_plan(name, sizes, arguments, images):
    plan = Plan([name], arguments, sizes, [("eager", False)], [1], {"threads": 1})
    assert [case.image for case in plan.cases()] == images
    assert not any(case.refused for case in plan.cases())


def test_the_command_prints_the_table_and_the_path_of_the_records(tmp_path, script, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = script("benchmark", f"model={MODEL}", "profile.fused=true", *QUICK)
    assert done.returncode == 0
    assert f"{MODEL} fused" in done.stdout
    assert "1 record in runs/benchmark/" in done.stdout
    (record,) = [row for file in tmp_path.rglob("results.jsonl") for row in read(file)]
    assert record["command"].startswith("python ")
    assert f"model={MODEL}" in record["command"]
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


@pytest.mark.parametrize(
    ("script", "command"),
    [
        ("/somewhere/zoo/__main__.py", "python -m zoo results"),
        ("/somewhere/benchmark.py", "python benchmark.py results"),
        ("/somewhere/bin/zoo", "zoo results"),
    ],
)
def test_records_contain_the_command_without_its_folder(script, command, monkeypatch):
    monkeypatch.setattr(sys, "argv", [script, "results"])
    assert " ".join(sweep._command()) == command
