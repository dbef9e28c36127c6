"""What a command is doing: phases and progress bars on stderr.

```python
with phase("tracing"):
    program = trace(model)
for batch in track(batches, "calibrating", total=256):
    ...
with progress_bar("fetching weights.pth", total=size, unit="bytes") as advance:
    advance(len(chunk))
```

In a terminal, a running phase has a spinner or a bar with the elapsed time, and leaves one line
when it ends. Elsewhere, such as in a log file, each phase writes one line when it starts, and one
more per minute if it has a bar. Nothing is written until a command calls `show`: the functions of
the library are silent. This module imports nothing else from zoo.
"""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager, suppress
from typing import Any, TextIO, TypeVar

T = TypeVar("T")

LINE_EVERY = 60.0  # seconds between the lines of a bar that is not shown in a terminal

_display: "_Lines | _Terminal | None" = None


@contextmanager
def show(stream: TextIO | None = None) -> Iterator[None]:
    """Write phases and bars to a stream until the context ends; a nested call changes nothing.

    Processes of distributed training other than the first write nothing.

    Args:
        stream: None for stderr as it is now; later redirections of `sys.stderr` have no effect.
    """
    global _display
    is_first = os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"
    stream = stream or sys.stderr
    if _display is not None or not is_first or stream is None:
        yield
        return
    is_terminal = stream.isatty() and os.environ.get("TERM") != "dumb"
    _display = _Terminal(stream) if is_terminal else _Lines(stream)
    try:
        yield
    finally:
        _display.stop()
        _display = None


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Show that a phase is running.

    Args:
        name: What is done, such as `"tracing"`; it starts with a lower-case letter.
    """
    with progress_bar(name, None):
        yield


def track(items: Iterable[T], name: str, total: int | None = None) -> Iterator[T]:
    """Yield the items, and show how many are done.

    Args:
        items: Any iterable.
        name: What is done with them, such as `"calibrating"`.
        total: Number of items; None for `len(items)` if they have a length.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with progress_bar(name, total) as advance:
        for item in items:
            yield item
            advance(1)


@contextmanager
def progress_bar(name: str, total: int | None, unit: str = "") -> Iterator[Callable[[int], None]]:
    """Show a bar; the context gives the function that advances it.

    Args:
        name: What is done.
        total: Amount of work; None if unknown.
        unit: `"bytes"` to write amounts as KB and MB; else the amounts are counts.
    """
    display = _display
    if display is None:
        yield lambda amount: None
        return
    task = display.start(name, total, unit)
    try:
        yield lambda amount: display.advance(task, amount)
    except BaseException:
        display.remove(task, failed=True)
        raise
    display.remove(task, failed=False)


class _Lines:
    """One line per phase, for streams that are not a terminal."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic):
        self._stream, self._clock, self._begin = stream, clock, clock()

    def start(self, name: str, total: int | None, unit: str) -> dict[str, Any]:
        self._write(f"{name} ({_amount(total, unit)})" if total else name)
        return {"name": name, "total": total, "unit": unit, "done": 0, "line": self._clock()}

    def advance(self, task: dict[str, Any], amount: int) -> None:
        task["done"] += amount
        if self._clock() - task["line"] >= LINE_EVERY:
            task["line"] = self._clock()
            of = f" of {_amount(task['total'], task['unit'])}" if task["total"] else ""
            self._write(f"{task['name']}: {_amount(task['done'], task['unit'])}{of}")

    def remove(self, task: dict[str, Any], failed: bool) -> None:
        pass

    def stop(self) -> None:
        pass

    def _write(self, text: str) -> None:
        minutes, seconds = divmod(int(self._clock() - self._begin), 60)
        encoding = self._stream.encoding or "utf-8"
        line = f"[{minutes:02d}:{seconds:02d}] {text}"
        with suppress(OSError, ValueError):  # a closed pipe or a full disk must not end the work
            print(line.encode(encoding, "replace").decode(encoding), file=self._stream, flush=True)


class _Terminal:
    """A spinner or a bar per running phase, in one rich display."""

    def __init__(self, stream: TextIO):
        self._stream, self._stdout, self._stderr = stream, sys.stdout, sys.stderr
        self._progress: Any = None

    def start(self, name: str, total: int | None, unit: str) -> Any:
        if self._progress is None:
            self._progress = self._make()
            self._progress.start()
        return self._progress.add_task(name, total=total, unit=unit)

    def advance(self, task: Any, amount: int) -> None:
        self._progress.advance(task, amount)

    def remove(self, task: Any, failed: bool) -> None:
        row = next(row for row in self._progress.tasks if row.id == task)
        if not failed:
            done = f" {_amount(int(row.completed), row.fields['unit'])}" if row.completed else ""
            line = f"{row.description}{done} in {row.elapsed:.1f} s"
            self._progress.console.print(line, style="dim", markup=False)
        self._progress.remove_task(task)
        if not self._progress.tasks:
            self.stop()

    def stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _make(self) -> Any:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        class Bar(BarColumn):
            def render(self, task: Any) -> Any:
                return super().render(task) if task.total else ""

        class Amount(TextColumn):
            def render(self, task: Any) -> Any:
                done, unit = int(task.completed), task.fields["unit"]
                total = int(task.total or 0)
                shown = f"{_amount(done, unit)}/{_amount(total, unit)}" if total else ""
                self.text_format = shown
                return super().render(task)

        return Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            Bar(),
            Amount("", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(file=self._stream, highlight=False, soft_wrap=True),
            transient=True,
            # What `zoo.environment.quiet` suppresses must not appear above the bar, and what goes
            # into a pipe must not appear in the terminal.
            redirect_stdout=sys.stdout is self._stdout and sys.stdout.isatty(),
            redirect_stderr=sys.stderr is self._stderr,
        )


def _amount(amount: int, unit: str) -> str:
    if unit != "bytes":
        return f"{amount:,}"
    from rich.filesize import decimal

    return decimal(amount)
