"""Checkpoints of training runs: their content, and how they are read and written.

A checkpoint has only tensors, dictionaries, lists, strings and numbers, so
`torch.load(weights_only=True)` reads it. `state_dict` and `state_dict_ema` are timm's names.

    format             "zoo.checkpoint/1"
    state_dict         the weights, with the names of the model's parameters
    state_dict_ema     the averaged weights if `train.ema_decay` is set; these are evaluated
    model              arguments of `zoo.create_model` that build the model
    data               class_names, num_classes, and the preprocessing of evaluation
    config             the resolved settings of the run
    versions           versions of the packages
    metrics            metrics of the latest validation
    progress           epoch, batch, update, world_size, best: where the run continues
    optimizer, scaler  state of the optimizer and of the gradient scaler
    loss               state of the loss, if it has any
"""

import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FORMAT = "zoo.checkpoint/1"


def save(content: dict[str, Any], path: Path) -> None:
    """Write `content` to `path` atomically: a crash leaves the previous file intact."""
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
    """Make `target` a hard link to `source`, or a copy where the disk has no hard links."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".copy") as folder:
        temporary = os.path.join(folder, target.name)
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        os.replace(temporary, target)


def is_zoo_checkpoint(content: dict[str, Any]) -> bool:
    """Return whether `content` was written by `save`."""
    return content.get("format") == FORMAT


def folder_of(checkpoint: Path) -> Path:
    """Return the run folder of `checkpoint`."""
    parent = checkpoint.resolve().parent
    return parent.parent if parent.name == "checkpoints" else parent


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Return whether the floating-point `tensors` have no NaN and no infinity."""
    return all(bool(t.isfinite().all()) for t in tensors if t.is_floating_point())


def _publish(temporary: str, path: Path) -> None:
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(temporary, 0o666 & ~mask)  # mkstemp gives access only to the owner
    os.replace(temporary, path)
