"""`zoo gate`: false alarms and missed slow-downs on simulated machines, baselines, the command."""

import contextlib
import functools
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic import Clock
from torch import nn

import zoo
from zoo.cli import execute as main
from zoo.errors import BadInput
from zoo.profiling import baseline as baselines
from zoo.profiling import gate
from zoo.profiling.baseline import Score

PAGE = (Path(__file__).parents[2] / "docs" / "benchmarking.md").read_text("utf-8")


def machine(seed, slow_down, clock, noise, late):
    """Return a function that opens an old and a new file on a simulated machine.

    The machine drifts, is busy for whole periods, and interrupts single calls for long. Each load
    of a file shifts its latency by a percent.
    """
    generator = np.random.default_rng(seed)
    count = 2 * gate.PAIRS * gate.LOOKS[-1]
    factors = np.exp(noise * generator.standard_normal(count))
    factors *= 1 + np.where(generator.random(count) < late, generator.pareto(1.5, count), 0.0)
    periods = np.repeat(generator.choice([1.0, 1.0, 1.3], count // 50 + 1), 50)[:count]
    drift = 1 + 0.2 * np.sin(np.arange(count) / 700)
    durations = iter((1e-3 * factors * periods * drift).tolist())

    @contextlib.contextmanager
    def open_both():
        old, new = 1 + 0.01 * generator.standard_normal(2)

        def call(share):
            clock.now += share * next(durations)

        yield (lambda: call(old)), (lambda: call(new * (1 + slow_down)))

    return open_both


def verdicts(slow_down, runs, noise=0.05, late=0.03, slower=0.03):
    found = []
    for seed in range(runs):
        clock = Clock()
        open_both = machine(seed, slow_down, clock, noise, late)
        found.append(gate.compare_until_clear(open_both, slower, clock).verdict)
    return found


def test_a_hundred_comparisons_of_equal_files_raise_at_most_five_alarms():
    assert verdicts(0.0, 100).count("slower") <= 5
    assert verdicts(0.0, 20, noise=0.15, late=0.1).count("slower") <= 1


def test_a_slow_down_at_the_limit_raises_few_alarms():
    """The worst case: every look is a chance of a false alarm."""
    assert verdicts(0.03, 40).count("slower") <= 3


@pytest.mark.parametrize(("slow_down", "least"), [(0.05, 19), (0.08, 20)])
def test_a_slow_down_is_detected(slow_down, least):
    found = verdicts(slow_down, 20)
    assert found.count("slower") >= least
    assert found.count("ok") == 0


def test_clear_answers_end_early_and_a_noisy_machine_is_called_unclear():
    clock = Clock()
    quiet = gate.compare_until_clear(machine(0, 0.2, clock, 0.02, 0.0), 0.03, clock)
    assert (quiet.verdict, quiet.loads, quiet.n) == ("slower", 6, 192)
    clock = Clock()
    noisy = gate.compare_until_clear(machine(0, 0.04, clock, 0.6, 0.3), 0.03, clock, looks=(3, 6))
    assert (noisy.verdict, noisy.loads) == ("unclear", 6)
    assert noisy.low < 1.03 < noisy.high


def test_each_file_goes_first_in_every_other_pair():
    order = []

    @contextlib.contextmanager
    def open_both():
        yield (lambda: order.append("a")), (lambda: order.append("b"))

    gate.compare_until_clear(open_both, 0.5, iter(range(10_000)).__next__, looks=(2,))
    assert "".join(order) == "abba" * gate.PAIRS


PAIRED = gate.Paired(1.004, 0.99, 1.012, 192, 6, 10.0, 10.04, 1.03)


def result(old, new, drop=None, **changes):
    scores = [
        None if v is None else Score("top1", v, "folder", 500) for v in (old, new)
    ]  # fmt: skip
    paired = gate.Paired(**{**PAIRED.__dict__, **changes})
    return gate.Gate(paired, *scores, drop)


@pytest.mark.parametrize(
    ("found", "passed", "row"),
    [
        (result(76.4, 76.1, 0.3), True, "| top1, % | 76.40 | 76.10 | −0.30 | −0.3 | ok |"),
        (result(76.4, 76.0, 0.3), False, "| top1, % | 76.40 | 76.00 | −0.40 | −0.3 | **worse** |"),
        (result(76.4, 77.0, 0.3), True, "| top1, % | 76.40 | 77.00 | +0.60 | −0.3 | ok |"),
        (result(76.4, 70.0), True, "| top1, % | 76.40 | 70.00 | −6.40 |  |  |"),
        (result(76.4, None), True, "| 76.40 | not evaluated |  |  | not compared |"),
        (
            result(None, None),
            True,
            "| latency, ms | 10.000 | 10.040 | +0.4 % [−1.0 %, +1.2 %] | +3.0 % | ok |",
        ),
        (result(None, None, low=1.04, high=1.1), False, "| +3.0 % | **slower** |"),
        (result(None, None, high=1.05), True, "| unclear: not shown to be slower |"),
    ],
)
def test_the_verdict_and_its_row(found, passed, row):
    assert found.passed == passed
    text = gate.markdown(found, Path("baseline.json"), Path("model.onnx"))
    assert row in text
    assert text.startswith(f"### zoo gate: {'passed' if passed else 'failed'}\n")
    assert ("too busy" in text) == (found.latency.verdict == "unclear")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Two files of small models, of which the second is larger."""
    root = tmp_path_factory.mktemp("exported")
    for name, blocks in (("old", 1), ("new", 4)):
        torch.manual_seed(0)
        layers = [
            layer for _ in range(blocks) for layer in (nn.Conv2d(3, 3, 9, padding=4), nn.ReLU())
        ]
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        zoo.export(model.eval(), "torchscript", root / name, input_size=(1, 3, 64, 64))
    return root


def evaluated(folder, value, images=500):
    """Write a report as `zoo eval artefact=...` does."""
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    report = {"sha256": manifest["artefact"]["sha256"], "data": "folder", "images": images}
    out = folder / "eval_folder_torchscript"
    out.mkdir(exist_ok=True)
    (out / "report.json").write_text(json.dumps({**report, "top1": {"value": value}}), "utf-8")


@pytest.fixture
def simulated_time(monkeypatch):
    """Run the files, but let a call of the new one take three times as long as one of the old."""
    clock, opened = Clock(), gate._opened

    def open_file(file, manifest, threads):
        call = opened(file, manifest, threads)
        seconds = 3e-3 if "new" in str(file) else 1e-3
        return lambda: (call(), clock.taking([seconds])())

    compare = functools.partial(gate.compare_until_clear, clock=clock)
    monkeypatch.setattr(gate, "_opened", open_file)
    monkeypatch.setattr(gate, "compare_until_clear", compare)


@pytest.mark.usefixtures("simulated_time")
def test_the_commands_of_the_page(exported, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("old", "new"):
        (tmp_path / name).symlink_to(exported / name)
        evaluated(exported / name, 0.75)
    commands = [line for line in PAGE.splitlines() if line.startswith("zoo gate ")]
    assert len(commands) == 2
    for command, name in zip(commands, ("old", "new"), strict=True):
        words = shlex.split(command)[1:]
        words[2] = name
        code = main(words)
        printed = capsys.readouterr().out
        if name == "old":
            assert code == 0
            assert "saved baseline.json: old/model.pt, " in printed
            assert printed.endswith("top1 75.00 %\n")
        else:
            assert code == 3
            assert "### zoo gate: failed" in printed
            assert "| top1, % | 75.00 | 75.00 | +0.00 | −0.3 | ok |" in printed
    assert main(["gate", "baseline.json", "old"]) == 0
    assert "### zoo gate: passed" in capsys.readouterr().out


def baseline_of(exported, tmp_path, **changes):
    artefact, _, checksum = baselines.read_artefact(exported / "old")
    saved = baselines.Baseline(
        baselines.relative(artefact, tmp_path / "b.json"), checksum, 1, 1.0, 0.9, 1.1,
        Score("top1", 75.0, "folder", 500), {}, {}, "2026-01-01T00:00:00+00:00",
    )  # fmt: skip
    saved = baselines.Baseline(**{**saved.__dict__, **changes})
    baselines.save(tmp_path / "b.json", saved)
    return saved


def test_a_baseline_is_read_as_it_was_written(exported, tmp_path):
    saved = baseline_of(exported, tmp_path)
    assert baselines.load(tmp_path / "b.json") == saved
    assert (tmp_path / saved.artefact).is_file()


@pytest.mark.parametrize(
    ("changes", "images", "message"),
    [
        ({"score": None}, 500, "b.json has no score; run `zoo eval artefact="),
        ({}, None, "was not evaluated; run `zoo eval artefact="),
        ({}, 400, "not comparable: top1 of 500 images of folder, and top1 of 400 images of"),
        ({"sha256": "0" * 64}, 500, "is not the file that"),
        ({"artefact": "gone.onnx"}, 500, "gone.onnx' does not exist"),
    ],
)
def test_scores_and_files_that_cannot_be_compared(exported, tmp_path, changes, images, message):
    baseline_of(exported, tmp_path, **changes)
    evaluated(exported / "new", 0.75, images or 500)
    if images is None:
        (exported / "new/eval_folder_torchscript/report.json").write_text("{")
    with pytest.raises(BadInput) as error:
        gate.gate(tmp_path / "b.json", exported / "new", drop=0.3)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("kind"), "kind is not 'zoo gate 1'"),
        (lambda c: c.update(threads="1"), "threads is missing or of the wrong type"),
        (lambda c: c.update(p50_ms=-1), "threads and latencies must be above 0"),
        (lambda c: c["score"].update(name="f1"), "score.name is none of top1, mean_iou, psnr"),
        (lambda c: c["score"].update(value="75"), "score.value is not a number"),
        (lambda c: c["score"].pop("images"), "score.data or score.images is missing"),
    ],
)
def test_a_file_that_is_no_baseline(exported, tmp_path, change, message):
    baseline_of(exported, tmp_path)
    content = json.loads((tmp_path / "b.json").read_text("utf-8"))
    change(content)
    (tmp_path / "b.json").write_text(json.dumps(content), "utf-8")
    with pytest.raises(BadInput) as error:
        baselines.load(tmp_path / "b.json")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["none.json", "x"],
            "none.json does not exist; `zoo gate none.json <exported file> --save`",
        ),
        (["b.json", "x", "--slower", "fast"], "--slower='fast' is not a percentage such as 3%"),
        (["b.json", "x", "--slower", "101%"], "--slower='101%' is not a percentage such as 3%"),
        (["b.json", "x", "--drop", "nan"], "--drop='nan' is not a number of points such as 0.3"),
        (["b.json", "x", "--threads", "2"], "--threads has no effect without --save"),
        (["b.json", "x", "--save", "--threads", "0"], "--threads='0' is not a positive whole"),
    ],
)
def test_mistakes_are_one_line(words, message, capsys):
    assert main(["gate", *words]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize(("text", "value"), [("3%", 0.03), ("3", 0.03), ("2.5 %", 0.025), ("0", 0)])
def test_percentages(text, value):
    assert gate.share("--slower", text) == value
