"""Values of `train` that cannot work, found before anything heavy is imported."""

import dataclasses
import difflib
import math
from typing import Any

from zoo.errors import BadInput
from zoo.settings import TrainConfig

PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
CHOICES = {
    "precision": tuple(PRECISIONS),
    "clip_mode": ("norm", "value", "agc"),
    "lr_scale": ("linear", "sqrt", "none"),
    "distill": ("none", "hard", "soft"),
    "accelerator": ("auto", "cpu", "cuda", "gpu", "mps"),
    "strategy": ("auto", "ddp"),
}
LOGGERS = ("csv", "tensorboard")

_AT_LEAST_ONE = (
    "epochs",
    "stop_at_epoch",
    "limit_train_batches",
    "limit_val_batches",
    "batch_size",
    "accumulate",
    "lr_base_batch",
    "num_nodes",
    "log_every",
)
_POSITIVE = ("lr", "layer_decay", "clip_grad", "distill_tau")
_NOT_NEGATIVE = (
    "weight_decay",
    "warmup_epochs",
    "warmup_lr",
    "min_lr",
    "mixup",
    "cutmix",
    "mixup_off_epoch",
    "seed",
)
_FRACTIONS = ("mixup_prob", "mixup_switch_prob", "distill_alpha")
_BELOW_ONE = ("label_smoothing", "ema_decay")


def check_train(train: TrainConfig) -> None:
    """Raise `BadInput` for the first value of `train` that cannot work or has no effect."""
    _check_ranges(train)
    for key, choices in CHOICES.items():
        choose(f"train.{key}", str(getattr(train, key)), choices)
    for name in train.loggers:
        choose("train.loggers", name, LOGGERS)
    _check_devices(train.devices)
    _check_together(train)
    _check_qat(train)
    _check_without_effect(train)


def choose(key: str, value: str, choices: Any) -> None:
    """Raise `BadInput` unless `value` is one of `choices`."""
    if value in choices:
        return
    near = difflib.get_close_matches(value, choices, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    shown = sorted(choices)
    listed = ", ".join(shown[:40]) + (", ..." if len(shown) > 40 else "")
    raise BadInput(f"unknown {key} {value!r}{hint}; choices: {listed}")


def _check_ranges(train: TrainConfig) -> None:
    def need(key: str, good: bool, what: str) -> None:
        if not good:
            raise BadInput(f"train.{key}={getattr(train, key)} cannot work; it must be {what}")

    for entry in dataclasses.fields(TrainConfig):
        value = getattr(train, entry.name)
        if isinstance(value, float):
            need(entry.name, math.isfinite(value), "a finite number")
    for key in _AT_LEAST_ONE:
        need(key, getattr(train, key) is None or getattr(train, key) >= 1, "at least 1")
    for key in _POSITIVE:
        need(key, getattr(train, key) is None or getattr(train, key) > 0, "greater than 0")
    for key in _NOT_NEGATIVE:
        need(key, getattr(train, key) >= 0, "0 or more")
    for key in _FRACTIONS:
        need(key, 0 <= getattr(train, key) <= 1, "between 0 and 1")
    for key in _BELOW_ONE:
        need(key, 0 <= getattr(train, key) < 1, "at least 0 and below 1")
    need("layer_decay", train.layer_decay is None or train.layer_decay <= 1, "at most 1")


def _check_devices(devices: Any) -> None:
    if devices == "auto" or (
        isinstance(devices, int) and not isinstance(devices, bool) and devices >= 1
    ):
        return
    raise BadInput(f"train.devices={devices!r} cannot work; it must be auto or a number from 1")


def _check_together(train: TrainConfig) -> None:
    if train.warmup_epochs > train.epochs:
        raise BadInput(
            f"train.warmup_epochs={train.warmup_epochs:g} is longer than"
            f" train.epochs={train.epochs}; shorten the warm-up (0 is none) or train for longer"
        )
    if train.stop_at_epoch is not None and train.stop_at_epoch > train.epochs:
        raise BadInput(
            f"train.stop_at_epoch={train.stop_at_epoch} is after the last of"
            f" train.epochs={train.epochs}"
        )
    if train.distill != "none" and train.distill_teacher is None:
        raise BadInput(f"train.distill={train.distill} needs train.distill_teacher=<model>")
    if train.min_lr > train.lr and train.scheduler in ("cosine", "tanh", "poly", "wsd", "rsqrt"):
        raise BadInput(f"train.min_lr={train.min_lr:g} is above train.lr={train.lr:g}")


def _check_qat(train: TrainConfig) -> None:
    if not train.qat:
        return
    other = {
        "precision": (str(train.precision) == "32", "32: steps of int8 are lost in 16 bit"),
        "compile": (not train.compile, "false: the graph is compiled to nothing faster"),
        "sync_bn": (not train.sync_bn, "false: batch norms are folded"),
        "strategy": (train.strategy == "auto", "auto: it runs in one process"),
        "num_nodes": (train.num_nodes == 1, "1: it runs in one process"),
        "loss": (train.loss != "bias", "another: bias watches layers that the graph lacks"),
    }
    for key, (good, wanted) in other.items():
        if not good:
            raise BadInput(
                f"train.{key}={getattr(train, key)} does not go with train.qat=true; take {wanted}"
            )


def _check_without_effect(train: TrainConfig) -> None:
    """A key that was given another value than its default must change something."""
    mixing = train.mixup > 0 or train.cutmix > 0
    pointless = {
        "mixup_prob": (mixing, "train.mixup or train.cutmix"),
        "mixup_off_epoch": (mixing, "train.mixup or train.cutmix"),
        "mixup_switch_prob": (
            train.mixup > 0 and train.cutmix > 0,
            "both train.mixup and train.cutmix",
        ),
        "distill_teacher": (train.distill != "none", "train.distill=hard or soft"),
        "distill_teacher_weights": (train.distill != "none", "train.distill=hard or soft"),
        "distill_alpha": (train.distill != "none", "train.distill=hard or soft"),
        "distill_tau": (train.distill == "soft", "train.distill=soft"),
        "clip_mode": (train.clip_grad is not None, "train.clip_grad"),
        "ema_warmup": (train.ema_decay > 0, "train.ema_decay above 0"),
        "lr_base_batch": (train.lr_scale != "none", "train.lr_scale=linear or sqrt"),
        "warmup_lr": (train.warmup_epochs > 0, "train.warmup_epochs above 0"),
        "min_lr": (
            train.scheduler not in ("none", "constant", "step", "multistep"),
            "a train.scheduler that ends at it, such as cosine",
        ),
    }
    defaults = TrainConfig()
    for key, (used, needed) in pointless.items():
        if not used and getattr(train, key) != getattr(defaults, key):
            raise BadInput(f"train.{key}={getattr(train, key)} has no effect without {needed}")
    if train.scheduler == "none" and train.warmup_epochs > 0:
        raise BadInput(
            f"train.warmup_epochs={train.warmup_epochs:g} has no effect with train.scheduler=none;"
            " set it to 0, or take train.scheduler=constant"
        )
