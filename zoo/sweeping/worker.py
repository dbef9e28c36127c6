"""A worker of a sweep: takes one cell after another until all are finished.

A cell is finished when its run folder is renamed into `<sweep>/runs`, which happens once and at
once. Before that, everything that a worker writes is in the folder of its turn, so a worker may be
killed anywhere: the next turn copies what the last checkpoint needs, and continues from it.
"""

import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from zoo.errors import ZooError, first_line
from zoo.sweeping.cells import RESULT, Cell, cells_of
from zoo.sweeping.lease import Claims, Turn, last_turn
from zoo.sweeping.table import write_tables
from zoo.training import slurm
from zoo.training.checkpoint import duplicate
from zoo.training.disk import atomic_file
from zoo.training.faults import MachineFault
from zoo.training.interrupt import EXIT_CODES, Interrupt

PAUSE = 2.0  # seconds between looks at cells that others train

Train = Callable[[Cell, Turn, bool], Mapping[str, Any]]
"""Trains a cell in its turn, from the start or from a checkpoint; returns its result."""

log = logging.getLogger("zoo.train")


class CellsFailed(ZooError):
    """Some cells of a sweep could not be trained by this worker."""


def work(
    sweep: Path,
    train: Train,
    *,
    claims: Claims | None = None,
    pause: Callable[[], None] = lambda: time.sleep(PAUSE),
    report: Callable[[str], None] = print,
) -> None:
    """Train the cells of a sweep until all are finished, and write its tables.

    Args:
        sweep: The folder of the sweep, which has cells.
        train: Trains a cell.
        claims: What this worker knows of the others; None for a new worker.
        pause: Waits while other workers train all cells that are left.
        report: Prints a line.

    Raises:
        CellsFailed: Some cells cannot be trained here; all others are finished.
        MachineFault: This machine has too little memory or disk; other workers may go on.
        SystemExit: Ctrl-C, SIGTERM or SIGUSR1; any worker can continue the cell at once.
    """
    with Interrupt() as interrupt:
        _work(sweep, train, claims or Claims(), pause, report, interrupt)


def _work(
    sweep: Path,
    train: Train,
    claims: Claims,
    pause: Callable[[], None],
    report: Callable[[str], None],
    interrupt: Interrupt,
) -> None:
    failed: dict[Path, str] = {}
    is_waiting = False
    while True:
        cells = cells_of(sweep)
        left = [cell for cell in cells if not cell.is_finished()]
        todo = [cell for cell in left if cell.folder not in failed]
        if not todo:
            break
        _stop_if_interrupted(interrupt, report)
        took_any = False
        for cell in todo:
            turn = None if cell.is_finished() else claims.claim(cell.folder)
            if turn is None:
                continue
            took_any, is_waiting = True, False
            done = len(cells) - len(left)
            report(f"cell {cell.setting}/{cell.name} ({done} of {len(cells)} are finished)")
            try:
                _take(cell, turn, train, report)
            except MachineFault:
                raise
            except ZooError as error:
                failed[cell.folder] = first_line(error)
                report(f"error: {cell.setting}/{cell.name}: {first_line(error)}")
            write_tables(sweep)
            break
        if not took_any:
            if not is_waiting:
                report(f"waiting for {len(todo)} cells that other workers train")
            is_waiting = True
            pause()
    write_tables(sweep)
    if failed:
        folder, reason = next(iter(failed.items()))
        raise CellsFailed(
            f"{len(failed)} of {len(cells)} cells could not be trained here; the first is {folder}:"
            f" {reason}"
        )


def _stop_if_interrupted(interrupt: Interrupt, report: Callable[[str], None]) -> None:
    """Exit if a signal came between two cells."""
    if interrupt.signal is None:
        return
    if interrupt.is_preemption:
        report(slurm.requeue())
    sys.exit(EXIT_CODES[interrupt.signal])


def _take(cell: Cell, turn: Turn, train: Train, report: Callable[[str], None]) -> None:
    """Train a cell in its turn, and publish the run."""
    try:
        if cell.is_finished():  # since it was listed
            return
        can_continue = _continue_from_earlier_turn(turn)
        result = dict(train(cell, turn, can_continue))
        _publish(cell, turn, result)
        report(f"{result['outcome']}: {cell.finished}")
    except (SystemExit, ZooError):
        if not turn.is_lost:
            raise
        report(f"another worker has taken over {cell.setting}/{cell.name}")
    finally:
        turn.give_back()


def _continue_from_earlier_turn(turn: Turn) -> bool:
    """Copy the newest run with a checkpoint to the folder of this turn; return whether one is."""
    for number in range(turn.number - 1, 0, -1):
        earlier = turn.folder / str(number)
        if not (earlier / "checkpoints" / "last.ckpt").exists():
            continue
        copy = turn.folder / f"{turn.number}.part"
        (copy / "checkpoints").mkdir(parents=True)
        # The checkpoint first: what is copied later may be newer, and the run drops what is too
        # new. The worker of the earlier turn may be alive.
        names = [Path("checkpoints/last.ckpt"), Path("checkpoints/best.ckpt")]
        names += [path.relative_to(earlier) for path in sorted(earlier.rglob("*"))]
        for name in dict.fromkeys(names):
            source, target = earlier / name, copy / name
            if name.name.startswith(".") or not source.is_file():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.suffix == ".ckpt":  # never changed in place
                duplicate(source, target)
            else:
                shutil.copyfile(source, target)
        os.rename(copy, turn.run_folder)
        return True
    return False


def _publish(cell: Cell, turn: Turn, result: Mapping[str, Any]) -> None:
    """Move the finished run to its final folder, unless another worker was faster."""
    with atomic_file(turn.run_folder / RESULT, "w", encoding="utf-8") as file:
        json.dump(result, file, indent=1, sort_keys=True)
    cell.finished.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.rename(turn.run_folder, cell.finished)
    except OSError:
        if not cell.is_finished():
            raise
    for number in range(1, last_turn(cell.folder) + 1):
        for folder in (cell.folder / str(number), cell.folder / f"{number}.part"):
            shutil.rmtree(folder, ignore_errors=True)
