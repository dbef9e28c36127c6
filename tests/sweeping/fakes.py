"""A sweep whose training is arithmetic: it has checkpoints, and continues exactly."""

import json
import os
from pathlib import Path

from zoo.sweeping.cells import Cell
from zoo.sweeping.lease import Claims, Turn
from zoo.sweeping.worker import work

EPOCHS = 2


def cell(sweep: Path, seed: int = 0, lr: float = 0.1, fold: int | None = None, **train) -> Cell:
    """Return a cell with these settings."""
    data = {"name": "digits", "fold": fold, "folds": None if fold is None else 3}
    groups = {"model": {"name": "m"}, "data": data, "train": {"seed": seed, "lr": lr, **train}}
    return Cell(sweep, groups, ("train.lr",))


def train(one: Cell, turn: Turn, resumes: bool) -> dict:
    """Train: each epoch depends on the last, and a checkpoint is written after each."""
    folder = turn.run_folder
    last = folder / "checkpoints" / "last.ckpt"
    epoch, value = json.loads(last.read_text()) if resumes else (0, one.seed)
    if not resumes:
        last.parent.mkdir(parents=True)
    while epoch < EPOCHS:
        epoch, value = epoch + 1, (31 * value + 7 + round(100 * one.settings["train"]["lr"])) % 97
        with (folder / "metrics.csv").open("a") as file:
            file.write(f"{epoch},{value}\n")
        partial = last.with_name(".partial")
        partial.write_text(json.dumps([epoch, value]))
        os.replace(partial, last)
    return {"outcome": "finished", "metrics": {"val/top1": value / 97}, "epochs": epoch}


def run(sweep: Path, trainer=train, **options) -> int:
    """Work on a sweep until it is finished; return the seconds that a pretended clock waited."""
    seconds = [0]

    def pause():
        seconds[0] += 2

    claims = Claims(beat=1000.0, clock=lambda: seconds[0])
    options = {"claims": claims, "pause": pause, "report": lambda line: None} | options
    work(sweep, trainer, **options)
    return seconds[0]


def tables(sweep: Path) -> dict[str, bytes]:
    """Return the tables of a sweep."""
    return {n: (sweep / n).read_bytes() for n in ("cells.csv", "table.csv", "table.md")}
