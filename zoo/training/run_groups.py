"""Read the runs of a folder that differ only in their seed, to compare them with other runs."""

import csv
import fnmatch
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from zoo.errors import BadInput, BadWeights, first_line, unknown_value

# The metric of each task, in the order in which it is looked for.
SCORES = ("top1", "mean_iou", "map", "psnr")

# Settings that do not change what is learnt: they may differ between all runs.
_FREE = frozenset(
    f"{group}.{key}"
    for group, keys in {
        "data": ("download", "num_workers", "cache"),
        "train": (
            "seed",
            "out",
            "sweep",
            "loggers",
            "log_every",
            "progress",
            "resume",
            "stop_at_epoch",
        ),
    }.items()
    for key in keys
)
# Settings that decide which images are validated: metrics of others cannot be compared.
_VALIDATED = frozenset(
    {
        *("data.name", "data.root", "data.val_split", "data.val_split_name", "data.split_file"),
        *(
            "data.folds",
            "data.fold",
            "data.val_images",
            "data.skip_corrupt",
            "data.num_classes",
            "data.class_names",
        ),
        *("data.target_key", "train.limit_val_batches"),
    }
)


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: Its folder.
        seed: Its `train.seed`.
        settings: All other settings that affect the result: `"train.lr"` -> value.
        metrics: The metrics of its last epoch: `"top1"` -> value.
        splits: Fingerprints of its images by split; None without a checkpoint.
    """

    folder: Path
    seed: int
    settings: Mapping[str, Any]
    metrics: Mapping[str, float]
    splits: Mapping[str, Any] | None


def read_group(folder: Path) -> list[Run]:
    """Return the runs of a folder in the order of their seeds.

    Args:
        folder: A run folder, or a folder of run folders.

    Raises:
        BadInput: There is no run, a run is not finished or cannot be read, two runs have the same
            seed, or they differ in another setting or in their images.
    """
    folders = run_folders(folder)
    if not folders:
        raise BadInput(f"{folder} has no runs; give the train.out of several runs")
    runs = sorted((_read(one) for one in folders), key=lambda run: run.seed)
    for one, other in zip(runs, runs[1:], strict=False):
        if one.seed == other.seed:
            raise BadInput(
                f"{one.folder} and {other.folder} have the same train.seed={one.seed}; move one of"
                " them away"
            )
    for other in runs[1:]:
        keys = differing(runs[0], other)
        if keys:
            raise BadInput(
                f"the runs in {folder} differ in more than train.seed:"
                f" {described(keys, runs[0], other, runs[0].folder.name, other.folder.name)}; keep"
                " runs of other settings in another folder"
            )
        _check_images(runs[0], other, ("train", "val"))
    return runs


def run_folders(folder: Path) -> list[Path]:
    """Return `folder` if it is a run folder, otherwise the run folders in it; none for no path."""
    try:
        if (folder / "config.yaml").is_file():
            return [folder]
        return sorted(file.parent for file in folder.glob("*/config.yaml"))
    except (OSError, ValueError):  # a name that is too long, or with a null byte
        return []


def differing(one: Run, other: Run) -> list[str]:
    """Return the names of the settings that differ."""
    keys = sorted({*one.settings, *other.settings})
    return [key for key in keys if one.settings.get(key) != other.settings.get(key)]


def described(keys: Sequence[str], one: Run, other: Run, first: str, second: str) -> str:
    """Return in words how the settings `keys` differ between two runs with these names."""
    return ", ".join(
        f"{key} ({_text(one.settings.get(key))} in {first},"
        f" {_text(other.settings.get(key))} in {second})"
        for key in keys
    )


def check_comparable(a: Run, b: Run, changed: Sequence[str]) -> list[str]:
    """Return the settings that are compared.

    Args:
        a: A run of one group.
        b: A run of the other group.
        changed: Names or globs of the settings that may differ.

    Raises:
        BadInput: Others differ, a name or glob has no setting that differs, or the images differ.
    """
    keys = differing(a, b)
    fixed = [key for key in keys if key in _VALIDATED]
    if fixed:
        raise BadInput(
            f"A and B are validated on other images: {described(fixed, a, b, 'A', 'B')}; train"
            " both on the same data"
        )
    for pattern in changed:
        if not fnmatch.filter(keys, pattern):
            known = [*a.settings, *b.settings]
            if not fnmatch.filter(known, pattern):
                raise BadInput(unknown_value("setting", pattern, dict.fromkeys(known)))
            raise BadInput(f"--change {pattern}: A and B do not differ in it; leave it out")
    others = [key for key in keys if not any(fnmatch.fnmatch(key, p) for p in changed)]
    if others:
        raise BadInput(
            f"A and B differ in {described(others, a, b, 'A', 'B')}; if that is what you compare,"
            f" add --change {' '.join(others)}"
        )
    chosen = ("data.train_images", "data.train_split_name")
    _check_images(a, b, ("val",) if any(key in keys for key in chosen) else ("train", "val"))
    return keys


def _check_images(one: Run, other: Run, splits: Sequence[str]) -> None:
    """Raise `BadInput` if the images of two runs differ, as far as both runs say what they are."""
    if one.splits is None or other.splits is None:
        return
    for split in splits:
        if one.splits.get(split) != other.splits.get(split):
            raise BadInput(
                f"{one.folder} and {other.folder} have other {split} images, although the settings"
                " are equal: the data has changed between them; train one of them again"
            )


def _read(folder: Path) -> Run:
    try:
        content = yaml.safe_load((folder / "config.yaml").read_text("utf-8"))
        settings = {
            f"{group}.{key}": value
            for group, values in content.items()
            for key, value in values.items()
        }
        seed = settings["train.seed"]
        if type(seed) is not int:
            raise ValueError("train.seed is no whole number")
    except (OSError, ValueError, KeyError, AttributeError, yaml.YAMLError) as error:
        raise BadInput(
            f"{folder}/config.yaml is not the configuration of a run ({first_line(error)}); move"
            " the folder away"
        ) from error
    rows = _rows(folder)
    _check_finished(folder, settings, rows)
    last = rows[-1]
    metrics = {key.removeprefix("val/"): v for key, v in last.items() if key.startswith("val/")}
    kept = {key: value for key, value in settings.items() if key not in _FREE}
    return Run(folder, seed, kept, metrics, _splits(folder))


def _rows(folder: Path) -> list[dict[str, float]]:
    """Return the rows of `metrics.csv`, at least one; without empty cells."""
    path = folder / "metrics.csv"
    if not path.is_file():
        raise BadInput(
            f"{folder} has no metrics.csv: the run ended before its first epoch, or train.loggers"
            " has no csv; repeat it, or move the folder away"
        )
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [
                {key: float(value) for key, value in row.items() if value}
                for row in csv.DictReader(file, strict=True)
            ]
        if not rows or any("epoch" not in row for row in rows):
            raise ValueError("it has no epochs")
    except (OSError, ValueError, TypeError, AttributeError, csv.Error) as error:
        raise BadInput(f"{path} is not the table of a run ({first_line(error)})") from error
    return rows


def _check_finished(
    folder: Path, settings: Mapping[str, Any], rows: Sequence[Mapping[str, float]]
) -> None:
    """Raise `BadInput` if a run has epochs left: neither all are done nor its patience is over."""
    done, total = int(rows[-1]["epoch"]), settings.get("train.epochs")
    patience = settings.get("train.patience")
    if done == total or (patience is not None and done - _best_epoch(settings, rows) >= patience):
        return
    raise BadInput(
        f"{folder} has {done} of {total} epochs; finish it with zoo train train.resume={folder}"
    )


def _best_epoch(settings: Mapping[str, Any], rows: Sequence[Mapping[str, float]]) -> int:
    """Return the epoch that `best.ckpt` is from, the first of the best; 0 if none has a score."""
    name = settings.get("train.best") or default_metric(
        [key.removeprefix("val/") for key in rows[-1]]
    )
    sign = -1 if name == "loss" else 1
    scores = [(sign * row.get(f"val/{name}", math.nan), -int(row["epoch"])) for row in rows]
    return -max((pair for pair in scores if not math.isnan(pair[0])), default=(0.0, 0))[1]


def default_metric(names: Sequence[str]) -> str | None:
    """Return the score of the task that has these metrics; None if there is none."""
    return next((name for name in SCORES if name in names), None)


def _splits(folder: Path) -> Mapping[str, Any] | None:
    """Return the fingerprints that the last checkpoint has; None without it or without them."""
    from zoo import tensor_files  # imports PyTorch

    path = folder / "checkpoints" / "last.ckpt"
    if not path.is_file():
        return None
    try:
        found = tensor_files.read(path)["data"].get("splits")
    except (BadWeights, KeyError, AttributeError) as error:
        raise BadInput(f"{path} is not the checkpoint of a run; move it away") from error
    return found if isinstance(found, Mapping) else None


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict | list) else str(value)
