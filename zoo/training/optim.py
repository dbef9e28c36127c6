"""Optimizer and learning-rate schedule, built with timm's factories."""

import inspect
import math
from collections.abc import Collection
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

FUSED_OPTIMIZERS = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
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


REHEARSED = 200  # updates whose learning rates are computed before training
_CYCLES = ("cycle_mul", "cycle_decay", "cycle_limit")
_NOISE = ("noise", "noise_pct", "noise_std", "noise_seed")
_ALL = ("warmup_prefix", *_NOISE)
# Arguments of timm's `create_scheduler_v2` that each schedule uses; it ignores all others.
SCHEDULER_ARGS = {
    "constant": _NOISE,
    "cosine": (*_CYCLES, "k_decay", *_ALL),
    "multistep": ("decay_milestones", "decay_rate", *_ALL),
    "none": (),
    "poly": (*_CYCLES, "decay_rate", "k_decay", *_ALL),
    "rsqrt": ("decay_epochs", "decay_fn", "stable_timescale", *_ALL),
    "step": ("decay_epochs", "decay_rate", *_ALL),
    "tanh": (*_CYCLES, *_ALL),
    "wsd": ("decay_epochs", "decay_fn", *_ALL),
}


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
        and get_optimizer_class(base_name, bind_defaults=False) in FUSED_OPTIMIZERS
        and train.precision != "fp16"
    ):
        kwargs.setdefault("fused", True)
    try:
        optimizer = create_optimizer_v2(
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
    _check_layer_decay(optimizer, train)
    return optimizer


def _check_layer_decay(optimizer: Optimizer, train: TrainConfig) -> None:
    scales = {group.get("lr_scale", 1.0) for group in optimizer.param_groups}
    if train.layer_decay not in (None, 1.0) and scales == {1.0}:
        raise BadInput(
            f"train.layer_decay={train.layer_decay:g} has no effect: only the last layer is"
            " trained; leave it out, or freeze fewer modules"
        )


def classifier_names(model: nn.Module) -> set[str]:
    """Return the names of the parameters of the classifier, or of the last layer of a decoder."""
    get_classifier = getattr(model, "get_classifier", None)
    heads: Any = get_classifier() if get_classifier is not None else ()
    heads = heads if isinstance(heads, tuple | list) else (heads,)
    ids = {id(p) for head in heads if isinstance(head, nn.Module) for p in head.parameters()}
    return {name for name, parameter in model.named_parameters() if id(parameter) in ids}


def clipped_parameters(
    model: nn.Module, clip_mode: str, classifier: Collection[str]
) -> list[nn.Parameter]:
    """Return the parameters whose gradients are clipped.

    Adaptive clipping leaves the classifier out (NFNet, arXiv 2102.06171, section 4.1), as in timm.

    Args:
        model: The model.
        clip_mode: `train.clip_mode`.
        classifier: Names of the parameters of the classifier.
    """
    left_out = classifier if clip_mode == "agc" else ()
    return [parameter for name, parameter in model.named_parameters() if name not in left_out]


def _check_scheduler_args(train: TrainConfig) -> None:
    """Raise `BadInput` for an argument that the schedule ignores, or that would never end."""
    arguments = dict(train.scheduler_args)
    known = inspect.signature(create_scheduler_v2).parameters
    is_used = dict.fromkeys(SCHEDULER_ARGS[train.scheduler], True)
    if arguments.get("noise") is None:
        is_used |= dict.fromkeys(_NOISE, False)
    if arguments.get("cycle_limit", 1) == 1:
        is_used |= dict.fromkeys(_CYCLES, False)
    for name, value in arguments.items():
        if (name in known or train.scheduler == "none") and not is_used.get(name):
            requirement = "noise" if name in _NOISE else "cycle_limit" if name in _CYCLES else ""
            other = f" and without {requirement}" if requirement in is_used else ""
            raise BadInput(
                f"train.scheduler_args.{name}={value} has no effect with"
                f" train.scheduler={train.scheduler}{other}; leave it out"
            )
    noise, spread = arguments.get("noise_pct", 0.67), arguments.get("noise_std", 1.0)
    if not isinstance(noise, int | float) or not noise > 0:
        raise BadInput(f"train.scheduler_args.noise_pct={noise} must be greater than 0")
    if not isinstance(spread, int | float) or not 0 <= spread <= 100 * noise:
        raise BadInput(  # timm draws noise until it is below noise_pct
            f"train.scheduler_args.noise_std={spread} must be at most 100 times noise_pct, which"
            f" is {noise}"
        )


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
    _check_scheduler_args(train)
    if train.scheduler == "none":  # timm applies layer decay in its schedules
        for group in optimizer.param_groups:
            group["lr"] *= group.get("lr_scale", 1.0)
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
    except Exception as error:  # schedules raise errors of any kind
        raise BadInput(
            f"train.scheduler={train.scheduler} does not accept train.scheduler_args:"
            f" {first_line(error)}"
        ) from error
    if scheduler is None and train.scheduler != "none":
        raise BadInput(f"train.scheduler={train.scheduler} needs a newer timm; upgrade it")
    if scheduler is not None:
        _rehearse(scheduler, optimizer, train, updates_per_epoch * train.epochs)
    return scheduler


def _rehearse(scheduler: Any, optimizer: Optimizer, train: TrainConfig, updates: int) -> None:
    """Raise `BadInput` unless the schedule gives valid learning rates over the whole run.

    timm checks few arguments when it builds a schedule. The optimizer is left as it was.
    """
    before = [group["lr"] for group in optimizer.param_groups]
    step = max(1, updates // REHEARSED)
    try:
        for update in [*range(0, updates, step), updates]:
            scheduler.step_update(update)
            rates = [group["lr"] for group in optimizer.param_groups]
            wrong = [r for r in rates if not isinstance(r, float | int) or not 0 <= r < math.inf]
            if wrong:
                raise ValueError(f"the learning rate of update {update} would be {wrong[0]}")
    except Exception as error:  # schedules raise errors of any kind
        raise BadInput(
            f"train.scheduler={train.scheduler} does not accept train.scheduler_args="
            f"{dict(train.scheduler_args)}: {first_line(error)}"
        ) from error
    for group, lr in zip(optimizer.param_groups, before, strict=True):
        group["lr"] = lr
