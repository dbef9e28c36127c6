"""Hydra's multirun with other launchers and sweepers: what they get of a run is its score."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra._internal.hydra import Hydra

from zoo.cli import execute
from zoo.commands import train
from zoo.training.run_folder import TrainedRun

SMALL = (
    *("model=simplenet_cifar_310k", "data.image_size=16", "data.num_workers=0"),
    *("train.batch_size=8", "train.limit_train_batches=1", "train.limit_val_batches=1"),
    *("train.epochs=1", "train.warmup_epochs=0", "train.loggers=[csv]", "train.progress=false"),
)


def need(plugin: str) -> Any:
    package = f"hydra_plugins.{plugin}"
    missing = importlib.util.find_spec("hydra_plugins") is None or not importlib.util.find_spec(
        package
    )
    return pytest.mark.skipif(missing, reason="pip install 'zoo-vision[sweep]'")


@pytest.fixture
def rates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replace training by a score that is highest for a learning rate of 0.01."""
    found: list[float] = []

    def run(settings: Any, explicit: Any) -> TrainedRun:
        found.append(settings.train.lr)
        return TrainedRun(tmp_path, -abs(settings.train.lr - 0.01))

    monkeypatch.setattr(train, "run", run)
    monkeypatch.chdir(tmp_path)
    return found


def test_a_launcher_gets_the_score(rates: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    multirun, scores = Hydra.multirun, []

    def noted(self: Hydra, *args: Any, **kwargs: Any) -> Any:
        batches = multirun(self, *args, **kwargs)
        scores.extend(job.return_value for batch in batches for job in batch)
        return batches

    monkeypatch.setattr(Hydra, "multirun", noted)
    assert execute(["train", "-m", "train.lr=0.01,0.03"]) == 0
    assert scores == [0.0, pytest.approx(-0.02)]


@need("hydra_joblib_launcher")
def test_joblib(rates: list[float]) -> None:
    words = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=1", "train.lr=0.01,0.03"]
    assert execute(["train", "-m", *words]) == 0
    assert rates == [0.01, 0.03]


@need("hydra_optuna_sweeper")
@pytest.mark.filterwarnings("ignore")  # of the packages
def test_optuna_maximises_the_score(rates: list[float], tmp_path: Path) -> None:
    words = ["hydra/sweeper=optuna", "hydra.sweeper.direction=maximize", "hydra.sweeper.n_trials=6"]
    words += ["hydra.sweeper.n_jobs=1", "hydra.sweeper.sampler.seed=1"]
    assert execute(["train", "-m", *words, "train.lr=tag(log,interval(1e-3,1e-1))"]) == 0
    assert len(set(rates)) == 6
    assert all(0.001 <= rate <= 0.1 for rate in rates)
    best = yaml.safe_load((tmp_path / "optimization_results.yaml").read_text())
    nearest = min(rates, key=lambda rate: abs(rate - 0.01))
    assert best["best_params"]["train.lr"] == pytest.approx(nearest)


@need("hydra_submitit_launcher")
@pytest.mark.slow
def test_submitit_trains_in_a_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5", *SMALL]
    assert execute(["train", "-m", *words, "train.seed=3"]) == 0
    assert len(list((tmp_path / "runs").glob("*/checkpoints/last.ckpt"))) == 1
