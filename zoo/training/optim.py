"""Optimizer and learning-rate schedule, both from timm's factories."""

import math
from typing import Any

import torch
from timm.optim import (
    create_optimizer_v2,
    get_optimizer_class,
    get_optimizer_info,
    list_optimizers,
)
from timm.scheduler import create_scheduler_v2
from torch import nn
from torch.optim import Optimizer

from zoo.errors import BadInput, first_line
from zoo.settings import TrainConfig
from zoo.training.checks import choose

_FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
SCHEDULERS = (
    "constant",
    "cosine",
    "multistep",
    "none",
    "poly",
    "rsqrt",
    "step",
    "tanh",
    "wsd",
)


def scaled_lr(train: TrainConfig, images: int) -> float:
    """Return the learning rate for `images` an update.

    Args:
        train: A `TrainConfig`.
        images: Batch size x accumulated batches x processes.
    """
    ratio = images / train.lr_base_batch
    return train.lr * {"linear": ratio, "sqrt": math.sqrt(ratio), "none": 1.0}[train.lr_scale]


def create_optimizer(model: nn.Module, train: TrainConfig, lr: float) -> Optimizer:
    """Build the optimizer that `train` names, over the parameters that are not frozen.

    Raises:
        BadInput: No such optimizer, an argument that it does not take, or it needs more than is
            installed.
    """
    name, kwargs = train.optimizer, dict(train.optimizer_args)
    plain = name.lower().removeprefix("lookahead_")
    choose("train.optimizer", plain, list_optimizers())
    if "momentum" in kwargs and not get_optimizer_info(plain).has_momentum:
        raise BadInput(f"train.optimizer_args.momentum has no effect on {name}")
    for key in ("betas", "eps"):  # what YAML gives as a list, optimizers want as a tuple
        if isinstance(kwargs.get(key), list):
            kwargs[key] = tuple(kwargs[key])
    # One kernel for all parameters, 3 times faster on a CPU; the scaler of fp16 cannot clip then.
    if (
        plain == name
        and get_optimizer_class(plain, bind_defaults=False) in _FUSED
        and train.precision != "fp16"
    ):
        kwargs.setdefault("fused", True)
    try:
        return create_optimizer_v2(
            model,
            opt=name,
            lr=lr,
            weight_decay=train.weight_decay,
            layer_decay=train.layer_decay,
            **kwargs,
        )
    except Exception as error:  # whatever the optimizer or what it is built on objects to
        raise BadInput(f"train.optimizer={name} cannot be built: {first_line(error)}") from error


def create_scheduler(optimizer: Optimizer, train: TrainConfig, updates_per_epoch: int) -> Any:
    """Build the schedule that `train` names, in units of updates; None for `"none"`.

    Raises:
        BadInput: No such schedule, or an argument that it does not take.
    """
    if train.scheduler == "plateau":
        raise BadInput("train.scheduler='plateau' is not offered: it cannot be resumed exactly")
    choose("train.scheduler", train.scheduler, SCHEDULERS)
    try:
        scheduler, _ = create_scheduler_v2(
            optimizer,
            train.scheduler,
            num_epochs=train.epochs,
            min_lr=train.min_lr,
            warmup_lr=train.warmup_lr,
            warmup_epochs=train.warmup_epochs,  # type: ignore[arg-type]  # a fraction works
            step_on_epochs=False,
            updates_per_epoch=updates_per_epoch,
            **dict(train.scheduler_args),
        )
    except (TypeError, ValueError, AssertionError) as error:
        raise BadInput(f"train.scheduler_args cannot work: {first_line(error)}") from error
    if scheduler is None and train.scheduler != "none":
        raise BadInput(f"train.scheduler={train.scheduler!r} needs a newer timm")
    return scheduler
