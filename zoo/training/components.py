"""What a training loop works with, and how far it has come."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim import Optimizer

from zoo.data.datamodule import ImageData
from zoo.training.freezing import Unfreezing
from zoo.training.method import TrainingMethod
from zoo.training.mixing import Mixing


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        epoch: Number of completed epochs, including their validation.
        batch: Number of completed batches of the next epoch.
        update: Number of completed updates.
        world_size: Number of processes.
        loss_sums: For each process, the sum of the losses of those `batch` batches.
        best: The best score of a validation.
        best_epoch: The epoch of the best score, counted from 1.
        seconds: Time of training so far; 0 without `train.max_time`.
    """

    epoch: int = 0
    batch: int = 0
    update: int = 0
    world_size: int = 1
    loss_sums: list[float] = field(default_factory=list)
    best: float = -1.0
    best_epoch: int = 0
    seconds: float = 0.0


@dataclass
class Components:
    """Everything that `Loop` trains with; all but `data` is already on the device.

    Attributes:
        data: The data module.
        net: The model; checkpoints save its weights.
        forward: `net`, wrapped for several processes and mixed precision.
        optimizer: The optimizer.
        scheduler: The learning-rate schedule, or None.
        criterion: The loss.
        mixing: Mixes batches, or None.
        ema: Averages the weights of `net`, or None.
        frozen_norms: Batch norms of `net` that stay in evaluation mode.
        clipped: Parameters whose gradients `train.clip_grad` clips.
        about: Checkpoint entries that never change: model, data, config, versions.
        method: The training method.
        unfreezing: Trains frozen parameters after some epochs, or None.
    """

    data: ImageData
    net: nn.Module
    forward: Callable[[Tensor], Any]
    optimizer: Optimizer
    scheduler: Any
    criterion: nn.Module
    mixing: Mixing | None
    ema: ModelEmaV3 | None
    frozen_norms: list[nn.Module]
    clipped: list[nn.Parameter]
    about: dict[str, Any]
    method: TrainingMethod
    unfreezing: Unfreezing | None = None
