"""`train`: train a model with resolved settings, and write a run folder."""

import contextlib
import dataclasses
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from rich.console import Console

from zoo.data import holdout
from zoo.errors import BadInput, folder_noted
from zoo.progress import phase
from zoo.settings import TrainConfig, TrainRun
from zoo.training import (
    builders,
    checkpoint,
    dry_run,
    logs,
    run_data,
    run_folder,
    run_pictures,
    slurm,
    trackers,
)
from zoo.training.assembly import build_components
from zoo.training.components import Components
from zoo.training.disk import sole_writer
from zoo.training.faults import report_machine_faults
from zoo.training.interrupt import EXIT_CODES, Interrupt
from zoo.training.launch import launch
from zoo.training.loop import Interrupted, Loop
from zoo.training.method import TrainingMethod
from zoo.training.run_log import (
    best_score,
    command_to_continue,
    key_to_raise,
    log_start,
    report_interruption,
    summary,
)
from zoo.training.stopping import TimeLimit, reason_to_end
from zoo.training.trials import find_lr, with_batch_size


def train(
    run: TrainRun,
    resumed: dict[str, Any] | None = None,
    method: TrainingMethod | None = None,
    *,
    normalisation: Mapping[str, Any] | None = None,
    cell: run_folder.CellRun | None = None,
) -> run_folder.TrainedRun | None:
    """Train a model, and log the progress.

    Args:
        run: The resolved settings.
        resumed: The content of the checkpoint to continue from, and its `path`.
        method: The training method; None for ordinary training.
        normalisation: `mean`, `std` and `channel_order` that the run of the initial weights used;
            None if unknown.
        cell: The run of a sweep; None for a new run in `train.out`.

    Returns:
        The run folder, and its best score; None after a dry run.

    Raises:
        ZooError: A setting is invalid (nothing was written), or training diverged.
        SystemExit: Ctrl-C, SIGTERM or SIGUSR1; the run can be resumed.
    """
    planned = run.train
    for name in planned.loggers:
        trackers.check_installed(name)
    if planned.dry_run:
        run = dataclasses.replace(run, train=dry_run.shortened(planned))
    with (
        Interrupt() as interrupt,
        _determinism(run.train.deterministic),
        report_machine_faults(memory=_MORE_MEMORY, loader=_FEWER_WORKERS),
    ):
        fabric = launch(run.train, alone=cell is not None)
        console = logs.make_console()
        logger = logs.make_logger(console, fabric.is_global_zero)
        with logs.data_warnings(console):
            with phase("opening the data"):
                data = builders.build_data(run, fabric, normalisation)
                run = builders.with_image_size(run, data)
                if resumed is not None:
                    run_data.check_unchanged(resumed, data, resumed["path"])
            method = method or TrainingMethod()
            if run.train.batch_size == "auto":
                run = with_batch_size(run, data, fabric, logger, interrupt)
                planned = dataclasses.replace(planned, batch_size=run.train.batch_size)
            with phase(f"building {run.model.name}"):
                components = build_components(
                    run, data, fabric, logger, resumed is not None, method
                )
            if planned.dry_run:
                loop = Loop(fabric, components, run.train, None, logger)
                dry_run.execute(loop, planned, interrupt)
                return None
            if planned.find_lr:
                find_lr(run, components, fabric, logger, interrupt)
                return None
            return _train(run, components, fabric, console, logger, resumed, interrupt, cell)


_MORE_MEMORY = (
    "lower train.batch_size (train.accumulate=2 keeps the images per update), data.image_size or"
    " data.num_workers"
)
_FEWER_WORKERS = "use fewer processes: data.num_workers=<fewer, 0 for none>"


def _kept(folder: Path, command: str) -> str:
    """Return how a run continues after a fault of the machine."""
    if not (folder / "checkpoints" / "last.ckpt").exists():
        return "no checkpoint was written"
    return f"the last checkpoint is intact: continue with {command}"


def _train(
    run: TrainRun,
    components: Components,
    fabric: Fabric,
    console: Console,
    logger: logging.Logger,
    resumed: dict[str, Any] | None,
    interrupt: Interrupt,
    cell: run_folder.CellRun | None,
) -> run_folder.TrainedRun:
    resumed_folder = None
    if resumed is not None:
        _check_progress(resumed["progress"], fabric.world_size, run.train, resumed["path"])
        resumed_folder = checkpoint.folder_of(resumed["path"])
    folder = _agree_on_folder(fabric, run, resumed_folder, cell)
    own_folder = folder if fabric.is_global_zero else None
    with contextlib.ExitStack() as stack:
        stack.enter_context(folder_noted(folder))
        if own_folder is not None:
            stack.enter_context(sole_writer(own_folder))
        loop = Loop(fabric, components, run.train, own_folder, logger)
        if cell is not None:
            loop.is_lost = cell.is_lost
        if resumed is not None:
            loop.restore(resumed, resumed["path"])
        stack.enter_context(
            report_machine_faults(
                memory=_MORE_MEMORY,
                loader=_FEWER_WORKERS,
                folder=folder,
                kept=lambda: _kept(folder, command_to_continue(folder, cell)),
            )
        )
        if own_folder is not None:
            run_folder.describe(own_folder, _used_settings(components))
            if resumed is None and (halves := components.data.split_keys()) is not None:
                holdout.write(own_folder, halves)
        return _run_loop(run, loop, console, logger, resumed, interrupt, folder, cell)


def _used_settings(components: Components) -> dict[str, Any]:
    """Return the settings with the values that replaced null in the groups `model` and `data`."""
    config, model = components.about["config"], components.about["model"]
    used = {key: value for key, value in model.items() if key in config["model"]}
    data = dataclasses.asdict(components.data.config)
    return {**config, "model": config["model"] | used, "data": data}


def _run_loop(
    run: TrainRun,
    loop: Loop,
    console: Console,
    logger: logging.Logger,
    resumed: dict[str, Any] | None,
    interrupt: Interrupt,
    folder: Path,
    cell: run_folder.CellRun | None,
) -> run_folder.TrainedRun:
    own_folder, progress = loop.folder, loop.progress
    loggers, settings = run.train.loggers, loop.components.about["config"]
    log = logs.MetricsLog(own_folder, loggers, progress.epoch, progress.update, settings)
    pictured = own_folder if "pictures" in loggers else None
    total = loop.batches * run.train.epochs
    done = loop.batches * progress.epoch + progress.batch
    has_bar = run.train.progress and own_folder is not None
    with (
        contextlib.closing(log),
        logs.copied_to_file(logger, None if own_folder is None else own_folder / "train.log"),
        logs.ProgressBar(console, total, done, has_bar) as bar,
    ):
        for line in loop.describe():
            logger.info(line)
        log_start(logger, folder, loop, loop.components.about, resumed)
        if resumed is None:
            loop.save_start()
            if pictured is not None and (first := run_pictures.draw_batch(pictured, loop)):
                log.log_picture(first, 0)
        try:
            loop.run(log, bar, interrupt)
        except Interrupted as stop:
            command = command_to_continue(folder, cell)
            report_interruption(logger, command, loop, interrupt)
            if stop.is_preemption:
                if own_folder is not None:
                    logger.warning(slurm.requeue())
                loop.fabric.barrier()  # SLURM may end a job whose first process ends
            sys.exit(EXIT_CODES.get(interrupt.signal, 1) if interrupt.signal is not None else 1)
        if pictured is not None and (curves := run_pictures.draw_curves(pictured)):
            log.log_picture(curves, progress.update)
        if loop.ended:
            logger.info(f"ended after epoch {progress.epoch}: {loop.ended}")
        logger.info(summary(folder, loop) if cell is None else best_score(loop))
    return run_folder.TrainedRun(folder, progress.best)


def _check_progress(
    progress: dict[str, Any], world_size: int, train: TrainConfig, path: Path
) -> None:
    """Raise `BadInput` unless the run can continue with `world_size` processes."""
    if progress["world_size"] != world_size:
        raise BadInput(
            f"{path} was trained with {progress['world_size']} processes; resume with"
            f" {progress['world_size']} (got {world_size}), otherwise the data order changes"
        )
    if progress["epoch"] >= train.epochs:
        raise BadInput(
            f"the run of {path} has finished its {progress['epoch']} epochs; give"
            f" train.epochs=<more than {progress['epoch']}> to continue it"
        )
    used, best_epoch = progress.get("seconds", 0.0), progress["best_epoch"]
    is_over = TimeLimit(train, used).is_over
    if reason := reason_to_end(train, progress["epoch"], best_epoch, is_over=is_over):
        (key,) = key_to_raise(reason)
        raise BadInput(
            f"the run of {path} has ended after {progress['epoch']} epochs ({reason}); give"
            f" {key}=<more> to continue it"
        )
    if train.stop_at_epoch is not None and progress["epoch"] >= train.stop_at_epoch:
        raise BadInput(
            f"train.stop_at_epoch={train.stop_at_epoch} has no effect: the run of {path} has"
            f" completed {progress['epoch']} epochs; give a higher one, or leave it out"
        )


def _agree_on_folder(
    fabric: Fabric, run: TrainRun, resumed: Path | None, cell: run_folder.CellRun | None
) -> Path:
    """Return the folder of the resumed run, or a new one that the first process creates."""
    if resumed is not None:
        return resumed
    if cell is not None:
        (cell.folder / "checkpoints").mkdir(parents=True)
        return cell.folder
    created: Any = None
    if fabric.is_global_zero:
        try:
            created = run_folder.create(run.train.out, run.model.name)
        except BadInput as error:  # raised below, in every process
            created = error
    created = fabric.broadcast(created)
    if isinstance(created, BadInput):
        raise created
    return created


@contextlib.contextmanager
def _determinism(enabled: bool) -> Iterator[None]:
    """Inside the context, raise an error for operators that are not reproducible."""
    if not enabled:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by cuBLAS
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
