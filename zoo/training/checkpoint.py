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
    method             state of the training method, if it has any
    adapters           kind, and file and hash of the base: `state_dict` has only what differs
    unmerged           tensors that only resuming needs, beside `state_dict`
    qat                what rebuilds the graph of quantisation-aware training
    checksum           of all other entries except config

`zoo.training.checkpoint_schema` checks these entries before they are used.
"""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.training.checkpoint_schema import CHECKSUM, FORMAT, checksum, is_run_checkpoint
from zoo.training.disk import atomic_file, disk_error


def save(content: dict[str, Any], path: Path) -> None:
    """Write `content` to `path` atomically: a crash leaves the previous file intact.

    Raises:
        OSError: The file cannot be written, for example because the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"format": FORMAT, **content}
    content[CHECKSUM] = checksum(content)
    with atomic_file(path) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # PyTorch hides that a write failed
            raise disk_error(error) or error from error


def duplicate(source: Path, target: Path) -> None:
    """Make `target` a hard link to `source`, or a copy where the disk has no hard links."""
    temporary = target.with_name(f".{target.name}.link")
    temporary.unlink(missing_ok=True)  # of a process that was killed
    try:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def is_zoo_checkpoint(content: dict[str, Any]) -> bool:
    """Return whether `content` is a checkpoint of `train.py`, which `check` then has to accept."""
    return is_run_checkpoint(content)


def folder_of(checkpoint: Path) -> Path:
    """Return the run folder of `checkpoint`."""
    parent = checkpoint.resolve().parent
    return parent.parent if parent.name == "checkpoints" else parent


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Return whether the floating-point `tensors` have no NaN and no infinity."""
    return all(bool(t.isfinite().all()) for t in tensors if t.is_floating_point())
