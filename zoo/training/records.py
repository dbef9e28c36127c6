"""What a run tells: a progress bar, lines in the terminal and in `train.log`, CSV, TensorBoard."""

import csv
import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Bar:
    """The progress of the whole run: epoch, loss, learning rate, images/s, time left.

    Shown only in a terminal; elsewhere a line an epoch says the same.
    """

    def __init__(self, console: Console, total: int, done: int, shown: bool):
        """Open the bar.

        Args:
            console: Where to draw.
            total: Batches of the whole run.
            done: Batches that an earlier session of the run did.
            shown: False draws nothing.
        """
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[values]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not (shown and console.is_terminal),
        )
        self._task = self._progress.add_task("training", total=total, completed=done, values="")

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, what: str, done: int) -> None:
        """Set the description and the number of batches done."""
        self._progress.update(self._task, description=what, completed=done)

    def values(self, loss: float, lr: float, rate: float) -> None:
        """Show loss, learning rate and images/s."""
        text = f"loss {loss:.4f}  lr {lr:.2e}  {rate:.0f} images/s"
        self._progress.update(self._task, values=text)


class Table:
    """`metrics.csv`: one row an epoch. A continued run drops the rows that it computes again."""

    def __init__(self, path: Path, first_epoch: int):
        """Open the file; rows of `first_epoch` and later are dropped."""
        self._path, self._rows = path, []
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                self._rows = [
                    row for row in csv.DictReader(file) if int(row["epoch"]) <= first_epoch
                ]

    def add(self, row: dict[str, Any]) -> None:
        """Append a row and write the file."""
        self._rows.append(row)
        columns = list(dict.fromkeys(key for row in self._rows for key in row))
        temporary = self._path.with_suffix(".part")
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self._rows)
        temporary.replace(self._path)


class Records:
    """The files that numbers go to. On other ranks than the first it does nothing."""

    def __init__(self, folder: Path | None, loggers: Iterable[str], epoch: int, update: int):
        """Open what `loggers` names.

        Args:
            folder: The run folder; None: write nothing.
            loggers: `"csv"`, `"tensorboard"`.
            epoch: Epochs that are done; what was recorded after is dropped.
            update: Updates that are done.
        """
        self._table = self._board = None
        if folder is not None and "csv" in loggers:
            self._table = Table(folder / "metrics.csv", epoch)
        if folder is not None and "tensorboard" in loggers:
            from torch.utils.tensorboard import SummaryWriter

            purge = update + 1 if update else None
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)

    def step(self, update: int, values: dict[str, float]) -> None:
        """Record numbers of one update."""
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, update)

    def epoch(self, epoch: int, update: int, values: dict[str, float]) -> None:
        """Record numbers of a whole epoch, counted from 1."""
        if self._table is not None:
            self._table.add({"epoch": epoch, "update": update, **values})
        self.step(update, {f"epoch/{name}": value for name, value in values.items()})

    def close(self) -> None:
        """Write what is still in memory."""
        if self._board is not None:
            self._board.close()


def make_logger(console: Console, first: bool) -> logging.Logger:
    """Return the logger of training; only the first process prints what is no warning."""
    logger = logging.getLogger("zoo.train")
    logger.handlers.clear()
    logger.propagate = False
    logger.setLevel(logging.INFO if first else logging.WARNING)
    logger.addHandler(_ConsoleHandler(console))
    return logger


@contextmanager
def kept_in(logger: logging.Logger, file: Path | None) -> Iterator[None]:
    """Write the lines of `logger` to `file` too, after those of earlier sessions."""
    if file is None:
        yield
        return
    handler = logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


def make_console() -> Console:
    """Return a console on the standard output."""
    return Console(file=sys.stdout, soft_wrap=True, highlight=False)


class _ConsoleHandler(logging.Handler):
    """Prints above the progress bar."""

    def __init__(self, console: Console):
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        self._console.print(prefix + self.format(record), markup=False)
