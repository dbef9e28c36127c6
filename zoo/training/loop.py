"""The training loop: epochs of updates, validation and checkpoints; it can stop at any update.

Before each step, the generators of random numbers (for mixing, dropout and stochastic depth) are
seeded with seed, step and rank. A checkpoint therefore needs no generator state.
"""

import logging
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from timm.utils import dispatch_clip_grad, distribute_bn
from torch import Tensor, nn

from zoo.data.samplers import mix
from zoo.environment import is_out_of_memory
from zoo.errors import BadWeights, ZooError
from zoo.settings import TrainConfig
from zoo.training import checkpoint, restore
from zoo.training.components import Components, Progress
from zoo.training.divergence import Diverged, advice_on_divergence
from zoo.training.interrupt import Interrupt
from zoo.training.logs import MetricsLog, ProgressBar
from zoo.training.losses import Distillation, StoredDistillation
from zoo.training.stopping import TimeLimit, reason_to_end
from zoo.training.tasks import NotFinite, Result, get_task


class Interrupted(Exception):
    """A signal stopped the run; the last checkpoint continues it.

    Attributes:
        is_preemption: Whether it was SIGUSR1 in any process: the job should go on later.
    """

    def __init__(self, is_preemption: bool = False) -> None:
        self.is_preemption = is_preemption


class _OutOfTime(Exception):
    """`train.max_time` is over within an epoch; the last checkpoint continues the run."""


class Loop:
    """Trains a model from `progress` to the last epoch.

    Attributes:
        ended: Why the run ended before its last epoch; empty if it did not.
        is_lost: Returns whether another process trains the run now, so that this one should stop.

    Args:
        fabric: Devices, precision, processes.
        components: The model, its data, and everything needed to train it.
        train: The group `train` of the settings.
        folder: The run folder; None in all processes but the first.
        logger: The logger of training.
    """

    def __init__(
        self,
        fabric: Fabric,
        components: Components,
        train: TrainConfig,
        folder: Path | None,
        logger: logging.Logger,
    ):
        self.fabric, self.components, self.train = fabric, components, train
        self.folder, self.logger = folder, logger
        self.loader = components.data.train_dataloader()
        self.batches = min(len(self.loader), train.limit_train_batches or len(self.loader))
        self.updates_per_epoch = -(-self.batches // train.accumulate)
        self.progress = Progress(world_size=fabric.world_size)
        self.metrics: dict[str, float] = {}
        self.task = get_task(components.data.task)
        self.layout = torch.channels_last if train.channels_last else torch.contiguous_format
        self._loss_sum = torch.zeros((), device=fabric.device)
        self.ended = ""
        self.is_lost: Callable[[], bool] = lambda: False
        self._time = TimeLimit(train)
        self._interrupt = Interrupt()
        self._restored_from: Path | None = None  # until the first update
        second_order = getattr(components.optimizer, "is_second_order", False)  # timm's AdaHessian
        self._backward_args: dict[str, Any] = {"create_graph": True} if second_order else {}

    @property
    def precision(self) -> Any:
        """The precision plugin, which has the gradient scaler of fp16."""
        return self.fabric.strategy.precision

    @property
    def eval_model(self) -> nn.Module:
        """The model to evaluate: the one with averaged weights, if they are averaged."""
        return self.components.net if self.components.ema is None else self.components.ema.module

    @property
    def _base_loss(self) -> nn.Module:
        """The loss on the labels, which may have a state."""
        criterion = self.components.criterion
        kinds = (Distillation, StoredDistillation)
        return criterion.base if isinstance(criterion, kinds) else criterion

    def _states(self) -> dict[str, nn.Module]:
        """Return the models that a checkpoint keeps, by the name of its entry."""
        ema = self.components.ema
        averaged = {} if ema is None else {"state_dict_ema": ema.module}
        return {"state_dict": self.components.net, **averaged}

    def describe(self) -> list[str]:
        """Return lines that say what is trained, on which data, on which devices."""
        data, about = self.components.data, self.components.about
        parameters = list(self.components.net.parameters())
        trained = sum(p.numel() for p in parameters if p.requires_grad)
        return [
            data.describe(),
            f"{about['model']['name']}: {sum(p.numel() for p in parameters):,} parameters"
            f" ({trained:,} trained); {about['config']['data']['name']}:"
            f" {self.task.describe_output(data)}, {'x'.join(map(str, data.shape))},"
            f" {self.batches} batches per epoch; on {self.fabric.world_size} x"
            f" {self.fabric.device.type}, precision {self.train.precision}",
        ]

    def restore(self, content: dict[str, Any], path: Path) -> None:
        """Restore the state that a checkpoint saved.

        Raises:
            BadWeights: The state does not fit the run.
        """
        components = self.components
        self._check_position(Progress(**content["progress"]), path)
        components.method.check_resumed(content, path)
        for entry, module in self._states().items():
            rest = content.get("unmerged", {}).get(entry, {})
            state = components.method.joined_state(module, content.get(entry, {}), rest)
            restore.restore_module(module, state, entry, path)
        restore.restore_optimizer(components.optimizer, content["optimizer"], path)
        restore.restore_scaler(self.precision, content["scaler"], path)
        restore.restore_module(self._base_loss, content.get("loss", {}), "loss", path)
        restore.restore_method(components.method, content.get("method", {}), path)
        self._restored_from = path
        self.progress = Progress(**content["progress"])
        self.metrics = dict(content["metrics"])
        if self.progress.loss_sums:
            self._loss_sum.fill_(self.progress.loss_sums[self.fabric.global_rank])

    def _check_position(self, progress: Progress, path: Path) -> None:
        """Raise `BadWeights` unless the position fits the number of batches of an epoch."""
        updates = -(-progress.batch // self.train.accumulate)
        expected = progress.epoch * self.updates_per_epoch + updates
        if progress.batch > self.batches or progress.update != expected:
            raise BadWeights(
                f"{path} is after {progress.update} updates, epoch {progress.epoch} and batch"
                f" {progress.batch}, but the data has {self.batches} batches per epoch: the data"
                " changed, or the checkpoint is damaged; restore the data, or start a new run"
            )

    def save_start(self) -> None:
        """Save a checkpoint before the first update, so that a run killed at any time resumes."""
        self._save()

    def run(self, log: MetricsLog, bar: ProgressBar, interrupt: Interrupt) -> dict[str, float]:
        """Train to the last epoch and return the metrics of its validation.

        Raises:
            Diverged: The loss or a weight is NaN or infinite; no checkpoint has such weights.
            Interrupted: A signal arrived; a checkpoint was saved.
        """
        self._log, self._bar, self._interrupt = log, bar, interrupt
        self._time = TimeLimit(self.train, self.progress.seconds)
        while not self.ended and self.progress.epoch < (
            self.train.stop_at_epoch or self.train.epochs
        ):
            start, first = time.perf_counter(), self.progress.batch
            try:
                self._train_epoch()
            except _OutOfTime:
                self.ended = self._reason_to_end(is_over=True)
                break
            seconds = time.perf_counter() - start
            images = (self.batches - first) * self.train.batch_size * self.fabric.world_size
            result = self._validate()
            self._end_epoch(result, images / seconds)
            (is_over,) = self._in_any_process(self._time.is_over)
            self.ended = self._reason_to_end(is_over=is_over)
        return self.metrics

    def _reason_to_end(self, *, is_over: bool) -> str:
        progress = self.progress
        return reason_to_end(self.train, progress.epoch, progress.best_epoch, is_over=is_over)

    def _in_any_process(self, *flags: bool) -> list[bool]:
        """Return for each flag whether it is set in any of the processes."""
        if self.fabric.world_size == 1:
            return list(flags)
        numbers = torch.tensor([float(flag) for flag in flags], device=self.fabric.device)
        total: Any = self.fabric.all_reduce(numbers, reduce_op="sum")
        return [bool(number) for number in total.tolist()]

    # -- training ---------------------------------------------------------------------------------

    def _train_epoch(self) -> None:
        """Train on the remaining batches of the epoch."""
        progress, accumulate = self.progress, self.train.accumulate
        self._enter_train_mode()
        if progress.batch == self.batches:
            return
        self.loader.load_state_dict({"epoch": progress.epoch, "batch": progress.batch})
        last_time, last_batch = time.perf_counter(), progress.batch
        for index, (images, targets) in enumerate(self.loader, start=progress.batch):
            group = index // accumulate * accumulate
            size = min(accumulate, self.batches - group)
            completes_update = index + 1 == group + size
            loss = self._forward_backward(index, images, targets, size, completes_update)
            if not completes_update:
                continue
            self._checked_update()
            progress.batch, progress.update = index + 1, progress.update + 1
            is_last = progress.batch == self.batches
            if is_last or progress.update % self.train.log_every == 0:
                now = time.perf_counter()
                images_done = (progress.batch - last_batch) * len(images) * self.fabric.world_size
                self._log_step(loss, images_done / (now - last_time))
                last_time, last_batch = now, progress.batch
            else:
                self._show_progress()
            self._stop_if_interrupted()
            if is_last:
                break

    def _enter_train_mode(self) -> None:
        self.components.net.train()
        self.components.criterion.train()
        for norm in self.components.frozen_norms:
            norm.eval()
        if self.components.unfreezing is not None:
            self.components.unfreezing.start_epoch(self.progress.epoch)
        self.components.method.start_epoch(self.components.net, self.progress.update)
        mixing, off_epoch = self.components.mixing, self.train.mixup_off_epoch
        if mixing is not None and off_epoch and self.progress.epoch >= off_epoch:
            mixing.disable()

    def _forward_backward(
        self, index: int, images: Tensor, targets: Tensor, size: int, completes_update: bool
    ) -> Tensor:
        """Add the gradients of one batch, and return its loss.

        Args:
            index: Number of the batch in the epoch.
            images: N C H W.
            targets: Targets of the task.
            size: Number of batches of the update.
            completes_update: Whether this is the last batch of the update.
        """
        components, fabric = self.components, self.fabric
        step = self.progress.epoch * self.batches + index
        seed_step(self.train.seed, step, fabric.global_rank)
        images = images.to(fabric.device, non_blocking=True, memory_format=self.layout)
        targets = targets.to(fabric.device, non_blocking=True)
        if components.mixing is not None:
            images, targets = components.mixing(images, targets)
        forward: Any = components.forward
        with fabric.no_backward_sync(forward, enabled=not completes_update):
            outputs = forward(images)
            with fabric.autocast():
                if isinstance(components.criterion, Distillation):
                    loss = components.criterion(outputs, targets, images)
                elif isinstance(components.criterion, StoredDistillation):
                    keys = self.loader.batch_sampler.keys(self.progress.epoch, index)  # type: ignore[union-attr]
                    loss = components.criterion(outputs, targets, keys)
                else:
                    loss = components.criterion(outputs, targets)
            fabric.backward(loss / size, **self._backward_args)
            branches = iter(components.method.branches(components.net, images, outputs))
            while (branch := self._next_loss(branches)) is not None:
                fabric.backward(branch / size, **self._backward_args)
        loss = loss.detach().float()
        self._loss_sum += loss
        return loss

    def _next_loss(self, branches: Iterator[Tensor]) -> Tensor | None:
        """Return the next loss of the training method, or None after the last."""
        with self.fabric.autocast():
            return next(branches, None)

    def _checked_update(self) -> None:
        """Update; report a restored optimizer that does not fit, which its first update shows."""
        path, self._restored_from = self._restored_from, None
        try:
            self._update()
        except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
            if path is None or is_out_of_memory(error) or isinstance(error, ZooError):
                raise
            raise restore.misfit(error, path) from error

    def _update(self) -> None:
        """Clip the gradients, and update weights, learning rate and averaged weights."""
        components, train = self.components, self.train
        if train.clip_grad is not None:
            self.precision.unscale_gradients(components.optimizer)
            parameters = [p for p in components.clipped if p.grad is not None]
            dispatch_clip_grad(parameters, train.clip_grad, mode=train.clip_mode)
        update = self.progress.update + 1
        components.optimizer.step()
        components.method.after_update(components.net, update)
        components.optimizer.zero_grad()
        if components.scheduler is not None:
            components.scheduler.step_update(update)
        if components.ema is not None:
            components.ema.update(components.net, update)
            components.method.after_averaging(components.ema.module, update)

    # -- logging and stopping ---------------------------------------------------------------------

    def _log_step(self, loss: Tensor, rate: float) -> None:
        """Log the loss, averaged over processes; raise `Diverged` if it is not finite."""
        losses = torch.stack([loss, self._loss_sum])
        if self.fabric.world_size > 1:
            losses = self.fabric.all_reduce(losses, reduce_op="mean")
        latest, total = losses.tolist()  # type: ignore[union-attr]
        if not np.isfinite(total):
            raise self._diverged(f"the loss is {latest if latest != latest else total}")
        lr = self._lr()
        self._bar.show_values(latest, lr, rate)
        self._show_progress()
        self._log.log_update(
            self.progress.update, {"train/loss": latest, "train/lr": lr, "train/images_per_s": rate}
        )

    def _lr(self) -> float:
        """Return the highest learning rate: with layer decay, that of the last layer."""
        return max(float(group["lr"]) for group in self.components.optimizer.param_groups)

    def _show_progress(self) -> None:
        progress = self.progress
        done = progress.epoch * self.batches + progress.batch
        self._bar.show_progress(f"epoch {progress.epoch + 1}/{self.train.epochs}", done)

    def _diverged(self, reason: str) -> Diverged:
        """Return the error for a loss or weights that are not finite."""
        kept = "none"
        if self.folder is not None and (last := self.folder / "checkpoints/last.ckpt").exists():
            kept = str(last)
        epoch = self.progress.epoch + (self.progress.batch > 0)
        return Diverged(
            f"{reason} in epoch {epoch}, after update {self.progress.update}; training stopped"
            f" (last good checkpoint: {kept}). {advice_on_divergence(self.components.data)}"
        )

    def _stop_if_interrupted(self) -> None:
        """After an update, save and raise an error if a signal arrived, or the time is over."""
        is_last = self.progress.batch == self.batches
        is_due = is_last or self.progress.update % self.train.log_every == 0
        if self.fabric.world_size > 1 and not is_due:
            return  # communication takes time
        is_interrupted, is_preemption, is_over = self._in_any_process(
            self._interrupt.signal is not None or self.is_lost(),
            self._interrupt.is_preemption,
            self._time.is_over,
        )
        if is_interrupted:
            self._save()
            raise Interrupted(is_preemption)
        if is_over and not is_last:  # a complete epoch is validated first
            self._save()
            raise _OutOfTime

    def _stop_while_validating(self) -> None:
        """After a validation batch of a single process, stop if it received a signal."""
        is_stopped = self._interrupt.signal is not None or self.is_lost()
        if is_stopped and self.fabric.world_size == 1:
            self._save()
            raise Interrupted(self._interrupt.is_preemption)

    # -- validation and checkpoints ---------------------------------------------------------------

    def _eval_forward(self, images: Tensor) -> Tensor:
        with self.fabric.autocast():
            return self.eval_model.eval()(images)

    def _validate(self) -> Result:
        # The statistics of batch norms differ between processes: use those of the first process.
        self._sync_buffers()
        try:
            return self.task.validate(
                self._eval_forward,
                self.components.data.val_dataloader(),
                self.components.data,
                self.fabric.device,
                limit=self.train.limit_val_batches,
                after_batch=self._stop_while_validating,
                memory_format=self.layout,
            )
        except NotFinite as error:
            finite = checkpoint.all_finite(self.eval_model.state_dict().values())
            reason = f"validation: {error}" if finite else "the weights are not finite"
            raise self._diverged(reason) from error

    def _sync_buffers(self) -> None:
        """Copy the buffers of the first process to the others."""
        if self.fabric.world_size > 1:
            distribute_bn(self.components.net, self.fabric.world_size, reduce=False)
            if self.components.ema is not None:
                distribute_bn(self.components.ema.module, self.fabric.world_size, reduce=False)

    def _end_epoch(self, result: Result, rate: float) -> None:
        """Save checkpoints, and log the epoch."""
        progress = self.progress
        total = self._loss_sum
        if self.fabric.world_size > 1:
            total = self.fabric.all_reduce(total, reduce_op="mean")
        train_loss = float(total) / self.batches  # type: ignore[arg-type]
        self.metrics = result.metrics()
        self._loss_sum.zero_()
        progress.epoch, progress.batch = progress.epoch + 1, 0
        score = self.task.selection_score(result, self.train.best)
        is_best = score > progress.best or (progress.best_epoch == 0 and score == score)
        if is_best:
            progress.best, progress.best_epoch = score, progress.epoch
        lr = self._lr()
        row = {"train/loss": train_loss, "lr": lr, "images_per_s": round(rate, 1), **self.metrics}
        # First the table: a resumed run drops a row that is newer than its checkpoint.
        self._log.log_epoch(progress.epoch, progress.update, row)
        self._save(is_best=is_best)
        if is_best and self.folder is not None:
            components = self.components
            name = components.about["model"]["name"]
            title = (
                f"{name} on {components.data.config.name}, epoch {progress.epoch},"
                f" {self.task.format_selection(score, self.train.best)}"
            )
            self.task.draw(
                self.folder, self._eval_forward, components.data, self.fabric.device, title
            )
        self.logger.info(
            f"epoch {progress.epoch}/{self.train.epochs}: loss {train_loss:.4f}, lr {lr:.2e},"
            f" {rate:.0f} images/s; validation ({result.images} images): {result.summary()}"
            + (" (best)" if is_best else "")
        )

    def _save(self, is_best: bool = False) -> None:
        """Write `last.ckpt`, and `best.ckpt` if this epoch is the best.

        Raises:
            Diverged: A weight is NaN or infinite; nothing is written.
        """
        content = self._checkpoint_content()
        weights = [*content["state_dict"].values(), *content.get("state_dict_ema", {}).values()]
        if not checkpoint.all_finite(weights):
            raise self._diverged("the weights are not finite")
        if self.folder is not None:
            last = self.folder / "checkpoints" / "last.ckpt"
            checkpoint.save(content, last)
            if is_best:
                checkpoint.duplicate(last, last.with_name("best.ckpt"))
        self.fabric.barrier()

    def _checkpoint_content(self) -> dict[str, Any]:
        components = self.components
        sums = self.fabric.all_gather(self._loss_sum) if self.progress.batch else torch.zeros(0)
        self.progress.seconds = self._time.used
        self.progress.loss_sums = sums.flatten().tolist()  # type: ignore[union-attr]
        states, unmerged = {}, {}
        for entry, module in self._states().items():
            states[entry], rest = components.method.split_state(module)
            unmerged |= {entry: rest} if rest else {}
        return {
            **components.about,
            **states,
            **({"unmerged": unmerged} if unmerged else {}),
            "metrics": self.metrics,
            "progress": asdict(self.progress),
            "optimizer": components.optimizer.state_dict(),
            "scaler": self.precision.state_dict(),
            **({"loss": state} if (state := self._base_loss.state_dict()) else {}),
            **({"method": state} if (state := components.method.state_dict()) else {}),
        }


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed all generators that a training step may use."""
    number = mix(seed, step, rank)
    torch.manual_seed(number)
    np.random.seed(number % 2**32)  # noqa: NPY002  # timm's Mixup uses the global generator
    random.seed(number)
