"""Peak memory of a call: of the process on the CPU, of PyTorch's allocator on CUDA."""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


class MemoryMeter:
    """Measures how far calls raise memory above its level when the meter was created.

    On the CPU this is the resident memory of the process, whichever runtime allocates it. Only
    Linux has a peak value that can be reset; on other systems the result is None. On CUDA it is the
    memory of PyTorch's allocator.

    Args:
        device: Name of the device in PyTorch, such as `"cpu"` or `"cuda:0"`.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.cuda = torch.device(device) if torch.device(device).type == "cuda" else None
        self.start: int | None = None
        if self.cuda:
            torch.cuda.synchronize(self.cuda)
            self.start = torch.cuda.memory_allocated(self.cuda)
        elif release_memory():
            self.start = _resident_bytes("VmRSS")

    def peak(self, call: Callable[[], Any]) -> int | None:
        """Run `call`; return the peak memory above the start in bytes, or None if unavailable."""
        if self.start is None:
            return None
        if self.cuda:
            torch.cuda.reset_peak_memory_stats(self.cuda)
            call()
            torch.cuda.synchronize(self.cuda)
            return torch.cuda.max_memory_allocated(self.cuda) - self.start
        try:
            _RESET.write_text("5")  # resets VmHWM
        except OSError:
            return None
        call()
        peak = _resident_bytes("VmHWM")
        return None if peak is None else max(0, peak - self.start)


def peak_memory(call: Callable[[], Any], device: str = "cpu") -> int | None:
    """Return how many bytes one call adds to the memory at its peak, or None if unavailable.

    `call` runs twice; memory that the first run allocates and keeps is not included.
    """
    call()
    return MemoryMeter(device).peak(call)


def release_memory() -> bool:
    """Return freed memory to the system; return False if the C library cannot.

    A call that reuses freed memory would not raise the memory of the process.
    """
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):
        return False
    return True


def _resident_bytes(field: str) -> int | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    line = next((line for line in lines if line.startswith(field)), None)
    return int(line.split()[1]) * 1024 if line else None
