"""Ends every command in order: whatever goes wrong is one line on stderr, never a traceback.

A mistake of the user (`ZooError`) is one line and exit code 1. Anything unforeseen is one line,
exit code 1, and a log file with the traceback: in the run folder if there is one (see
`zoo.errors.folder_noted`), else in the state folder of the user. Ctrl-C ends with 130 and a closed
pipe with 141, without a message.
"""

import contextlib
import errno
import io
import os
import platform
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from zoo import progress
from zoo.environment import is_out_of_memory, versions
from zoo.errors import ZooError, first_line, noted_folder

INTERRUPTED, CLOSED_PIPE = 130, 141
ISSUES = "report it with this file"

# What PyTorch and its allocators say when memory is short, besides their own class of error.


def run(function: Callable[[], Any]) -> int:
    """Call a function and return the exit code of the process.

    An integer that the function returns is the exit code. Phases and bars are shown meanwhile.
    """
    with _streams(), progress.show():
        try:
            result = function()
            _flush()
            return result if isinstance(result, int) and not isinstance(result, bool) else 0
        except SystemExit as error:
            return _exit_code(error)
        except BaseException as error:
            return _report(error)


def _exit_code(error: SystemExit) -> int:
    try:
        _flush()
    except OSError as failure:
        return _report(failure)
    if error.code is None or isinstance(error.code, int):
        return error.code or 0
    _print(str(error.code))
    return 1


def _report(error: BaseException) -> int:
    """Print an error as one line, and return the exit code."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):
        _discard_output()
        return CLOSED_PIPE
    if isinstance(error, OSError) and _is_output_error(error):
        _discard_output()
        _print(f"error: standard output cannot be written: {error.strerror}")
        return 1
    _print(f"error: {describe(error)}")
    return 1


def describe(error: BaseException) -> str:
    """Return the line for an error; the traceback of an unforeseen one goes to a log file."""
    if isinstance(error, ZooError):
        return " ".join(str(error).split("\n"))
    if is_out_of_memory(error):
        return (
            "out of memory; use a smaller batch or image size, fewer data.num_workers, or close"
            f" other programs ({_short(error)})"
        )
    log = _write_log(error)
    where = f"traceback in {log}" if log else "its traceback could not be written to a file"
    if isinstance(error, OSError) and error.strerror:
        file = f"{error.filename}: " if error.filename is not None else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return f"{file}{error.strerror}{'; free some space' if full else ''} ({where})"
    if isinstance(error, RecursionError):
        return f"something is nested too deeply: {_short(error)} ({where})"
    return f"unexpected {type(error).__name__}: {_short(error)} ({where}; please {ISSUES})"


def state_folder() -> Path:
    """Return the folder for log files outside run folders; it need not exist."""
    base = os.environ.get("XDG_STATE_HOME")
    if not base and os.name == "nt":
        base = os.environ.get("LOCALAPPDATA")
    return (Path(base) if base else Path.home() / ".local" / "state") / "zoo"


def _write_log(error: BaseException) -> Path | None:
    """Write the traceback to the first folder that takes it, and return the path of the file."""
    name = f"error-{time.strftime('%Y-%m-%d_%H-%M-%S')}-{os.getpid()}.log"
    with contextlib.suppress(Exception):
        text = _log_text(error)
        for folder in _log_folders(error):
            with contextlib.suppress(OSError, RuntimeError):
                folder.mkdir(parents=True, exist_ok=True)
                path = (folder / name).absolute()
                path.write_text(text, encoding="utf-8", errors="backslashreplace")
                return path
    return None


def _log_folders(error: BaseException) -> Iterator[Path]:
    if (folder := noted_folder(error)) is not None:
        yield folder
    with contextlib.suppress(RuntimeError):  # a user without a home folder
        yield state_folder()
    yield Path(tempfile.gettempdir())


def _log_text(error: BaseException) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in versions().items())
    lines = [f"command: {sys.argv}", f"system: {platform.platform()}", f"packages: {packages}", ""]
    return "\n".join([*lines, *traceback.format_exception(error)])


def _short(error: BaseException) -> str:
    return first_line(error).rstrip(".;")


@contextlib.contextmanager
def _streams() -> Iterator[None]:
    """Escape what a terminal cannot encode, and write each warning as one line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with warnings.catch_warnings():  # restores `showwarning`
        warnings.showwarning = _show_warning
        yield


def _show_warning(message: Any, category: Any, *_: Any, **__: Any) -> None:
    # Our own warnings are for users; those of packages are for their developers.
    if issubclass(category, UserWarning) and not issubclass(category, FutureWarning):
        _print(f"warning: {' '.join(str(message).split())}")


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()


def _is_output_error(error: OSError) -> bool:
    """Return whether writing to standard output failed, as on a full disk.

    Such an error does not name a file, like one of a file that is open already.
    """
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EBADF):
        return False
    return error.filename is None and sys.stdout is not None and not _can_write()


def _can_write() -> bool:
    try:
        sys.stdout.write("\n")
        sys.stdout.flush()
    except (OSError, ValueError):
        return False
    return True


def _discard_output() -> None:
    """Let Python end without a message about output that cannot be written."""
    with contextlib.suppress(Exception):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.close(nothing)


def _print(line: str) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(line, file=sys.stderr, flush=True)
