"""Output of a run: progress bar, log lines in terminal and `train.log`, CSV, trackers."""

import csv
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
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

from zoo.errors import BadInput, first_line
from zoo.training import trackers
from zoo.training.disk import atomic_file


class ProgressBar:
    """The progress of the whole run: epoch, loss, learning rate, images/s, remaining time.

    It is only shown in a terminal; elsewhere, the log has a line for each epoch.
    """

    def __init__(self, console: Console, total: int, done: int, enabled: bool):
        """Create the bar; entering the context shows it.

        Args:
            console: The console to draw on.
            total: Batches of the whole run.
            done: Batches completed before this run was resumed.
            enabled: Whether to draw anything.
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
            disable=not (enabled and console.is_terminal),
        )
        self._task = self._progress.add_task("training", total=total, completed=done, values="")

    def __enter__(self) -> "ProgressBar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show_progress(self, description: str, done: int) -> None:
        """Show the description and the number of completed batches."""
        self._progress.update(self._task, description=description, completed=done)

    def show_values(self, loss: float, lr: float, rate: float) -> None:
        """Show loss, learning rate and images/s."""
        text = f"loss {loss:.4f}  lr {lr:.2e}  {rate:.0f} images/s"
        self._progress.update(self._task, values=text)


class MetricsTable:
    """The file `metrics.csv`, with one row for each epoch.

    Lightning's `CSVLogger` cannot continue a file: it deletes the file of the resumed run. This
    class keeps the rows up to the resumed epoch, and replaces the file atomically.
    """

    def __init__(self, path: Path, last_epoch: int):
        """Read the rows of an existing file, except those after `last_epoch`."""
        self._path, self._rows = path, []
        if path.exists():
            try:
                with path.open(newline="", encoding="utf-8") as file:
                    rows = list(csv.DictReader(file, strict=True))
                self._rows = [row for row in rows if int(row["epoch"]) <= last_epoch]
                if any(None in row for row in rows):
                    raise ValueError("a row has too many values")
            except (ValueError, KeyError, TypeError, csv.Error) as error:
                raise BadInput(
                    f"{path} is not the table of a run ({first_line(error)}); move it away, and"
                    " the run continues without the rows of its first epochs"
                ) from error

    def add(self, row: dict[str, Any]) -> None:
        """Append a row and write the file."""
        self._rows.append(row)
        columns = list(dict.fromkeys(key for row in self._rows for key in row))
        with atomic_file(self._path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self._rows)


class MetricsLog:
    """Writes metrics to CSV and to trackers. Only the first process has a folder to write to."""

    def __init__(
        self,
        folder: Path | None,
        loggers: Iterable[str],
        epoch: int,
        update: int,
        settings: Mapping[str, Any] | None = None,
    ):
        """Open the requested files. Entries after the resumed epoch and update are dropped.

        Args:
            folder: The run folder; None to write nothing.
            loggers: Values of `train.loggers`.
            epoch: Number of completed epochs.
            update: Number of completed updates.
            settings: The settings of the run, for trackers.
        """
        self._table, self._trackers = None, []
        if folder is not None and "csv" in loggers:
            self._table = MetricsTable(folder / "metrics.csv", epoch)
        if folder is not None:
            made = [trackers.create(name, folder, settings or {}, update) for name in loggers]
            self._trackers = [tracker for tracker in made if tracker is not None]

    def log_update(self, update: int, values: dict[str, float]) -> None:
        """Log metrics of one update."""
        for tracker in self._trackers:
            tracker.log(values, update)

    def log_epoch(self, epoch: int, update: int, values: dict[str, float]) -> None:
        """Log metrics of a whole epoch, counted from 1."""
        if self._table is not None:
            self._table.add({"epoch": epoch, "update": update, **values})
        self.log_update(update, trackers.of_epoch(values))

    def log_picture(self, path: Path, update: int) -> None:
        """Log a picture under its file name, if it exists."""
        for tracker in self._trackers if path.is_file() else ():
            tracker.picture(path.stem, path, update)

    def close(self) -> None:
        """Write buffered entries and close the files."""
        for tracker in self._trackers:
            tracker.close()


def make_logger(console: Console, is_first: bool) -> logging.Logger:
    """Return the logger of training; processes other than the first only print warnings."""
    logger = logging.getLogger("zoo.train")
    logger.handlers.clear()
    logger.propagate = False
    logger.setLevel(logging.INFO if is_first else logging.WARNING)
    logger.addHandler(_ConsoleHandler(console))
    return logger


@contextmanager
def data_warnings(console: Console) -> Iterator[None]:
    """Print the warnings of `zoo.data`, such as images that are left out, on a console."""
    data_log, handler = logging.getLogger("zoo.data"), _ConsoleHandler(console)
    data_log.addHandler(handler)
    try:
        yield
    finally:
        data_log.removeHandler(handler)


@contextmanager
def copied_to_file(logger: logging.Logger, path: Path | None) -> Iterator[None]:
    """Append the lines of `logger` to a file, too, unless `path` is None."""
    if path is None:
        yield
        return
    handler = _LogFile(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


def make_console() -> Console:
    """Return a console that prints to standard output."""
    return Console(file=sys.stdout, soft_wrap=True, highlight=False)


class _LogFile(logging.FileHandler):
    """A log file whose errors, such as a full disk, are raised instead of printed."""

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exception()
        if error is not None:
            raise error


class _ConsoleHandler(logging.Handler):
    """Prints log lines above the progress bar."""

    def __init__(self, console: Console):
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        self._console.print(prefix + self.format(record), markup=False)
