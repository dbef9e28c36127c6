"""Checks of settings that need neither the model nor the data.

`check_train` runs before PyTorch's training stack is imported. The other functions give each kind
of mistake the same message everywhere in training and in the commands.
"""

import dataclasses
import math
import re
from collections.abc import Iterable
from typing import Any

from zoo.environment import parallel_limit, usable_cores
from zoo.errors import BadInput, unknown_value
from zoo.settings import TrainConfig

PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
CHOICES = {
    "precision": tuple(PRECISIONS),
    "clip_mode": ("norm", "value", "agc"),
    "lr_scale": ("linear", "sqrt", "none"),
    "adapt": ("none", "norms", "ssf", "lora", "linear"),
    "distill": ("none", "hard", "soft", "stored"),
    "accelerator": ("auto", "cpu", "cuda", "gpu", "mps"),
    "strategy": ("auto", "ddp"),
    "sampler": ("shuffle", "balanced"),
    "shrink_score": ("hesso", "magnitude", "norm"),
}
LOGGERS = ("csv", "tensorboard", "wandb", "mlflow", "pictures")


_AT_LEAST_ONE = (
    "epochs",
    "stop_at_epoch",
    "patience",
    "limit_train_batches",
    "limit_val_batches",
    "freeze_epochs",
    "accumulate",
    "lr_base_batch",
    "num_nodes",
    "log_every",
    "shrink_periods",
)
_POSITIVE = ("lr", "layer_decay", "clip_grad", "distill_tau", "shrink_until")
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
_BELOW_ONE = ("label_smoothing", "ema_decay", "shrink")
_SCHEDULES_WITH_MIN_LR = ("cosine", "tanh", "poly", "wsd", "rsqrt")


def check_train(train: TrainConfig) -> None:
    """Raise `BadInput` for the first value of `train` that is invalid or has no effect."""
    _check_ranges(train)
    _check_batch_size(train.batch_size)
    for key, choices in CHOICES.items():
        check_choice(f"train.{key}", str(getattr(train, key)), choices)
    for name in train.loggers:
        check_choice("train.loggers", name, LOGGERS)
    _check_devices(train.devices)
    if train.max_time is not None:
        parse_duration("train.max_time", train.max_time)
    _check_class_weights(train)
    _check_combinations(train)
    if train.qat:
        _check_qat(train)
    if train.adapt != "none":
        _check_adapt(train)
    if train.shrink:
        _check_shrink(train)
    if train.elastic:
        _check_elastic(train)
    if train.experts:
        for key, off in (("qat", False), ("adapt", "none")):
            if getattr(train, key) != off:
                raise BadInput(
                    f"train.{key}={getattr(train, key)} is not supported with train.experts; train"
                    " with one of them after the other"
                )
    _check_unused(train)


def check_choice(key: str, value: str, choices: Iterable[str]) -> None:
    """Raise `BadInput` unless `value` is one of `choices`; the message has the nearest one."""
    choices = sorted(choices)
    if value not in choices:
        raise BadInput(unknown_value(key, value, choices))


def check_value(key: str, value: Any, is_valid: bool, requirement: str) -> None:
    """Raise `BadInput` if `is_valid` is false.

    Args:
        key: The dotted key of the setting.
        value: Its value.
        is_valid: Whether the value meets the requirement.
        requirement: What the value must be, such as "at least 1".
    """
    if not is_valid:
        raise BadInput(f"{key}={value} must be {requirement}")


def parse_duration(key: str, text: str) -> float:
    """Return the seconds of a duration such as `90s`, `45m`, `1.5h` or `1h30m`.

    Raises:
        BadInput: It is not a duration, or is not longer than 0.
    """
    parts = re.fullmatch(r"(?:([\d.]+)h)?(?:([\d.]+)m)?(?:([\d.]+)s)?", str(text).strip())
    numbers = parts.groups(default="0") if parts else ("",)
    try:
        units = (3600, 60, 1)
        seconds = sum(unit * float(n) for n, unit in zip(numbers, units, strict=True))
    except ValueError:
        seconds = 0.0
    check_value(key, text, seconds > 0, "a time above 0 with units, such as 45m, 1h30m or 90s")
    return seconds


def _check_class_weights(train: TrainConfig) -> None:
    weights = train.class_weights
    is_list = isinstance(weights, list) and all(
        type(weight) in (int, float) and 0 <= weight < math.inf for weight in weights
    )
    is_valid = weights in (None, "balanced") or (is_list and any(weights))
    requirement = "balanced, or a list of one number per class, at least 0 and not all 0"
    check_value("train.class_weights", weights, is_valid, requirement)
    if weights == "balanced" and train.sampler == "balanced":
        raise BadInput(
            "train.class_weights=balanced and train.sampler=balanced both make up for rare classes,"
            " and together too much; leave one of them out"
        )


def _check_ranges(train: TrainConfig) -> None:
    def check(key: str, is_valid: bool, requirement: str) -> None:
        check_value(f"train.{key}", getattr(train, key), is_valid, requirement)

    for entry in dataclasses.fields(TrainConfig):
        value = getattr(train, entry.name)
        if value == "":
            raise BadInput(f"train.{entry.name} is empty; give a value, or leave it out")
        if isinstance(value, float):
            check(entry.name, math.isfinite(value), "a finite number")
    for key in _AT_LEAST_ONE:
        check(key, getattr(train, key) is None or getattr(train, key) >= 1, "at least 1")
    for key in _POSITIVE:
        check(key, getattr(train, key) is None or getattr(train, key) > 0, "greater than 0")
    for key in _NOT_NEGATIVE:
        check(key, getattr(train, key) >= 0, "at least 0")
    for key in _FRACTIONS:
        check(key, 0 <= getattr(train, key) <= 1, "between 0 and 1")
    for key in _BELOW_ONE:
        check(key, 0 <= getattr(train, key) < 1, "at least 0 and below 1")
    check("layer_decay", train.layer_decay is None or train.layer_decay <= 1, "at most 1")
    check("shrink_until", train.shrink_until <= 1, "at most 1")
    check("seed", train.seed < 2**32, "below 2**32")
    for key in (*_AT_LEAST_ONE, "mixup_off_epoch"):
        check(key, (getattr(train, key) or 0) < 2**31, "below 2**31")
    for key in ("mixup", "cutmix"):
        check(key, getattr(train, key) <= 1000, "at most 1000")


def _check_batch_size(size: Any) -> None:
    is_count = isinstance(size, int) and not isinstance(size, bool) and 1 <= size < 2**31
    check_value("train.batch_size", size, size == "auto" or is_count, "auto or at least 1")


def _check_devices(devices: Any) -> None:
    is_count = isinstance(devices, int) and not isinstance(devices, bool) and devices >= 1
    check_value("train.devices", devices, devices == "auto" or is_count, "auto or at least 1")
    limit = parallel_limit()
    if isinstance(devices, int) and devices > limit:
        raise BadInput(
            f"train.devices={devices} starts as many processes, which are too many for"
            f" {usable_cores()} cores; use at most {limit}, and one per GPU if there are GPUs"
        )


def _check_combinations(train: TrainConfig) -> None:
    """Raise `BadInput` for values that contradict each other."""
    if train.warmup_epochs > train.epochs:
        raise BadInput(
            f"train.warmup_epochs={train.warmup_epochs:g} is more than"
            f" train.epochs={train.epochs}; lower it (0 for no warm-up) or train longer"
        )
    if train.stop_at_epoch is not None and train.stop_at_epoch > train.epochs:
        raise BadInput(
            f"train.stop_at_epoch={train.stop_at_epoch} is more than train.epochs={train.epochs};"
            " lower it, or leave it out"
        )
    if train.freeze_epochs is not None and train.freeze_epochs >= train.epochs:
        raise BadInput(
            f"train.freeze_epochs={train.freeze_epochs} is all of train.epochs={train.epochs}:"
            " nothing would be unfrozen; lower it, or leave it out"
        )
    if train.freeze_epochs is not None and train.shrink > 0:
        raise BadInput(
            f"train.freeze_epochs={train.freeze_epochs} is not supported with train.shrink, which"
            " replaces layers; leave one of them out"
        )
    if train.find_lr and (train.dry_run or train.resume is not None):
        other = "dry_run=true" if train.dry_run else f"resume={train.resume}"
        raise BadInput(
            f"train.find_lr=true has no effect with train.{other}; leave one of them out"
        )
    if train.distill == "stored":
        _check_stored(train)
    elif train.distill != "none" and train.distill_teacher is None:
        raise BadInput(
            f"train.distill={train.distill} requires a teacher; give train.distill_teacher=<model>"
        )
    if train.min_lr > train.lr and train.scheduler in _SCHEDULES_WITH_MIN_LR:
        raise BadInput(
            f"train.min_lr={train.min_lr:g} is above train.lr={train.lr:g}; lower train.min_lr"
        )


def _check_stored(train: TrainConfig) -> None:
    """Raise `BadInput` for settings that stored predictions do not support."""
    if train.distill_store is None:
        raise BadInput(
            "train.distill=stored requires predictions; give train.distill_store=<folder>, which"
            " zoo store-logits makes"
        )
    for key in ("mixup", "cutmix"):
        if getattr(train, key) > 0:
            raise BadInput(
                f"train.{key}={getattr(train, key):g} mixes images, for which no predictions are"
                " stored; leave it out with train.distill=stored"
            )


def _check_qat(train: TrainConfig) -> None:
    """Raise `BadInput` for settings that quantisation-aware training does not support."""
    supported = {
        "precision": (str(train.precision) == "32", "use 32: int8 rounding needs 32 bits"),
        "compile": (not train.compile, "use false: it makes the int8 graph no faster"),
        "freeze_epochs": (train.freeze_epochs is None, "leave it out: layers are fused"),
        "find_lr": (not train.find_lr, "use false: find the rate of the float run"),
        "sync_bn": (not train.sync_bn, "use false: batch norms are folded"),
        "strategy": (train.strategy == "auto", "use auto: it runs in one process"),
        "num_nodes": (train.num_nodes == 1, "use 1: it runs in one process"),
        "loss": (
            train.loss != "bias",
            "use another loss: this one reads a layer of the float model",
        ),
    }
    for key, (is_supported, advice) in supported.items():
        if not is_supported:
            raise BadInput(
                f"train.{key}={getattr(train, key)} is not supported with train.qat=true; {advice}"
            )


def _check_adapt(train: TrainConfig) -> None:
    """Raise `BadInput` for settings that adapters do not support."""
    for key in ("qat", "sync_bn"):
        if getattr(train, key):
            raise BadInput(
                f"train.{key}=true is not supported with train.adapt={train.adapt}; leave it out"
                + (", and train the adapted run with train.qat afterwards" if key == "qat" else "")
            )
    has_rank = train.adapt in ("lora", "linear")
    effects = {"where": True, "rank": has_rank, "alpha": has_rank, "std": train.adapt == "ssf"}
    for key in train.adapt_args:
        check_choice("train.adapt_args", str(key), effects)
        if not effects[key]:
            raise BadInput(
                f"train.adapt_args.{key} has no effect with train.adapt={train.adapt}; leave it out"
            )


def _check_shrink(train: TrainConfig) -> None:
    """Raise `BadInput` for settings that do not work with units that shrink."""
    for key in ("qat", "adapt"):
        if getattr(train, key) not in (False, "none"):
            raise BadInput(
                f"train.{key}={str(getattr(train, key)).lower()} is not supported with"
                f" train.shrink={train.shrink:g}; leave one of them out"
            )


def _check_elastic(train: TrainConfig) -> None:
    """Raise `BadInput` for shares that make no sense, and settings that do not work with them."""
    shares = list(train.elastic)
    are_shares = all(0 < share < 1 for share in shares) and len(set(shares)) == len(shares)
    check_value("train.elastic", shares, are_shares, "different shares above 0 and below 1")
    for key in ("qat", "adapt", "shrink", "distill"):
        if getattr(train, key) not in (False, "none", 0.0):
            raise BadInput(
                f"train.{key}={str(getattr(train, key)).lower()} is not supported with"
                f" train.elastic={shares}; leave one of them out"
            )


def _check_unused(train: TrainConfig) -> None:
    """Raise `BadInput` for a value that differs from its default but has no effect."""
    mixes = train.mixup > 0 or train.cutmix > 0
    labels_count = train.distill == "none" or train.distill_alpha < 1
    requirements = {
        "mixup_prob": (mixes, "train.mixup or train.cutmix"),
        "mixup_off_epoch": (mixes, "train.mixup or train.cutmix"),
        "mixup_switch_prob": (
            train.mixup > 0 and train.cutmix > 0,
            "both train.mixup and train.cutmix",
        ),
        "distill_teacher": (train.distill in ("hard", "soft"), "train.distill=hard or soft"),
        "distill_teacher_weights": (
            train.distill in ("hard", "soft"),
            "train.distill=hard or soft",
        ),
        "distill_store": (train.distill == "stored", "train.distill=stored"),
        "distill_alpha": (train.distill != "none", "train.distill=hard, soft or stored"),
        "distill_tau": (train.distill == "soft", "train.distill=soft"),
        "adapt_args": (train.adapt != "none", "train.adapt"),
        "shrink_score": (train.shrink > 0, "train.shrink above 0"),
        "shrink_periods": (train.shrink > 0, "train.shrink above 0"),
        "shrink_until": (train.shrink > 0, "train.shrink above 0"),
        "freeze_epochs": (bool(train.freeze), "train.freeze"),
        "clip_mode": (train.clip_grad is not None, "train.clip_grad"),
        "loss": (labels_count, "train.distill_alpha below 1"),
        "loss_args": (labels_count, "train.distill_alpha below 1"),
        "label_smoothing": (labels_count, "train.distill_alpha below 1"),
        "class_weights": (labels_count, "train.distill_alpha below 1"),
        "ema_warmup": (train.ema_decay > 0, "train.ema_decay above 0"),
        "lr_base_batch": (train.lr_scale != "none", "train.lr_scale=linear or sqrt"),
        "warmup_lr": (train.warmup_epochs > 0, "train.warmup_epochs above 0"),
        "min_lr": (
            train.scheduler not in ("none", "constant", "step", "multistep"),
            "a train.scheduler that ends at min_lr, such as cosine",
        ),
    }
    defaults = TrainConfig()
    for key, (has_effect, requirement) in requirements.items():
        if not has_effect and getattr(train, key) != getattr(defaults, key):
            raise BadInput(f"train.{key}={getattr(train, key)} has no effect without {requirement}")
    _check_unused_mixing(train)
    if train.distill != "none" and train.distill_alpha == 0:
        raise BadInput(
            f"train.distill={train.distill} has no effect with train.distill_alpha=0; raise it, or"
            " leave train.distill out"
        )
    if train.scheduler == "none" and train.warmup_epochs > 0:
        raise BadInput(
            f"train.warmup_epochs={train.warmup_epochs:g} has no effect with train.scheduler=none;"
            " set it to 0, or use train.scheduler=constant"
        )


def _check_unused_mixing(train: TrainConfig) -> None:
    """Raise `BadInput` for mixup or CutMix that never mixes a batch."""
    mixing = next((key for key in ("mixup", "cutmix") if getattr(train, key) > 0), None)
    if mixing is None:
        return
    both = train.mixup > 0 and train.cutmix > 0
    never = {
        "mixup_prob=0": train.mixup_prob == 0,
        "batch_size=1": train.batch_size == 1,
    }
    if both and train.mixup_switch_prob in (0, 1):
        mixing = "cutmix" if train.mixup_switch_prob == 0 else "mixup"
        never[f"mixup_switch_prob={train.mixup_switch_prob:g}"] = True
    for setting, is_set in never.items():
        if is_set:
            raise BadInput(
                f"train.{mixing}={getattr(train, mixing):g} has no effect with train.{setting};"
                " change one of them"
            )
    if train.mixup_off_epoch >= train.epochs:
        raise BadInput(
            f"train.mixup_off_epoch={train.mixup_off_epoch} has no effect with"
            f" train.epochs={train.epochs}; lower it (0: mix in every epoch)"
        )
