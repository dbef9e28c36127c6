"""What a run remembers of its data: its classes, its images, and which of them were held out."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.data import fingerprint, holdout
from zoo.data.datamodule import ImageData
from zoo.data.listing import shortened
from zoo.errors import BadInput
from zoo.settings import DataConfig

log = logging.getLogger("zoo.data")


def describe(data: ImageData) -> dict[str, Any]:
    """Return the entry `data` of a checkpoint.

    Args:
        data: The data module, after `setup`.
    """
    return {
        "num_classes": data.num_classes,
        "class_names": data.class_names,
        "preprocessing": data.eval_preprocessing(),
        "splits": data.fingerprint(),
    }


def check_unchanged(saved: Mapping[str, Any], data: ImageData, path: Path) -> None:
    """Raise `BadInput` if the data of a run is not what it was when the run began.

    Args:
        saved: The content of the checkpoint to resume.
        data: The data module, after `setup`.
        path: The checkpoint, for the message.
    """
    before, now = saved["data"], describe(data)
    changes = _class_changes(before, now)
    if not changes and "splits" not in before and data.split_keys() is not None:
        changes = "an older version of this package held out other images for validation"
    if not changes:
        splits = before.get("splits", {})
        changes = fingerprint.differences(splits, now["splits"], data.class_names)
    if changes:
        raise BadInput(
            f"the data is not that of the run of {path}: {changes}; restore it, give the folder of"
            " the run's data as data.root, or start a new run"
        )


def _class_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return in words how the classes differ; empty if they do not."""
    old, new = before.get("class_names"), now["class_names"]
    if old and new and list(old) != list(new):
        gone = [name for name in old if name not in new]
        added = [name for name in new if name not in old]
        parts = [f"class {shortened(gone)} is missing"] if gone else []
        parts += [f"class {shortened(added)} is new"] if added else []
        return " and ".join(parts) or "the classes have another order"
    if before["num_classes"] != now["num_classes"]:
        return f"it has {now['num_classes']} classes instead of {before['num_classes']}"
    return ""


def saved_split(
    folder: Path, trained_on: Mapping[str, Any] | None, data: DataConfig
) -> dict[str, str] | None:
    """Return which images a run held out, if `data` still asks for that split; otherwise None.

    Args:
        folder: The run folder.
        trained_on: The group `data` of the run, if known.
        data: The group `data` to evaluate on.

    Raises:
        BadInput: The saved split is damaged.
    """
    ways = (data.val_split, data.split_file, data.folds)
    if all(way is None for way in ways) or trained_on is None:
        return None
    keys = ("name", "val_split", "split_file", "folds", "fold")
    if any(trained_on.get(key) != getattr(data, key) for key in keys):
        return None
    found = holdout.read(folder)
    if found is None:
        log.warning(
            "%s has no %s: images of other halves may be evaluated if the run is of an older"
            " version",
            folder,
            holdout.FILE,
        )
    return found
