"""The configuration of a run that goes on: the saved one, with the few changes that are sound."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from zoo.config import TrainRun
from zoo.errors import BadInput
from zoo.training.overrides import Flat, flat

# What may differ from the saved configuration without touching what was computed so far.
MAY_CHANGE = (
    "train.epochs",
    "train.stop_at_epoch",
    "train.limit_val_batches",
    "train.accelerator",
    "train.devices",
    "train.num_nodes",
    "train.loggers",
    "train.log_every",
    "train.progress",
    "data.root",
    "data.num_workers",
    "data.cache",
)


def continued(cfg: DictConfig, saved: dict[str, Any], asked: Flat, path: Path) -> DictConfig:
    """Return the configuration to continue the run of `path` with.

    Args:
        cfg: What was composed now.
        saved: The configuration in the checkpoint.
        asked: What the command line asked for.
        path: The checkpoint, for messages.

    Raises:
        BadInput: `asked` contradicts `saved` in a key that may not change, or `saved` has keys that
            this version does not know.
    """
    before = flat(saved)
    changes: Flat = {}
    for key, value in asked.items():
        if key == "train.resume" or before.get(key) == value:
            continue
        if key not in MAY_CHANGE:
            raise BadInput(
                f"{key}={value} conflicts with train.resume: the run of {path} has"
                f" {key}={before.get(key)}; leave it out or start a new run (what may change:"
                f" {', '.join(MAY_CHANGE)})"
            )
        changes[key] = value
    try:
        merged = OmegaConf.merge(OmegaConf.structured(TrainRun), saved)
        OmegaConf.update(merged, "train.stop_at_epoch", None)
        for key, value in {**changes, "train.resume": cfg.train.resume}.items():
            OmegaConf.update(merged, key, value, merge=False)
    except OmegaConfBaseException as error:
        first = str(error).splitlines()[0]
        raise BadInput(f"{path} was written by another version of this package: {first}") from error
    assert isinstance(merged, DictConfig)
    return merged


def check_place(progress: dict[str, Any], world_size: int, epochs: int, path: Path) -> None:
    """Raise `BadInput` unless the run can go on with `world_size` processes up to `epochs`."""
    if progress["world_size"] != world_size:
        raise BadInput(
            f"{path} was trained by {progress['world_size']} processes, now there are"
            f" {world_size}; other batches would be seen, so start as many as then"
        )
    if progress["epoch"] >= epochs:
        raise BadInput(
            f"the run of {path} has finished its {progress['epoch']} epochs;"
            f" give train.epochs=<more than {progress['epoch']}> to train on"
        )
