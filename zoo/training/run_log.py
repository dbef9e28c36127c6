"""What a run says when it starts, stops and ends, and how it continues."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.quoting import command_line
from zoo.training import run_folder
from zoo.training.interrupt import Interrupt


def log_start(
    logger: logging.Logger, folder: Path, loop: Any, about: dict[str, Any], resumed: Any
) -> None:
    """Log where the run is written, and what has changed if it is resumed."""
    progress = loop.progress
    if resumed is None:
        logger.info(f"run folder: {folder}")
        return
    logger.info(
        f"continuing {folder} after epoch {progress.epoch}, batch {progress.batch}"
        f" (update {progress.update})"
    )
    saved = resumed["config"]
    settings = about["config"]
    missing = [
        f"{group}.{key}" for group in saved for key in settings[group] if key not in saved[group]
    ]
    if missing:
        logger.warning(
            f"the checkpoint has no {', '.join(missing)}: an older version wrote it, or it was"
            " edited; the default is used"
        )
    before = loop.train.epochs if "train.epochs" in missing else saved["train"]["epochs"]
    if before != loop.train.epochs and loop.components.scheduler is not None:
        logger.warning(
            f"train.epochs changed from {before} to {loop.train.epochs}: from now on the learning"
            f" rate follows the schedule of {loop.train.epochs} epochs, so the run differs from one"
            " that was planned with them"
        )


def report_interruption(
    logger: logging.Logger, command: str, loop: Any, interrupt: Interrupt
) -> None:
    """Log how to continue the run."""
    progress = loop.progress
    name = "a signal" if interrupt.signal is None else interrupt.signal.name
    logger.warning(
        f"stopped by {name} in epoch {progress.epoch + 1}, after batch {progress.batch} of"
        f" {loop.batches}; continue with: {command}"
    )


def summary(folder: Path, loop: Any) -> str:
    """Return the last line of a run: its best score, and the next command."""
    progress = loop.progress
    if progress.best_epoch == 0:
        return f"no validation has a score; continue with: {_resume_command(folder)}"
    weights = {"weights": folder}
    best = (
        f"{best_score(loop)}; evaluate with: {command_line('eval', weights)}; export with:"
        f" {command_line('export', weights)}"
    )
    if progress.epoch < loop.train.epochs:
        return f"{best}; continue with: {_resume_command(folder, key_to_raise(loop.ended))}"
    return best


def best_score(loop: Any) -> str:
    """Return the best score in words."""
    progress = loop.progress
    if progress.best_epoch == 0:
        return "no validation has a score"
    score = loop.task.format_selection(progress.best, loop.train.best)
    return f"best {score} in epoch {progress.best_epoch}"


def key_to_raise(ended: str) -> dict[str, str]:
    """Return the setting that ended a run, to be raised by the user; none if there is none."""
    keys = ("train.patience", "train.max_time")
    return {key: "<more>" for key in keys if f"{key}=" in ended}


def command_to_continue(folder: Path, cell: run_folder.CellRun | None) -> str:
    return _resume_command(folder) if cell is None else cell.command


def _resume_command(folder: Path, more: Mapping[str, str] | None = None) -> str:
    words = [f"{key}={value}" for key, value in (more or {}).items()]
    return " ".join([command_line("train", {"train.resume": folder}), *words])
