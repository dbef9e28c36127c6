"""`zoo prune` on a run, and everything that a pruned run is used for."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from macs_timer import MacsTimer

import zoo
from zoo.cli import execute
from zoo.command_line.composition import run as run_command
from zoo.commands import prune as prune_command
from zoo.commands import resolve
from zoo.errors import BadInput, BadWeights, ZooError
from zoo.narrowing import widths_of
from zoo.settings import ModelConfig, TrainConfig, TrainRun

NAME = "cct_2_3x2_32"
TRAINING = ("data=digits", "data.image_size=32", "train.batch_size=8", "train.loggers=[csv]")
SHORT = ("train.limit_train_batches=2", "train.limit_val_batches=1", "train.epochs=1")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("base")
    return run_command("train", [f"model={NAME}", *TRAINING, *SHORT, f"train.out={out}"])


@pytest.fixture(autouse=True)
def simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prune_command, "create_timer", lambda settings: MacsTimer())


def prune(weights: Path, *settings: str) -> Path:
    return run_command("prune", [f"weights={weights}", "prune.images=8", *settings])


@pytest.fixture(scope="module")
def pruned(base: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prune_command, "create_timer", lambda settings: MacsTimer())
        return prune(base, "prune.latency_ms=30", "prune.drop_blocks=false")


def content(folder: Path, which: str = "best") -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / f"{which}.ckpt", weights_only=True)


def test_the_checkpoint_states_the_widths(base: Path, pruned: Path) -> None:
    widths = content(pruned)["model"]["widths"]
    assert widths
    report = json.loads((pruned / "pruning.json").read_text())
    assert report["widths"] == widths
    assert report["comparison"]["b"]["p50"] <= 30 < report["comparison"]["a"]["p50"]
    model = zoo.create_model(NAME, num_classes=10, checkpoint_path=str(pruned)).eval()
    assert {name: widths_of(model)[name] for name in widths} == widths
    state = content(pruned)["state_dict"]
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert pruned.parent == base.parent


def test_eval_count_and_benchmark_take_it(pruned: Path, tmp_path: Path, capsys: Any) -> None:
    report = zoo.eval(weights=pruned, out=tmp_path)
    top1 = json.loads((pruned / "pruning.json").read_text())["metrics"]["after"]["val/top1"]
    assert report["top1"]["value"] == pytest.approx(top1)
    records = zoo.benchmark(
        model={"name": NAME, "num_classes": 10, "checkpoint_path": str(pruned)},
        image_sizes=[32], fused=False, min_runs=1, min_time=0.0, max_time=0.1,
        **{"profile.out": tmp_path / "records.jsonl"},
    )  # fmt: skip
    state = content(pruned)["state_dict"]
    params = sum(value.numel() for value in state.values())
    assert records[0]["params"] == params
    assert execute(["count", str(pruned)]) == 0
    assert f"{params:,}" in capsys.readouterr().out
    whole = zoo.create_model(NAME, num_classes=10)
    assert params < sum(p.numel() for p in whole.parameters())


def test_it_is_fine_tuned_resumed_and_pruned_again(pruned: Path, tmp_path: Path) -> None:
    widths = content(pruned)["model"]["widths"]
    start = [f"model={NAME}", f"model.checkpoint_path={pruned}", *TRAINING, *SHORT]
    tuned = run_command("train", [*start, f"train.out={tmp_path}"])
    assert content(tuned)["model"]["widths"] == widths
    again = run_command("train", [f"train.resume={tuned}", "train.epochs=2"])
    assert content(again, "last")["model"]["widths"] == widths
    narrower = prune(again, "prune.latency_ms=27", f"prune.out={tmp_path / 'second'}")
    joined = content(narrower)["model"]["widths"]
    model = zoo.create_model(NAME, num_classes=10, checkpoint_path=str(narrower))
    left = widths_of(model)
    assert all(left[name] == width for name, width in joined.items() if width)
    assert any(width < widths.get(name, 10**6) for name, width in joined.items())
    with pytest.raises(BadWeights, match="was written by zoo prune, so there is no run"):
        run_command("train", [f"train.resume={pruned}"])


@pytest.mark.slow
def test_it_is_exported_predicted_with_and_quantised(pruned: Path, tmp_path: Path) -> None:
    from PIL import Image

    (made,) = zoo.export(weights=pruned, format="onnx", path=tmp_path / "float")
    assert made.manifest["comparison"]["proven"]
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    (found,) = zoo.predict(made.path, tmp_path / "a.png", top=1)
    assert len(found["classes"]) == 1
    quantize = {"quantize.int8": True, "quantize.images": 8}
    (int8,) = zoo.export(weights=pruned, format="onnx", path=tmp_path / "int8", **quantize)
    assert int8.manifest["precision"] == "int8"


def test_training_for_int8_starts_with_its_widths(pruned: Path) -> None:
    explicit = {"train.qat": True, "model.checkpoint_path": str(pruned)}
    settings = TrainRun(ModelConfig(NAME, checkpoint_path=str(pruned)), train=TrainConfig(qat=True))
    found = resolve.training_start(settings, explicit).settings.model
    assert found.kwargs["widths"] == content(pruned)["model"]["widths"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([], "prune.latency_ms is not set"),
        (["prune.latency_ms=0"], "prune.latency_ms=0.* must be more than 0"),
        (["prune.latency_ms=-1"], "must be more than 0"),
        (["prune.latency_ms=5", "prune.score=l1"], "unknown prune.score 'l1'"),
        (["prune.latency_ms=5", "prune.allocation=best"], "unknown prune.allocation 'best'"),
        (["prune.latency_ms=5", "prune.threads=0"], "prune.threads=0 must be at least 1"),
        (["prune.latency_ms=5", "prune.images=0"], "prune.images=0 must be at least 1"),
        (["prune.latency_ms=5", "prune.score=norm"], "score=norm needs a batch norm"),
        (["prune.latency_ms=0.001"], "cannot be reached: .* or more, or a smaller model"),
        (["prune.latency_ms=1000"], "already; give a lower latency"),
        (["prune.latency_ms=5", "model=emo_1m"], "is a checkpoint of cct_2_3x2_32, not of emo_1m"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    settings: list[str], message: str, base: Path
) -> None:
    before = sorted(base.parent.iterdir())
    with pytest.raises(ZooError, match=message) as hit:
        prune(base, *settings)
    assert "\n" not in str(hit.value)
    assert sorted(base.parent.iterdir()) == before


def test_weights_that_are_no_run_are_refused(tmp_path: Path, base: Path) -> None:
    with pytest.raises(BadInput, match="weights is not set"):
        run_command("prune", ["prune.latency_ms=5"])
    torch.save(content(base)["state_dict"], tmp_path / "plain.pth")
    with pytest.raises(BadWeights, match=r"is not a checkpoint of zoo train; train the model"):
        prune(tmp_path / "plain.pth", "prune.latency_ms=5")


def test_an_unknown_runtime_is_refused_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with pytest.raises(BadInput, match="unknown runtime 'onnx'. Choices: .*openvino"):
        run_command("prune", ["weights=nowhere", "prune.latency_ms=5", "prune.runtime=onnx"])


def test_damaged_widths_are_one_line(pruned: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(pruned, tmp_path / "copy")
    file = folder / "checkpoints" / "best.ckpt"
    broken = {key: value for key, value in content(pruned).items() if key != "checksum"}
    for widths in ({"a.hidden": 3}, [1], {"stages.0.blocks.0.mlp.hidden": 10**6}):
        torch.save({**broken, "model": {**broken["model"], "widths": widths}}, file)
        with pytest.raises(ZooError, match="width") as hit:
            zoo.create_model(NAME, num_classes=10, checkpoint_path=str(folder))
        assert "\n" not in str(hit.value)
