"""How much memory calls take: the growth of the process on a CPU, of the allocator on CUDA."""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


class Growth:
    """Memory from here on. On a CPU it is the resident memory of the process, whatever runtime
    takes it, read from Linux: other systems keep no peak that can be reset. On CUDA it is that of
    PyTorch's allocator.

    Args:
        device: Whose memory, as torch names it.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.cuda = torch.device(device) if torch.device(device).type == "cuda" else None
        self.start: int | None = None
        if self.cuda:
            torch.cuda.synchronize(self.cuda)
            self.start = torch.cuda.memory_allocated(self.cuda)
        elif give_back_memory():
            self.start = _resident("VmRSS")

    def peak(self, call: Callable[[], Any]) -> int | None:
        """Return by how many bytes memory is above the start at most, during a call of `call`.

        None where nothing tells.
        """
        if self.start is None:
            return None
        if self.cuda:
            torch.cuda.reset_peak_memory_stats(self.cuda)
            call()
            torch.cuda.synchronize(self.cuda)
            return torch.cuda.max_memory_allocated(self.cuda) - self.start
        try:
            _RESET.write_text("5")  # from here on the peak is counted anew
        except OSError:
            return None
        call()
        top = _resident("VmHWM")
        return None if top is None else max(0, top - self.start)


def peak_memory(call: Callable[[], Any], device: str = "cpu") -> int | None:
    """Return by how many bytes memory grows at most during one call; None where nothing tells.

    The call is made twice: what it sets up once and for all is not in the figure.
    """
    call()
    return Growth(device).peak(call)


def give_back_memory() -> bool:
    """Return freed memory to the system: a call that is served from it would not show."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):
        return False
    return True


def _resident(field: str) -> int | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    line = next((line for line in lines if line.startswith(field)), None)
    return int(line.split()[1]) * 1024 if line else None
