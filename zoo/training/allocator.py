"""Memory of a training process on a CPU."""

import ctypes
import sys

# Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGE = 2**30  # bytes


def disable_malloc_trim() -> bool:
    """Make the C library keep what is freed instead of handing it back to the system.

    Every step frees its activations and the next one asks for them again; without this the system
    zeroes and maps those pages anew each time, a sixth of the time of a small model. The process
    stays as large as its largest step. No result depends on it.

    Returns:
        Whether the C library is one that can be told (glibc).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        tell = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(tell(_MMAP_THRESHOLD, _LARGE)) and bool(tell(_TRIM_THRESHOLD, _LARGE))
