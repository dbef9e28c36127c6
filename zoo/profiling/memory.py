"""How much memory a call takes: the growth of the process on a CPU, of the allocator on CUDA."""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


def peak_memory(call: Callable[[], Any], device: str = "cpu") -> int | None:
    """Return by how many bytes memory grows at most during one call; None where nothing tells.

    On a CPU the figure is the resident memory of the process, whatever runtime takes it, read from
    Linux; other systems keep no peak that can be reset. On CUDA it is that of PyTorch's allocator.
    The call is made twice: what it sets up once and for all is not in the figure.
    """
    call()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if not _give_back_memory():
        return None
    try:
        _RESET.write_text("5")  # from here on the peak is counted anew
        before = _field("VmRSS")
        call()
        return max(0, _field("VmHWM") - before)
    except OSError:
        return None


def _give_back_memory() -> bool:
    """Return freed memory to the system: a call that is served from it would not show."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):
        return False
    return True


def _field(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024
