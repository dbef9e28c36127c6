"""The keys of the group `train`."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class TrainConfig:
    """How a model is trained."""

    # length
    epochs: int = 8
    stop_at_epoch: int | None = None  # leave, resumable, after so many; the schedule spans `epochs`
    limit_train_batches: int | None = None  # of every epoch, for a smoke run
    limit_val_batches: int | None = None
    resume: str | None = None  # a run folder or one of its checkpoints; the run continues there

    # batches; one update sees batch_size x accumulate x processes images
    batch_size: int = 16  # of each process
    accumulate: int = 1

    # optimizer and schedule: names and arguments are those of timm's factories
    optimizer: str = "adamw"
    optimizer_args: dict[str, Any] = field(default_factory=dict)
    lr: float = 2e-3  # for `lr_base_batch` images an update
    lr_base_batch: int = 16
    lr_scale: str = "sqrt"  # with the images of an update: linear, sqrt (suits Adam), none
    weight_decay: float = 0.05  # not for vectors, nor for what model.no_weight_decay() names
    layer_decay: float | None = None  # the lr falls by this factor a layer towards the input
    scheduler: str = "cosine"
    scheduler_args: dict[str, Any] = field(default_factory=dict)
    warmup_epochs: float = 1.0
    warmup_lr: float = 1e-6
    min_lr: float = 1e-6
    clip_grad: float | None = None
    clip_mode: str = "norm"  # norm, value, agc
    freeze: list[str] = field(default_factory=list)  # globs of modules or parameters, all-but-head

    # loss, mixing, distillation
    loss: str | None = None  # null: cross-entropy, or charbonnier for super-resolution
    loss_args: dict[str, Any] = field(default_factory=dict)
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mixup_prob: float = 1.0  # of mixing a batch at all
    mixup_switch_prob: float = 0.5  # of cutmix where both are on
    mixup_off_epoch: int = 0  # 0: never off
    distill: str = "none"  # none, hard, soft
    distill_teacher: str | None = None  # any name that create_model takes
    distill_teacher_weights: str | None = None  # null: the published ones
    distill_alpha: float = 0.5  # share of the teacher in the loss
    distill_tau: float = 1.0  # temperature of soft distillation

    # int8 in training, from weights to start from (docs/qat.md)
    qat: bool = False

    # averaged weights; 0: none
    ema_decay: float = 0.0
    ema_warmup: bool = True  # start with a short memory

    # machine
    accelerator: str = "auto"
    devices: Any = "auto"  # processes on this machine; torchrun says it itself
    num_nodes: int = 1
    strategy: str = "auto"  # auto, ddp
    precision: str = "32"  # 32, bf16, fp16
    sync_bn: bool = False
    channels_last: bool = True
    compile: bool = False
    seed: int = 0
    deterministic: bool = False  # refuse operators that are not reproducible

    # what is written
    out: str = "runs"
    loggers: list[str] = field(default_factory=lambda: ["csv", "tensorboard"])
    log_every: int = 10  # updates
    progress: bool = True
