"""Write files atomically, and report a disk that is full or read-only in one line."""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from zoo.errors import BadInput

# Errors of the file system that concern the whole disk or folder, not one file.
_NOT_WRITABLE = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EIO", "ENOENT", "ESTALE")
    if hasattr(errno, name)
}
_LOCK = ".lock"


@contextlib.contextmanager
def atomic_file(path: Path, mode: str = "wb", **kwargs: Any) -> Iterator[IO[Any]]:
    """Open a temporary file that replaces `path` when the context ends without an error.

    The content is on disk before the name changes, so a crash leaves the old file or the new one.

    Args:
        path: The file to write.
        mode: Mode of `open`.
        **kwargs: Further arguments of `open`.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, mode, **kwargs) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)  # mkstemp gives access only to the owner
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def disk_error(error: BaseException, folder: Path | None = None) -> OSError | None:
    """Return the error of the disk that caused `error`, if any.

    Args:
        error: Any error.
        folder: If given, ignore errors of files that are known to be elsewhere.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _NOT_WRITABLE:
            file = cause.filename
            if folder is None or file is None or str(file).startswith(str(folder)):
                return cause
        cause = cause.__cause__ or cause.__context__
    return None


def describe_disk_error(error: OSError, folder: Path) -> str:
    """Return in words why `folder` cannot be written, and how much space is free."""
    reason = f"cannot write to {folder}: {error.strerror or error}"
    try:
        return f"{reason} ({shutil.disk_usage(folder).free / 2**20:.1f} MiB are free)"
    except OSError:
        return reason


@contextlib.contextmanager
def sole_writer(folder: Path, doing: str = "training") -> Iterator[None]:
    """Let no other process write to a folder, and remove what killed processes left there.

    Args:
        folder: A run folder, or a store of logits.
        doing: What the process does there, for messages.

    Raises:
        BadInput: Another process does so in this folder.
    """
    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise BadInput(
            f"another process is {doing} in {folder}; wait until it ends, or stop it first"
        ) from error
    except (OSError, NotImplementedError):  # a file system without locks
        pass
    try:
        if lock.is_locked:
            remove_leftovers(folder)
        yield
    finally:
        if lock.is_locked:
            with contextlib.suppress(OSError):
                os.unlink(folder / _LOCK)
            lock.release()


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files of a run folder, in which no process may be writing."""
    for place, patterns in (
        (folder / "checkpoints", (".*.ckpt.*", ".copy*")),
        (folder, (".metrics.csv.*", "metrics.part", ".*.png.*", ".*.yaml.*", ".*.npy.*")),
    ):
        for path in (path for pattern in patterns for path in place.glob(pattern)):
            with contextlib.suppress(OSError):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
