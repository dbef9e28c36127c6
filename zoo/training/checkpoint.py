"""What a checkpoint of a run holds, and how it gets to disk whole or not at all.

Only tensors, dictionaries, lists, strings and numbers, so that `torch.load(weights_only=True)`
reads it; the names of the weights' branches are timm's:

    format          "zoo.checkpoint/1"
    state_dict      the weights, under the model's own names
    state_dict_ema  the averaged weights, if the run averages; these are the ones that are validated
    model           the arguments of `zoo.create_model` that build the model
    data            class_names, num_classes, preprocessing (of evaluation)
    config          the whole configuration of the run
    versions        of the packages
    metrics         of the latest validation
    progress        epoch, batch, update, world_size, best ... where to go on
    optimizer, scaler
    loss            what the loss remembers of earlier batches, if it does
"""

import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.errors import BadWeights
from zoo.weights import read_checkpoint, run_checkpoint

FORMAT = "zoo.checkpoint/1"


def save(content: dict[str, Any], path: Path) -> None:
    """Write `content` to `path`; whoever reads meanwhile, or after a crash, sees the old file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save({"format": FORMAT, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        _publish(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def duplicate(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`, at no cost where the disk has hard links."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".copy") as folder:
        temporary = os.path.join(folder, target.name)
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        os.replace(temporary, target)


def load(source: str | Path) -> tuple[dict[str, Any], Path]:
    """Read a run's checkpoint with everything in it.

    Args:
        source: A checkpoint, or a run folder: its last one.

    Returns:
        The content, and the path that it was read from.

    Raises:
        BadWeights: It cannot be read, or is not a checkpoint of a run.
    """
    path = Path(source).expanduser()
    path = run_checkpoint(path, "last") if path.is_dir() else path
    content = read_checkpoint(path)
    if not is_own(content):
        raise BadWeights(f"{path} is not a checkpoint of train.py, so there is no run to continue")
    return content, path


def is_own(content: dict[str, Any]) -> bool:
    """Say whether `content` was written by `save`."""
    return content.get("format") == FORMAT


def folder_of(checkpoint: Path) -> Path:
    """Return the run folder that `checkpoint` lies in."""
    parent = checkpoint.resolve().parent
    return parent.parent if parent.name == "checkpoints" else parent


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Say whether no element of the floating-point `tensors` is NaN or infinite."""
    return all(bool(t.isfinite().all()) for t in tensors if t.is_floating_point())


def _publish(temporary: str, path: Path) -> None:
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(temporary, 0o666 & ~mask)  # mkstemp lets only the owner read
    os.replace(temporary, path)
