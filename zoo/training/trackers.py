"""Where the metrics of a run go besides `metrics.csv`: TensorBoard, Weights & Biases, MLflow.

All of them get the same quantities under the same names, each once: the values of updates, the mean
loss of an epoch as `train/epoch_loss`, and the metrics of a validation.
"""

import importlib.util
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from lightning.fabric.loggers import TensorBoardLogger

from zoo.errors import MissingExtra

PACKAGES = {"wandb": "wandb", "mlflow": "mlflow"}  # by the value of train.loggers
MLFLOW_RUN = "mlflow_run.txt"  # in the run folder: the run that a resumed run continues
PROJECT = "zoo"
_MLFLOW_NAME = re.compile(r"[^\w\-./ ]")
_LONGEST = 500  # characters of a parameter of MLflow
_OF_UPDATES = ("lr", "images_per_s")  # logged with each update already


class Tracker(Protocol):
    """Receives what a run measures."""

    def log(self, values: Mapping[str, float], update: int) -> None:
        """Log values after an update."""
        ...

    def picture(self, name: str, path: Path, update: int) -> None:
        """Log a picture."""
        ...

    def close(self) -> None:
        """Write what is buffered."""
        ...


def of_epoch(values: Mapping[str, float]) -> dict[str, float]:
    """Return the values of an epoch that updates do not log, under their names in trackers."""
    names = {"train/loss": "train/epoch_loss"}
    return {names.get(key, key): v for key, v in values.items() if key not in _OF_UPDATES}


def check_installed(logger: str) -> None:
    """Raise `MissingExtra` unless the package of a logger is installed."""
    package = PACKAGES.get(logger)
    if package is None or package in sys.modules or importlib.util.find_spec(package):
        return
    raise MissingExtra(
        f"train.loggers: {logger} needs the package {package}; install it with pip install"
        " 'zoo-vision[trackers]', or leave it out"
    )


def flattened(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings with dotted keys; those that are not set are left out."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= flattened(value, f"{prefix}{key}.")
        elif value is not None and value != []:
            plain = isinstance(value, bool | int | float | str)
            found[prefix + key] = value if plain else str(value)
    return found


class TensorBoard:
    """Event files in the folder `tensorboard` of the run.

    Args:
        folder: The run folder.
        settings: The settings of the run.
        update: Number of completed updates; later entries are dropped.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], update: int) -> None:
        self._logger = TensorBoardLogger(
            folder, "tensorboard", version="", purge_step=update + 1 if update else None
        )
        if settings and not update:
            from torch.utils.tensorboard.summary import hparams

            writer: Any = self._logger.experiment.file_writer
            for summary in hparams(flattened(settings), {}):
                writer.add_summary(summary)

    def log(self, values: Mapping[str, float], update: int) -> None:
        self._logger.log_metrics(dict(values), update)

    def picture(self, name: str, path: Path, update: int) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        self._logger.experiment.add_image(name, pixels, update, dataformats="HWC")

    def close(self) -> None:
        self._logger.finalize("finished")


class WeightsAndBiases:
    """A run of Weights & Biases with the name of the run folder; resuming continues it.

    Its own variables decide where it goes, such as `WANDB_MODE=offline` and `WANDB_PROJECT`.

    Args:
        folder: The run folder.
        settings: The settings of the run.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        import os

        import wandb  # pyright: ignore[reportMissingImports]

        self._wandb = wandb
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=folder.name,
            id=folder.name,
            resume="allow",
            dir=str(folder),
            config=flattened(settings),
        )

    def log(self, values: Mapping[str, float], update: int) -> None:
        self._run.log(dict(values), step=update)

    def picture(self, name: str, path: Path, update: int) -> None:
        self._run.log({name: self._wandb.Image(str(path))}, step=update)

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """A run of MLflow with the name of the run folder; resuming continues it.

    Its own variables decide where it goes, such as `MLFLOW_TRACKING_URI`.

    Args:
        folder: The run folder.
        settings: The settings of the run.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        import mlflow  # pyright: ignore[reportMissingImports]

        self._mlflow = mlflow
        file = folder / MLFLOW_RUN
        if file.exists():
            mlflow.start_run(run_id=file.read_text(encoding="utf-8").strip())
            return
        run = mlflow.start_run(run_name=folder.name)
        file.write_text(run.info.run_id + "\n", encoding="utf-8")
        mlflow.log_params({k: str(v)[:_LONGEST] for k, v in flattened(settings).items()})

    def log(self, values: Mapping[str, float], update: int) -> None:
        named = {_MLFLOW_NAME.sub("_", name): float(value) for name, value in values.items()}
        self._mlflow.log_metrics(named, step=update)

    def picture(self, name: str, path: Path, update: int) -> None:
        self._mlflow.log_artifact(str(path))

    def close(self) -> None:
        self._mlflow.end_run()


def create(logger: str, folder: Path, settings: Mapping[str, Any], update: int) -> Tracker | None:
    """Return the tracker of a value of `train.loggers`; None for values that are files only.

    Args:
        logger: The value.
        folder: The run folder.
        settings: The settings of the run.
        update: Number of completed updates.
    """
    if logger == "tensorboard":
        return TensorBoard(folder, settings, update)
    if logger == "wandb":
        return WeightsAndBiases(folder, settings)
    return MLflow(folder, settings) if logger == "mlflow" else None
