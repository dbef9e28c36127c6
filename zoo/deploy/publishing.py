"""Give finished files their final names so that a killed process leaves a whole artefact.

Two files cannot be renamed in one step. Therefore the finished files are first collected in a
folder that is renamed to `PENDING`. Before that rename the old artefact counts, after it the new
one. The files are then moved out of `PENDING`, the manifest last. If the process is killed in
between, whoever reads the artefact or exports to the folder next moves the rest (`finish`).

Does not import torch.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from zoo.errors import BadInput

LOCK = ".export.lock"
PENDING = ".publish"
# Further files next to an artefact.
REPORTS = ("predict_example.py", "quantization.json", "sensitivity.json", "sensitivity.csv")
PARTIAL = ".partial-"  # start of the name of a folder that an export writes to
_PLAN = "plan.json"
_WAIT_S = 10.0  # how long a reader waits for a process that is moving files


@contextlib.contextmanager
def locked(folder: Path, wait_s: float = 0.0) -> Iterator[None]:
    """Hold the lock of a folder. The system releases it if the process dies.

    Raises:
        BadInput: Another process, or another thread, holds it.
        OSError: The folder cannot be written.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=wait_s)
    except Timeout:
        raise BadInput(
            f"another export is writing to {folder}; wait until it ends, or choose another folder"
        ) from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows cannot remove an open file
            (folder / LOCK).unlink()
        lock.release()


def publish(draft: Path, folder: Path, names: Sequence[str]) -> None:
    """Replace files of a folder. The caller holds its lock.

    Args:
        draft: A folder on the same disk that contains the files.
        folder: The folder to move them to; reports of the artefact before are deleted.
        names: The files, in the order to move them; the manifest is last.
    """
    ready = draft / PENDING
    ready.mkdir()
    for name in names:
        os.replace(draft / name, ready / name)
    (ready / _PLAN).write_text(json.dumps(list(names)), encoding="utf-8")
    os.replace(ready, folder / PENDING)
    finish(folder)


def finish(folder: Path) -> None:
    """Move the files of a decided replacement that are not moved yet. The caller holds the lock.

    Raises:
        BadInput: The folder `PENDING` was not written by `publish`.
    """
    pending = folder / PENDING
    if not pending.is_dir():
        return
    names = _planned(pending)
    *others, manifest = names
    waiting = [name for name in others if (pending / name).exists()]
    # Without a manifest nobody mistakes a mixture of old and new files for an artefact.
    if (pending / manifest).exists():
        _remove(folder / manifest)
    for name in REPORTS:
        if name not in names:
            _remove(folder / name)
    for name in reversed(waiting):
        if len(others) > 1 or (folder / name).is_dir():  # a single file is replaced in one step
            _remove(folder / name)
    for name in (*waiting, manifest):
        if (pending / name).exists():
            os.replace(pending / name, folder / name)
    shutil.rmtree(pending)


def _planned(pending: Path) -> list[str]:
    """Return the names that `publish` wrote down."""
    try:
        names = json.loads((pending / _PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        names = None
    if not isinstance(names, list) or not names or not all(map(is_bare, names)):
        raise BadInput(f"{pending} was not written by an export; remove it")
    return names


def is_bare(name: object) -> bool:
    """Return whether a value is the name of a file, without any folder."""
    if not isinstance(name, str) or name in ("", ".", ".."):
        return False
    return not any(sign in name for sign in "/\\\0")


def recover(folder: Path) -> None:
    """Finish the replacement that a killed process has begun in a folder, if there is one.

    Raises:
        BadInput: The folder cannot be written, or another process is busy with it.
    """
    if not (folder / PENDING).is_dir():
        return
    try:
        with locked(folder, _WAIT_S):
            finish(folder)
    except OSError as error:
        raise BadInput(
            f"an export to {folder} was interrupted while it replaced files, and the rest cannot "
            f"be moved ({error.strerror or error}); make the folder writable, or export again"
        ) from error


def sweep(folder: Path) -> None:
    """Remove what killed exports have left in a folder. The caller holds its lock."""
    for left in folder.glob(f"{PARTIAL}*"):
        _remove(left)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
