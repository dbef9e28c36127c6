"""The loop: epochs of updates, validation, checkpoints; it can stop and go on at any update.

What is random in a step (mixing, dropout, stochastic depth) is drawn from generators seeded with
(seed, batch, rank) just before it, so a checkpoint needs no generator's state.
"""

import logging
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from timm.utils import ModelEmaV3, dispatch_clip_grad, distribute_bn
from torch import Tensor, nn
from torch.optim import Optimizer

from zoo.data.datamodule import ImageData
from zoo.data.samplers import mix
from zoo.errors import ZooError
from zoo.settings import TrainConfig
from zoo.training import checkpoint
from zoo.training.interrupt import Interrupt
from zoo.training.losses import Distillation
from zoo.training.method import TrainingMethod
from zoo.training.mixing import Mixing
from zoo.training.records import Bar, Records
from zoo.training.tasks import Result, get_task


class Diverged(ZooError):
    """The loss or the weights are no longer finite."""


class Interrupted(Exception):
    """A signal asked to stop; the last checkpoint is where to go on."""


@dataclass
class Progress:
    """Where a run is.

    Attributes:
        epoch: Epochs done, validated.
        batch: Batches done of the epoch after.
        update: Updates done.
        world_size: Processes.
        loss_sums: Of the losses of those `batch` batches, one for each process.
        best: The best score of a validation, and `best_epoch` (from 1) where it was reached.
    """

    epoch: int = 0
    batch: int = 0
    update: int = 0
    world_size: int = 1
    loss_sums: list[float] = field(default_factory=list)
    best: float = -1.0
    best_epoch: int = 0


@dataclass
class Components:
    """What `Loop` works on; all but `data` already on the device.

    Attributes:
        net: The model; its weights are what is saved.
        forward: `net`, wrapped for several processes and mixed precision.
        frozen_norms: Batch norms of `net` that stay in eval mode.
        ema: Averages the weights of `net`, or None.
        about: Goes into checkpoints as it is: model, data, config, versions.
        method: Changes what is trained.
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
    about: dict[str, Any]
    method: TrainingMethod


class Loop:
    """Trains `components` from `progress` on."""

    def __init__(
        self,
        fabric: Fabric,
        components: Components,
        train: TrainConfig,
        folder: Path | None,
        logger: logging.Logger,
    ):
        """Take everything that a run needs.

        Args:
            fabric: Devices, precision, processes.
            components: What to train.
            train: The group `train` of the configuration.
            folder: The run folder; None on all processes but the first.
            logger: For messages.
        """
        self.fabric, self.components, self.train, self.folder, self.log = (
            fabric,
            components,
            train,
            folder,
            logger,
        )
        self.loader = components.data.train_dataloader()
        self.batches = min(len(self.loader), train.limit_train_batches or len(self.loader))
        self.updates_per_epoch = -(-self.batches // train.accumulate)
        self.progress = Progress(world_size=fabric.world_size)
        self.metrics: dict[str, float] = {}
        self.task = get_task(components.data.task)
        self.layout = torch.channels_last if train.channels_last else torch.contiguous_format
        self._loss_sum = torch.zeros((), device=fabric.device)
        self._interrupt = Interrupt()
        second_order = getattr(components.optimizer, "is_second_order", False)  # timm's AdaHessian
        self._backward_args: dict[str, Any] = {"create_graph": True} if second_order else {}

    @property
    def precision(self) -> Any:
        """The plugin that holds the gradient scaler of fp16."""
        return self.fabric.strategy.precision

    @property
    def _loss(self) -> nn.Module:
        """The loss on the labels; some have a state of their own."""
        criterion = self.components.criterion
        return criterion.base if isinstance(criterion, Distillation) else criterion

    def restore(self, content: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.components.net.load_state_dict(content["state_dict"])
        if self.components.ema is not None:
            self.components.ema.module.load_state_dict(content["state_dict_ema"])
        self.components.optimizer.load_state_dict(content["optimizer"])
        self.precision.load_state_dict(content["scaler"])
        self._loss.load_state_dict(content.get("loss", {}))
        self.progress = Progress(**content["progress"])
        self.metrics = dict(content["metrics"])
        if self.progress.loss_sums:
            self._loss_sum.fill_(self.progress.loss_sums[self.fabric.global_rank])

    def run(self, records: Records, bar: Bar, interrupt: Interrupt) -> dict[str, float]:
        """Train up to the last epoch; return the metrics of its validation.

        Raises:
            Diverged: NaN or infinity; no checkpoint of it is kept.
            Interrupted: A signal came; where to go on is saved.
        """
        self._records, self._bar, self._interrupt = records, bar, interrupt
        while self.progress.epoch < (self.train.stop_at_epoch or self.train.epochs):
            start, first = time.perf_counter(), self.progress.batch
            self._train_epoch()
            seconds = time.perf_counter() - start
            images = (self.batches - first) * self.train.batch_size * self.fabric.world_size
            found = self._validate()
            self._end_epoch(found, images / seconds)
        return self.metrics

    # -- training ---------------------------------------------------------------------------------

    def _train_epoch(self) -> None:
        progress, accumulate = self.progress, self.train.accumulate
        self._enter_train_mode()
        if progress.batch == self.batches:
            return
        self.loader.load_state_dict({"epoch": progress.epoch, "batch": progress.batch})
        clock, counted = time.perf_counter(), progress.batch
        for index, (images, targets) in enumerate(self.loader, start=progress.batch):
            group = index // accumulate * accumulate
            size = min(accumulate, self.batches - group)
            last = index + 1 == group + size
            loss = self._forward_backward(index, images, targets, size, last)
            if not last:
                continue
            self._update()
            progress.batch, progress.update = index + 1, progress.update + 1
            self.components.method.after_update(self.components.net, progress.update)
            ended = progress.batch == self.batches
            if ended or progress.update % self.train.log_every == 0:
                now = time.perf_counter()
                images_done = (progress.batch - counted) * len(images) * self.fabric.world_size
                self._log_step(loss, images_done / (now - clock))
                clock, counted = now, progress.batch
            else:
                self._show()
            self._stop_if_asked()
            if ended:
                break

    def _enter_train_mode(self) -> None:
        self.components.net.train()
        self.components.criterion.train()
        for norm in self.components.frozen_norms:
            norm.eval()
        self.components.method.after_update(self.components.net, self.progress.update)
        mixing, off = self.components.mixing, self.train.mixup_off_epoch
        if mixing is not None and off and self.progress.epoch >= off:
            mixing.off()

    def _forward_backward(
        self, index: int, images: Tensor, targets: Tensor, size: int, last: bool
    ) -> Tensor:
        """Add the gradients of one batch, one of `size` of an update; return its loss."""
        components, fabric = self.components, self.fabric
        step = self.progress.epoch * self.batches + index
        seed_step(self.train.seed, step, fabric.global_rank)
        images = images.to(fabric.device, non_blocking=True, memory_format=self.layout)
        targets = targets.to(fabric.device, non_blocking=True)
        if components.mixing is not None:
            images, targets = components.mixing(images, targets)
        with fabric.no_backward_sync(components.forward, enabled=not last):  # type: ignore[arg-type]
            outputs = components.forward(images)
            with fabric.autocast():
                if isinstance(components.criterion, Distillation):
                    loss = components.criterion(outputs, targets, images)
                else:
                    loss = components.criterion(outputs, targets)
            fabric.backward(loss / size, **self._backward_args)
        loss = loss.detach().float()
        self._loss_sum += loss
        return loss

    def _update(self) -> None:
        components, train = self.components, self.train
        if train.clip_grad is not None:
            self.precision.unscale_gradients(components.optimizer)
            trained = [p for p in components.net.parameters() if p.grad is not None]
            dispatch_clip_grad(trained, train.clip_grad, mode=train.clip_mode)
        components.optimizer.step()
        components.optimizer.zero_grad()
        if components.scheduler is not None:
            components.scheduler.step_update(self.progress.update + 1)
        if components.ema is not None:
            components.ema.update(components.net, self.progress.update + 1)

    # -- looking ----------------------------------------------------------------------------------

    def _log_step(self, loss: Tensor, rate: float) -> None:
        """Fetch the loss, stop if it is no number, tell it."""
        seen = torch.stack([loss, self._loss_sum])
        if self.fabric.world_size > 1:
            seen = self.fabric.all_reduce(seen, reduce_op="mean")
        latest, total = seen.tolist()  # type: ignore[union-attr]
        if not np.isfinite(total):
            raise Diverged(self._diverged(f"the loss is {latest if latest != latest else total}"))
        lr = self.components.optimizer.param_groups[0]["lr"]
        self._bar.values(latest, lr, rate)
        self._show()
        self._records.step(
            self.progress.update, {"train/loss": latest, "train/lr": lr, "train/images_per_s": rate}
        )

    def _show(self) -> None:
        progress = self.progress
        done = progress.epoch * self.batches + progress.batch
        self._bar.show(f"epoch {progress.epoch + 1}/{self.train.epochs}", done)

    def _diverged(self, what: str) -> str:
        kept = "none was written yet"
        if self.folder is not None and (last := self.folder / "checkpoints/last.ckpt").exists():
            kept = str(last)
        epoch = self.progress.epoch + (self.progress.batch > 0)
        return (
            f"{what} in epoch {epoch}, by update {self.progress.update}; stopped (last"
            f" good checkpoint: {kept}). Try a lower train.lr, train.clip_grad=1 or"
            " train.precision=32"
        )

    def _stop_if_asked(self) -> None:
        """After an update: if any process was signalled, save and raise `Interrupted`."""
        asked = self._interrupt.signal is not None
        if self.fabric.world_size > 1:
            if self.progress.update % self.train.log_every and self.progress.batch < self.batches:
                return  # asking the others costs time
            asked = self.fabric.strategy.reduce_boolean_decision(asked, all=False)  # type: ignore[attr-defined]
        if asked:
            self._save()
            raise Interrupted

    def _stop_while_validating(self) -> None:
        if self._interrupt.signal is not None and self.fabric.world_size == 1:
            self._save()
            raise Interrupted

    # -- validation and checkpoints ---------------------------------------------------------------

    @property
    def judged(self) -> nn.Module:
        """The weights that count: the averaged ones if there are any."""
        return self.components.net if self.components.ema is None else self.components.ema.module

    def _eval_forward(self, images: Tensor) -> Tensor:
        with self.fabric.autocast():
            return self.judged.eval()(images)

    def _validate(self) -> Result:
        # Every process has normed its own batches; all judge and save what the first has.
        self._sync_buffers()
        return self.task.validate(
            self._eval_forward,
            self.components.data.val_dataloader(),
            self.components.data,
            self.fabric.device,
            limit=self.train.limit_val_batches,
            after_batch=self._stop_while_validating,
            memory_format=self.layout,
        )

    def _sync_buffers(self) -> None:
        if self.fabric.world_size > 1:
            distribute_bn(self.components.net, self.fabric.world_size, reduce=False)
            if self.components.ema is not None:
                distribute_bn(self.components.ema.module, self.fabric.world_size, reduce=False)

    def _end_epoch(self, found: Result, rate: float) -> None:
        progress = self.progress
        total = self._loss_sum
        if self.fabric.world_size > 1:
            total = self.fabric.all_reduce(total, reduce_op="mean")
        train_loss = float(total) / self.batches  # type: ignore[arg-type]
        self.metrics = found.metrics()
        self._loss_sum.zero_()
        progress.epoch, progress.batch = progress.epoch + 1, 0
        better = found.score > progress.best
        if better:
            progress.best, progress.best_epoch = found.score, progress.epoch
        self._save(best=better)
        if better and self.folder is not None:
            self.task.draw(
                self.folder, self._eval_forward, self.components.data, self.fabric.device
            )
        lr = self.components.optimizer.param_groups[0]["lr"]
        row = {"train/loss": train_loss, "lr": lr, "images_per_s": round(rate, 1), **self.metrics}
        self._records.epoch(progress.epoch, progress.update, row)
        self.log.info(
            f"epoch {progress.epoch}/{self.train.epochs}: loss {train_loss:.4f}, lr {lr:.2e},"
            f" {rate:.0f} images/s; validation ({found.images} images): {found.words()}"
            + (" (best)" if better else "")
        )

    def _save(self, best: bool = False) -> None:
        """Write `last.ckpt`, and with `best` also `best.ckpt`."""
        content = self._content()
        weights = [*content["state_dict"].values(), *content.get("state_dict_ema", {}).values()]
        if not checkpoint.all_finite(weights):
            raise Diverged(self._diverged("weights are not finite"))
        if self.folder is not None:
            last = self.folder / "checkpoints" / "last.ckpt"
            checkpoint.save(content, last)
            if best:
                checkpoint.duplicate(last, last.with_name("best.ckpt"))
        self.fabric.barrier()

    def _content(self) -> dict[str, Any]:
        components = self.components
        sums = self.fabric.all_gather(self._loss_sum) if self.progress.batch else torch.zeros(0)
        self.progress.loss_sums = sums.flatten().tolist()  # type: ignore[union-attr]
        averaged = (
            {} if components.ema is None else {"state_dict_ema": components.ema.module.state_dict()}
        )
        return {
            **components.about,
            "state_dict": components.net.state_dict(),
            **averaged,
            "metrics": self.metrics,
            "progress": asdict(self.progress),
            "optimizer": components.optimizer.state_dict(),
            "scaler": self.precision.state_dict(),
            **({"loss": state} if (state := self._loss.state_dict()) else {}),
        }


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed every generator that a training step may draw from."""
    number = mix(seed, step, rank)
    torch.manual_seed(number)
    np.random.seed(number % 2**32)  # noqa: NPY002  # timm's Mixup draws from the global one
    random.seed(number)
