"""Optimizer and learning-rate schedule, built with timm's factories."""

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
from zoo.training.checks import check_choice

_WITH_FUSED_KERNEL = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
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
    """Return the learning rate for updates of `images` images.

    Args:
        train: Settings with `lr`, `lr_base_batch` and `lr_scale`.
        images: Batch size x accumulated batches x processes.
    """
    ratio = images / train.lr_base_batch
    return train.lr * {"linear": ratio, "sqrt": math.sqrt(ratio), "none": 1.0}[train.lr_scale]


def create_optimizer(model: nn.Module, train: TrainConfig, lr: float) -> Optimizer:
    """Build the optimizer `train.optimizer` for all parameters that are not frozen.

    Raises:
        BadInput: The optimizer is unknown, does not take an argument, or needs a package that is
            not installed.
    """
    name, kwargs = train.optimizer, dict(train.optimizer_args)
    base_name = name.lower().removeprefix("lookahead_")
    check_choice("train.optimizer", base_name, map(str, list_optimizers()))
    if "momentum" in kwargs and not get_optimizer_info(base_name).has_momentum:
        raise BadInput(
            f"train.optimizer_args.momentum has no effect with train.optimizer={name}; leave it out"
        )
    for key in ("betas", "eps"):  # optimizers require tuples, YAML has only lists
        if isinstance(kwargs.get(key), list):
            kwargs[key] = tuple(kwargs[key])
    # The fused kernel is 3 times faster on a CPU, but prevents gradient clipping with fp16.
    if (
        base_name == name
        and get_optimizer_class(base_name, bind_defaults=False) in _WITH_FUSED_KERNEL
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
    except Exception as error:  # optimizers raise errors of any kind
        raise BadInput(
            f"train.optimizer={name} cannot be built: {first_line(error)}; check"
            " train.optimizer_args"
        ) from error


def create_scheduler(optimizer: Optimizer, train: TrainConfig, updates_per_epoch: int) -> Any:
    """Build the schedule `train.scheduler`, which advances with each update; None for `"none"`.

    Raises:
        BadInput: The schedule is unknown, or does not take an argument.
    """
    if train.scheduler == "plateau":
        raise BadInput(
            "train.scheduler=plateau is not supported, because it cannot be resumed exactly;"
            f" choose one of {', '.join(SCHEDULERS)}"
        )
    check_choice("train.scheduler", train.scheduler, SCHEDULERS)
    try:
        scheduler, _ = create_scheduler_v2(
            optimizer,
            train.scheduler,
            num_epochs=train.epochs,
            min_lr=train.min_lr,
            warmup_lr=train.warmup_lr,
            warmup_epochs=train.warmup_epochs,  # type: ignore[arg-type]  # fractions work
            step_on_epochs=False,
            updates_per_epoch=updates_per_epoch,
            **dict(train.scheduler_args),
        )
    except (TypeError, ValueError, AssertionError) as error:
        raise BadInput(
            f"train.scheduler={train.scheduler} does not accept train.scheduler_args:"
            f" {first_line(error)}"
        ) from error
    if scheduler is None and train.scheduler != "none":
        raise BadInput(f"train.scheduler={train.scheduler} needs a newer timm; upgrade it")
    return scheduler
