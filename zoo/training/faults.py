"""Faults of the machine in one line each: too little memory, killed processes, full disks."""

import contextlib
import errno
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from zoo.environment import is_out_of_memory
from zoo.errors import ZooError
from zoo.training.disk import describe_disk_error, disk_error

_LOADER = re.compile(r"DataLoader worker \(pid")
_SHARED_MEMORY = re.compile(r"shared memory|/torch_\d+|shm_open|shm", re.IGNORECASE)


class MachineFault(ZooError):
    """The machine ran out of memory or disk, or a process was killed; settings may avoid it."""


@contextlib.contextmanager
def report_machine_faults(
    *, memory: str, loader: str, folder: Path | None = None, kept: Callable[[], str] = lambda: ""
) -> Iterator[None]:
    """Turn faults of the machine into a `MachineFault`; other errors pass.

    Args:
        memory: What to do if memory does not suffice.
        loader: What to do if a process that loads images is killed.
        folder: The folder that is written.
        kept: Returns what is kept and how to continue, as the end of each message.
    """
    try:
        yield
    except ZooError:
        raise
    except Exception as error:
        text = _explanation(error, memory, loader, folder)
        if text is None:
            raise
        end = kept()
        raise MachineFault(text + (f"; {end}" if end else "")) from error


def _explanation(error: BaseException, memory: str, loader: str, folder: Path | None) -> str | None:
    message = " ".join(str(error).split())
    if isinstance(error, RuntimeError) and _LOADER.search(message):
        if _SHARED_MEMORY.search(message):
            return f"the processes that load images ran out of shared memory (/dev/shm); {loader}"
        return f"a process that loads images died, usually because memory ran out; {loader}"
    if is_out_of_memory(error):
        return f"out of memory; {memory}"
    if isinstance(error, OSError) and error.errno in (errno.EAGAIN, errno.EMFILE, errno.ENFILE):
        return f"the system refuses more processes or open files ({error.strerror}); {loader}"
    if folder is not None and (cause := disk_error(error, folder)) is not None:
        return f"{describe_disk_error(cause, folder)}; free some space or choose another disk"
    return None
