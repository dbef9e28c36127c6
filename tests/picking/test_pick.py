"""`zoo pick` from end to end on a simulated machine, and once on this one; the linear probe."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from fakes import LIMITS, FakeTimer
from PIL import Image

import zoo
from zoo.cli import execute as main
from zoo.command_line import composition
from zoo.errors import BadInput
from zoo.picking import pick as module
from zoo.picking import probe, record, show
from zoo.picking.pick import pick
from zoo.picking.timer import MachineTimer
from zoo.reports.records import load
from zoo.settings import PickConfig

PAGE = (Path(__file__).parents[2] / "docs" / "choosing.md").read_text("utf-8")
COMMANDS = [line for line in PAGE.splitlines() if line.startswith("zoo pick ")]
SMALL = ["mobilenetv2_*", "timm/mobilenetv4_conv_small*", "timm/lcnet_*"]


def simulated(folder, timer=None, **changes):
    """Pick on a simulated machine."""
    given = {"ms": 12.0, "runtime": ["onnxruntime"], "out": str(folder), **changes}
    return pick(PickConfig(**given), timer=timer or FakeTimer(0), roofline=LIMITS)


@pytest.fixture
def simulated_machine(monkeypatch):
    """Let the command and the function use a simulated machine."""
    timer = FakeTimer(0)
    monkeypatch.setattr(module, "MachineTimer", lambda threads: timer)
    monkeypatch.setattr(module, "limits", lambda threads: LIMITS)
    return timer


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twelve photographs of two classes that differ in colour."""
    root = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for name, colour in (("blue", (40, 60, 200)), ("red", (200, 60, 40))):
        (root / name).mkdir()
        for number in range(6):
            pixels = np.clip(generator.normal(colour, 40, (40, 50, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def test_the_result_is_printed_written_and_can_be_read(tmp_path, capsys):
    content = simulated(tmp_path / "out")
    printed = capsys.readouterr().out
    winner = content["winner"]
    assert winner["p50_ms"] <= 12
    assert f"pick: {winner['model']} at {winner['input_size'][-1]} pixels" in printed
    assert "random weights" in printed
    for line in content["commands"]:
        assert line in printed
    assert record.read(tmp_path / "out") == json.loads(json.dumps(content))
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {"results.jsonl", "results.csv", "pick.json", "front.svg", "front.png"}
    rows = load(tmp_path / "out")
    assert rows == content["measured"]
    assert main(["report", str(tmp_path / "out")]) == 0


def test_the_commands_are_ones_that_the_command_line_takes(tmp_path):
    content = simulated(tmp_path / "out", models=["timm/mobilenetv4_conv_small*"], size=[256])
    train, export = content["commands"]
    assert train.startswith("zoo train model=timm/mobilenetv4_conv_small")
    settings = composition.compose("train", train.split()[2:])
    assert (settings.model.pretrained, settings.data.image_size) == (True, 256)
    assert export == "zoo export weights=runs/<run> format=onnx"


def test_an_interrupted_search_goes_on(tmp_path, capsys):
    whole = simulated(tmp_path / "whole")

    class Interrupted(FakeTimer):
        def open(self, candidate):
            if len(self.opened) == 3:
                raise KeyboardInterrupt
            return super().open(candidate)

    with pytest.raises(SystemExit):
        simulated(tmp_path / "out", Interrupted(0))
    assert "3 measurements are in" in capsys.readouterr().err
    timer = FakeTimer(0)
    content = simulated(tmp_path / "out", timer)
    assert content["winner"]["model"] == whole["winner"]["model"]
    assert len(timer.opened) == len(content["measured"]) - 3
    again = FakeTimer(0)
    assert simulated(tmp_path / "out", again)["winner"] == content["winner"] | {
        "date": again_date(tmp_path)
    }
    assert again.opened == []


def again_date(folder):
    return record.read(folder / "out")["winner"]["date"]


def test_nothing_fits(tmp_path, capsys):
    with pytest.raises(BadInput, match=r"--ms 20: no candidate meets it; the fastest of \d+ meas"):
        simulated(tmp_path / "a", ms=20.0, models=["efficientformer_l1"])
    assert record.read(tmp_path / "a")["winner"] is None
    with pytest.raises(BadInput, match=r"--ms 0.01: no candidate can meet it; the fastest is pred"):
        simulated(tmp_path / "b", ms=0.01)


def test_a_broken_candidate_is_named(tmp_path, capsys):
    best = simulated(tmp_path / "a")["winner"]["model"]
    content = simulated(tmp_path / "b", FakeTimer(0, broken=(best,)))
    assert f"not measured: {best} at" in capsys.readouterr().out
    assert list(content["failed"].values()) == ["it cannot be built"]
    assert content["winner"]["model"] != best


def test_the_command_and_the_function_do_the_same(tmp_path, simulated_machine, capsys):
    words = ["--ms", "12", "--top1", "65", "--runtime", "onnxruntime", "--size", "224", "256"]
    words += ["--licence", "apache*", "--models", *SMALL]
    assert main(["pick", *words, "--out", str(tmp_path / "a")]) == 0
    found = zoo.pick(
        12, top1=65, runtime="onnxruntime", size=(224, 256), licence="apache*", models=SMALL,
        out=tmp_path / "b",
    )  # fmt: skip
    written = record.read(tmp_path / "a")
    assert written["asked"] == found["asked"]
    assert written["winner"]["model"] == found["winner"]["model"]
    assert main(["pick", "--help"]) == 0
    assert "--licence" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_page_run(command, tmp_path, photos, simulated_machine, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").symlink_to(photos)
    monkeypatch.setattr(probe, "features", lambda one, source, chosen: np.eye(len(chosen)))
    monkeypatch.setattr(show, "draw", lambda content, folder: None)
    words = shlex.split(command)[1:]
    words[words.index("--ms") + 1] = "25"  # the simulated machine is slow
    assert main(words) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ms", "fast"], "--ms='fast' is not a number such as 10"),
        (["--ms", "-1"], "--ms=-1.0 must be a number above 0"),
        (["--ms", "nan"], "--ms=nan must be a number above 0"),
        (["--ms", "5", "--top1", "120"], "--top1=120.0 must be a percentage below 100"),
        (["--ms", "5", "--threads", "0"], "--threads=0 must be a positive integer"),
        (["--ms", "5", "--threads", "99999"], "--threads=99999 is too many; use at most"),
        (["--ms", "5", "--size", "big"], "--size='big' is not a whole number"),
        (["--ms", "5", "--size", "0"], "--size=0 must be a positive number of pixels"),
        (["--ms", "5", "--data", "nowhere"], "--data nowhere: there is no such folder"),
        ([], "the following arguments are required: --ms; see zoo pick --help"),
    ],
)
def test_mistakes_are_one_line(words, message, capsys):
    assert main(["pick", *words]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_file_that_is_no_result(tmp_path):
    content = json.loads(json.dumps(simulated(tmp_path / "out")))
    good = record.find_pick_fault(content)
    assert good == ""
    changes = [
        (lambda c: c.pop("kind"), "kind is not"),
        (lambda c: c.pop("machine"), "machine is missing"),
        (lambda c: c["asked"].update(ms=-1), "asked.ms is not a number above 0"),
        (lambda c: c["measured"][0].update(p50_ms=-1), "measured[0]: p50_ms=-1 is negative"),
        (lambda c: c["measured"][0].pop("predicted_ms"), "measured[0]: a field of `zoo pick`"),
        (lambda c: c["finalists"][0].pop("top1"), "finalists[0]: top1 is not a number"),
        (lambda c: c.update(winner=None), "winner is not the first of the finalists"),
    ]
    for change, message in changes:
        spoilt = json.loads(json.dumps(content))
        change(spoilt)
        assert message in record.find_pick_fault(spoilt)
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(BadInput, match="cannot be read"):
        record.read(tmp_path / "bad.json")


def test_finalists_are_ranked_on_the_users_images(tmp_path, photos, monkeypatch, capsys):
    """The published order of accuracy is not the one on these images."""
    worst = []

    def features(candidate, source, indices):
        labels = np.asarray(source.labels)[indices]
        worst.append(candidate.model)
        if len(worst) == 2:
            raise BadInput("no network")
        noise = np.random.default_rng(0).normal(size=(len(labels), 4))
        return noise + 9 * labels[:, None] * (len(worst) == 3)

    monkeypatch.setattr(probe, "features", features)
    content = simulated(tmp_path / "out", data=str(photos))
    first, second, third = content["finalists"]
    assert [first["model"], second["model"], third["model"]] == [worst[2], worst[0], worst[1]]
    assert first["probe"]["accuracy"] == 100
    assert (first["probe"]["images"], first["probe"]["folds"]) == (12, 5)
    assert second["probe"]["accuracy"] < 90
    assert third["probe_error"] == "no network"
    printed = capsys.readouterr().out
    assert f"not ranked on the images: {worst[1]}: no network" in printed
    assert f"data.root={photos}" in printed


def test_features_are_those_of_the_prepared_images(photos):
    (candidate,) = [c for c in module.candidates(PickConfig(1.0, runtime=["eager"]))
                    if c.model == "mobilenetv2_050"]  # fmt: skip
    source = probe.open_images(str(photos))
    assert len(source) == 12
    values = probe.features_of(
        zoo.create_model("mobilenetv2_050", num_classes=0).eval(), candidate, source, [0, 7]
    )
    assert values.shape == (2, 1280)
    assert np.isfinite(values).all()
    assert not np.array_equal(values[0], values[1])


def test_a_large_data_set_is_sampled_evenly():
    class Many:
        labels = [0] * 900 + [1] * 90 + [2] * 10
        num_classes = 3

        def __len__(self):
            return 1000

    chosen = probe.chosen_images(Many(), most=60)
    assert np.bincount(np.asarray(Many.labels)[chosen]).tolist() == [25, 25, 10]
    assert chosen == sorted(set(chosen))
    assert len(probe.chosen_images(Many(), most=5000)) == 1000


@pytest.mark.parametrize("classes", [1, 2])
def test_images_that_cannot_be_ranked_on(tmp_path, classes):
    for number in range(classes):
        (tmp_path / str(number)).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / str(number) / "a.png")
    with pytest.raises(BadInput, match="at least two classes of two images each"):
        probe.open_images(str(tmp_path))


@pytest.mark.parametrize(("runtime", "int8"), [("eager", False), ("onnxruntime", True)])
def test_this_machine_times_a_small_model(runtime, int8):
    settings = PickConfig(100.0, runtime=[runtime], int8=int8, models=["timm/lcnet_050"])
    candidate = next(c for c in module.candidates(settings) if c.int8 == int8)
    with MachineTimer(1).open(candidate) as calls:
        times = calls(4)
    assert times.shape == (4,)
    assert (times > 0).all()
