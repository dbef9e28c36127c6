"""`train.batch_size=auto`: find the largest batch that fits, by doubling it on real updates."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from zoo.errors import BadInput

try:
    import resource
except ImportError:  # Windows
    resource = None

FIRST = 8  # images
MOST = 512  # images; larger batches need settings of their own
FEWEST_UPDATES = 10  # of an epoch
SHARE = 0.8  # of the free memory that a batch may need


def candidates(images: int) -> Iterator[int]:
    """Yield the batch sizes to try for a number of training images."""
    size = min(FIRST, images)
    yield size
    while 2 * size <= min(MOST, images // FEWEST_UPDATES):
        size *= 2
        yield size


def find(
    images: int,
    attempt: Callable[[int], None],
    is_too_large: Callable[[Exception], bool],
    used: Callable[[], float],
    free: Callable[[], float],
) -> tuple[int, str]:
    """Return the largest batch size that works, and why no larger one was chosen.

    Args:
        images: Number of training images.
        attempt: Runs an update and a validation batch of so many images.
        is_too_large: Whether an error of `attempt` means too little memory.
        used: The largest memory of this process so far, in bytes.
        free: The memory that is free, in bytes.

    Raises:
        BadInput: The smallest batch does not fit.
    """
    before = used()
    best = 0
    for size in candidates(images):
        taken = used() - before  # by the batch of half this size, which may hold it or not
        if best and 2 * taken > SHARE * free():
            return best, f"{size} would need more memory than is free"
        try:
            attempt(size)
        except Exception as error:
            if not is_too_large(error):
                raise
            if not best:
                raise BadInput(
                    f"train.batch_size=auto: {size} images need more memory than is available;"
                    " lower data.image_size, or choose a smaller model"
                ) from error
            return best, f"{size} does not fit into memory"
        best = size
    limit = f"an epoch has at least {FEWEST_UPDATES} updates" if best < MOST else f"at most {MOST}"
    return best, limit


def peak_memory() -> float:
    """Return the largest memory that this process has used, in bytes; 0 if unknown."""
    if resource is None:
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024
    return float(unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def free_memory() -> float:
    """Return the memory of this machine that is free, in bytes; infinite if unknown."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return float("inf")
    for line in text.splitlines():
        if line.startswith("MemAvailable:"):
            return 1024.0 * int(line.split()[1])
    return float("inf")
