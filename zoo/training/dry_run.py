"""`train.dry_run`: one update and one validation batch, to try the settings in seconds."""

import dataclasses
import sys
from typing import Any

from zoo.settings import TrainConfig
from zoo.training import logs
from zoo.training.interrupt import EXIT_CODES, Interrupt
from zoo.training.loop import Interrupted, Loop


def shortened(train: TrainConfig) -> TrainConfig:
    """Return the settings of a run of one update and one validation batch."""
    batches = min(train.accumulate, train.limit_train_batches or train.accumulate)
    return dataclasses.replace(
        train,
        limit_train_batches=batches,
        limit_val_batches=1,
        stop_at_epoch=1,
        max_time=None,
        loggers=[],
    )


def step(loop: Loop, interrupt: Interrupt, log: Any = None) -> None:
    """Run a loop without a folder.

    Args:
        loop: Made from the settings of `shortened`, without a folder.
        interrupt: Notes the signals of the process.
        log: Receives the metrics, like `MetricsLog`; None to drop them.

    Raises:
        SystemExit: A signal arrived.
    """
    log = log or logs.MetricsLog(None, [], 0, 0)
    with logs.ProgressBar(logs.make_console(), loop.batches, 0, False) as bar:
        try:
            loop.run(log, bar, interrupt)
        except Interrupted:
            sys.exit(EXIT_CODES[interrupt.signal] if interrupt.signal else 1)


def execute(loop: Loop, planned: TrainConfig, interrupt: Interrupt) -> None:
    """Run the update and the validation batch, and print what a run would train.

    Args:
        loop: Made from the settings of `shortened`, without a folder.
        planned: The settings before `shortened`.
        interrupt: Notes the signals of the process.
    """
    for line in loop.describe():
        loop.logger.info(line)
    step(loop, interrupt)
    batches = min(len(loop.loader), planned.limit_train_batches or len(loop.loader))
    updates = -(-batches // planned.accumulate) * planned.epochs
    images = planned.batch_size * planned.accumulate * loop.fabric.world_size
    loop.logger.info(
        "dry run: one update and one validation batch succeeded, and nothing was kept. The run:"
        f" {planned.epochs} epochs of {batches} batches, {updates} updates of {images} images"
    )
