"""TensorBoard, Weights & Biases and MLflow get each quantity once; pictures of a run."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from zoo.command_line.composition import run as run_command
from zoo.errors import MissingExtra
from zoo.training import trackers

from .conftest import TINY, resume_run

ROW = {"train/loss": 2.0, "lr": 0.1, "images_per_s": 9.0, "val/top1": 0.5}
SETTINGS = {"model": {"name": "m", "kwargs": {}}, "train": {"lr": 0.1, "freeze": [], "best": None}}


class Recorder(ModuleType):
    """A stand-in for wandb and mlflow, which notes all calls."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((name, args, kwargs))
            if name == "start_run":
                return SimpleNamespace(info=SimpleNamespace(run_id="run-1"))
            return self if name == "init" else args[0] if args else None

        return call

    def of(self, name: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        return [(args, kwargs) for called, args, kwargs in self.calls if called == name]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (4, 4)).save(tmp_path / "batch.png")
    return tmp_path / "batch.png"


def logged(name: str, folder: Path, picture: Path) -> None:
    from zoo.training.logs import MetricsLog

    log = MetricsLog(folder, [name], 0, 0, SETTINGS)
    log.log_update(3, {"train/loss": 1.5, "train/lr": 0.1})
    log.log_epoch(1, 4, ROW)
    log.log_picture(picture, 4)
    log.log_picture(folder / "gone.png", 4)
    log.close()


def test_tensorboard_has_each_quantity_once(tmp_path: Path, picture: Path) -> None:
    logged("tensorboard", tmp_path, picture)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags: Any = events.Tags()
    assert set(tags["scalars"]) == {"train/loss", "train/lr", "train/epoch_loss", "val/top1"}
    assert [event.step for event in events.Scalars("val/top1")] == [4]
    assert tags["images"] == ["batch"]
    plugin = events.SummaryMetadata("_hparams_/session_start_info").plugin_data
    assert b"train.lr" in plugin.content
    assert b"freeze" not in plugin.content


def test_weights_and_biases(tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = Recorder("wandb")
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    logged("wandb", tmp_path, picture)
    ((_, started),) = wandb.of("init")
    assert (started["id"], started["name"], started["resume"]) == (
        *(tmp_path.name, tmp_path.name),
        "allow",
    )
    assert started["config"] == {"model.name": "m", "train.lr": 0.1}
    assert [(args[0], kwargs["step"]) for args, kwargs in wandb.of("log")] == [
        ({"train/loss": 1.5, "train/lr": 0.1}, 3),
        ({"train/epoch_loss": 2.0, "val/top1": 0.5}, 4),
        ({"batch": str(picture)}, 4),
    ]
    assert len(wandb.of("finish")) == 1


def test_mlflow_continues_its_run(
    tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = Recorder("mlflow")
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    for _ in range(2):
        logged("mlflow", tmp_path, picture)
    assert [kwargs for _, kwargs in mlflow.of("start_run")] == [
        {"run_name": tmp_path.name},
        {"run_id": "run-1"},
    ]
    assert mlflow.of("log_params") == [(({"model.name": "m", "train.lr": "0.1"},), {})]
    assert mlflow.of("log_artifact") == [((str(picture),), {})] * 2
    tracker = trackers.MLflow(tmp_path, {})
    tracker.log({"val/recall/hot dog: yes?": 1.0}, 5)
    assert mlflow.of("log_metrics")[-1] == (({"val/recall/hot dog_ yes_": 1.0},), {"step": 5})


def test_a_package_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(MissingExtra, match=r"wandb needs the package wandb; .*\[trackers\]"):
        trackers.check_installed("wandb")
    trackers.check_installed("csv")


def test_pictures_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = Recorder("wandb")
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    kept = [word for word in TINY if not word.startswith(("model=", "train.loggers"))]
    command = [*kept, "model=simplenet_cifar_310k", "train.loggers=[csv,pictures,wandb]"]
    command += ["train.epochs=2", "train.stop_at_epoch=1", f"train.out={tmp_path}"]
    folder = run_command("train", command)
    for name in ("batch.png", "curves.png"):
        with Image.open(folder / name) as drawn:
            assert min(drawn.size) > 300
            assert len(drawn.convert("L").getcolors() or []) > 20
    before = (folder / "curves.png").read_bytes()
    resume_run(folder)
    assert (folder / "curves.png").read_bytes() != before
    shown = [args[0] for args, _ in wandb.of("log") if set(args[0]) <= {"batch", "curves"}]
    assert [set(values) for values in shown] == [{"batch"}, {"curves"}, {"curves"}]
