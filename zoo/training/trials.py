"""Short trials before a run: the largest batch that fits, and the range of learning rates."""

import contextlib
import dataclasses
import logging

import torch
from lightning.fabric import Fabric

from zoo.data.datamodule import ImageData
from zoo.environment import is_out_of_memory
from zoo.errors import BadInput
from zoo.progress import phase
from zoo.settings import TrainRun
from zoo.training import batch_size, dry_run, lr_range, optim
from zoo.training.assembly import build_components
from zoo.training.components import Components
from zoo.training.divergence import Diverged
from zoo.training.interrupt import Interrupt
from zoo.training.loop import Loop
from zoo.training.method import TrainingMethod


def with_batch_size(
    run: TrainRun, data: ImageData, fabric: Fabric, logger: logging.Logger, interrupt: Interrupt
) -> TrainRun:
    """Return the settings with the largest batch size that fits instead of `auto`."""
    if fabric.world_size > 1:
        raise BadInput(
            "train.batch_size=auto is not supported with several processes; give a number"
        )
    if data.streaming:
        raise BadInput("train.batch_size=auto needs a list of images, not shards; give a number")
    images = len(data.source("train"))
    quiet = logging.getLogger("zoo.train.attempts")
    quiet.propagate, quiet.disabled = False, True

    def sized(size: int) -> TrainRun:
        data.batch_size = data.eval_batch_size = size
        return dataclasses.replace(run, train=dataclasses.replace(run.train, batch_size=size))

    def attempt(size: int) -> None:
        tried = sized(size)
        short = dataclasses.replace(tried, train=dry_run.shortened(tried.train))
        parts = build_components(short, data, fabric, quiet, False, TrainingMethod())
        dry_run.step(Loop(fabric, parts, short.train, None, quiet), interrupt)

    on_gpu = fabric.device.type == "cuda"  # reports too little memory as an error
    with phase("finding the batch size"):
        size, why = batch_size.find(
            images,
            attempt,
            is_out_of_memory,
            (lambda: 0.0) if on_gpu else batch_size.peak_memory,
            batch_size.free_memory,
        )
    if on_gpu:
        torch.cuda.empty_cache()
    logger.info(f"train.batch_size=auto: {size} images ({why})")
    return sized(size)


def find_lr(
    run: TrainRun,
    components: Components,
    fabric: Fabric,
    logger: logging.Logger,
    interrupt: Interrupt,
) -> None:
    """Run the range test, draw it, and print the suggested learning rate."""
    train = dataclasses.replace(
        run.train,
        epochs=lr_range.UPDATES,
        limit_val_batches=1,
        log_every=1,
        stop_at_epoch=None,
        patience=None,
        max_time=None,
        freeze_epochs=None,
    )
    images = train.batch_size * train.accumulate * fabric.world_size
    factor = optim.scaled_lr(train, images) / train.lr
    components.scheduler = lr_range.RangeSchedule(components.optimizer, factor)
    log = lr_range.RangeLog()
    loop = Loop(fabric, components, train, None, logger)
    with contextlib.suppress(lr_range.Enough, Diverged):
        dry_run.step(loop, interrupt, log)
    chosen = lr_range.suggestion(log.rates, log.losses)
    chosen = None if chosen is None else lr_range.rounded(chosen)
    if not log.losses:
        raise BadInput("train.find_lr: the loss is not finite from the start; check the data")
    if fabric.is_global_zero:
        folder = lr_range.write(train.out, run.model.name, log, chosen)
        text = (
            "the loss never falls; check the data and the settings"
            if chosen is None
            else f"the loss falls fastest at train.lr={chosen:g}; choose it or a lower one"
        )
        logger.info(f"{len(log.losses)} updates: {text}. The picture: {folder / 'lr_range.png'}")
