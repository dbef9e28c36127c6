"""Turns: which worker trains a cell now, decided by files alone.

Workers may run on any machines that share a folder. Their clocks may differ, and the file system
may have no locks. A turn is a numbered file, which only one worker can create (`O_EXCL`):

    1.turn    {"host": "..."}, one dot per heartbeat, and an x when the worker has given it back
    1.lock    locked while the worker lives, if the file system has locks
    1/        what the worker writes during its turn

Turn n + 1 begins when turn n is over: given back; or no heartbeat for `PATIENCE` seconds, which the
next worker measures with its own clock; or, on the same machine, as soon as the lock is free.

A worker that is declared dead by mistake, because it was suspended or cut off, does no harm: it
only writes to the folder of its own turn. Results do not depend on who finishes first, since a run
continues exactly where its last checkpoint is.
"""

import json
import os
import platform
import threading
import time
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

PATIENCE = 60.0  # seconds without a heartbeat after which a worker counts as dead
BEAT = 10.0  # seconds between heartbeats
GIVEN_BACK = b"x"


def this_host() -> str:
    """Return a name of this machine since it was started: its locks are seen by its processes."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except (OSError, ValueError):
        boot = ""
    return f"{platform.node()} {boot}".strip()


class Turn:
    """The right to train a cell, kept by heartbeats until `give_back`.

    Args:
        folder: The folder of the cell.
        number: The number of the turn, from 1.
        handle: The open file of the turn.
        lock: Its lock; None if the file system has no locks.
        beat: Seconds between heartbeats.

    Attributes:
        is_lost: Whether another worker has taken the next turn.
    """

    def __init__(
        self, folder: Path, number: int, handle: int, lock: FileLock | None, beat: float = BEAT
    ) -> None:
        self.folder, self.number = folder, number
        self.is_lost = False
        self._handle, self._lock = handle, lock
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat_until_end, args=(beat,), daemon=True)
        self._thread.start()

    @property
    def run_folder(self) -> Path:
        """The folder to write to during this turn."""
        return self.folder / str(self.number)

    def _beat_until_end(self, seconds: float) -> None:
        while not self._end.wait(seconds) and not self.is_lost:
            self.beat()

    def beat(self) -> None:
        """Write a heartbeat, and notice a lost turn."""
        try:
            next_turn = turn_file(self.folder, self.number + 1)
            if next_turn.exists() or not turn_file(self.folder, self.number).exists():
                self.is_lost = True
                return
            os.write(self._handle, b".")
        except OSError:  # a full disk or a server that is down, perhaps not for long
            pass

    def give_back(self) -> None:
        """End the turn, so that another worker can take the next one at once."""
        self._end.set()
        self._thread.join()
        try:
            if not self.is_lost:
                os.write(self._handle, GIVEN_BACK)
        except OSError:  # the others wait for heartbeats
            pass
        os.close(self._handle)
        if self._lock is not None:
            self._lock.release()


def turn_file(folder: Path, number: int) -> Path:
    """Return the path of the file of a turn."""
    return folder / f"{number}.turn"


def last_turn(folder: Path) -> int:
    """Return the number of the newest turn of a cell; 0 if there was none."""
    numbers = [path.stem for path in folder.glob("*.turn")]
    return max((int(number) for number in numbers if number.isdecimal()), default=0)


class Claims:
    """Takes turns for one worker, and remembers which heartbeats it has seen.

    Args:
        patience: Seconds without a heartbeat after which a worker counts as dead.
        beat: Seconds between heartbeats of this worker.
        clock: Returns seconds; only its differences count.
        host: Name of this machine.
    """

    def __init__(
        self,
        patience: float = PATIENCE,
        beat: float = BEAT,
        clock: Callable[[], float] = time.monotonic,
        host: str | None = None,
    ) -> None:
        self._patience, self._beat, self._clock = patience, beat, clock
        self._host = this_host() if host is None else host
        self._seen: dict[Path, tuple[int, float]] = {}

    def claim(self, folder: Path) -> Turn | None:
        """Take the next turn of a cell; return None while another worker has its turn.

        Args:
            folder: The folder of the cell.
        """
        last = last_turn(folder)
        if last and not self._is_over(turn_file(folder, last)):
            return None
        path = turn_file(folder, last + 1)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
        try:
            handle = os.open(path, flags, 0o666)
        except FileExistsError:
            return None
        lock = _locked(path.with_suffix(".lock"))
        head = {"host": self._host} if lock is not None else {"host": None}
        os.write(handle, json.dumps(head).encode() + b"\n")
        os.fsync(handle)
        return Turn(folder, last + 1, handle, lock, self._beat)

    def state(self, folder: Path) -> str:
        """Return in words who trains a cell that is not finished, as far as this machine knows."""
        last = last_turn(folder)
        if not last or self._is_over(turn_file(folder, last)):
            return "left"
        host = _host_of(turn_file(folder, last).read_bytes())
        return f"taken by {'an unknown machine' if host is None else host.split()[0]}, turn {last}"

    def _is_over(self, path: Path) -> bool:
        try:
            content = path.read_bytes()  # opening it makes NFS ask the server
        except OSError:
            return False
        if content.endswith(GIVEN_BACK):
            return True
        now = self._clock()
        size, since = self._seen.get(path, (-1, now))
        if size != len(content):
            size, since = len(content), now
            self._seen[path] = size, since
        if now - since >= self._patience:
            return True
        return _host_of(content) == self._host and _is_free(path.with_suffix(".lock"))


def _host_of(content: bytes) -> str | None:
    """Return the machine of a turn; None if its locks say nothing, or it was not written yet."""
    try:
        return json.loads(content.partition(b"\n")[0])["host"]
    except (ValueError, KeyError, TypeError):
        return None


def _locked(path: Path) -> FileLock | None:
    """Return a lock that this process holds; None if the file system has no locks."""
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except (Timeout, OSError, NotImplementedError):
        return None
    return lock


def _is_free(path: Path) -> bool:
    """Return whether no living process of this machine holds a lock."""
    if not path.exists():
        return False
    lock = _locked(path)
    if lock is None:
        return False
    lock.release()
    return True
