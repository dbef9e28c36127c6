"""Describe the machine and the installed packages, and suppress what packages print."""

import contextlib
import errno
import functools
import importlib.metadata
import importlib.util
import io
import logging
import os
import platform
import re
import subprocess
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from zoo.errors import MissingExtra

# More threads or processes than this per core are a mistake, which can bring a machine down.
MOST_PER_CORE, FEWEST_LIMIT = 4, 16

_PACKAGES = {
    "zoo": "zoo-vision",
    "torch": "torch",
    "timm": "timm",
    "onnx": "onnx",
    "onnxscript": "onnxscript",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "executorch": "executorch",
    "coremltools": "coremltools",
    "nncf": "nncf",
    "torchao": "torchao",
}

# Parts of messages of PyTorch, CUDA and oneDNN about memory; the last three are about sizes beyond
# any memory.
_MEMORY = re.compile(
    r"can'?t allocate memory|cannot allocate memory|not enough memory|out of memory|bad_alloc"
    r"|failed to allocate|ALLOC_FAILED|Storage size calculation overflowed"
    r"|integer multiplication overflow|invalid size, tried to allocate",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory, of the processor or of a GPU, did not suffice."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # of PyTorch
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and _MEMORY.search(str(error)) is not None


@functools.cache
def describe_machine() -> dict[str, Any]:
    """Describe this machine: CPU, cores, memory in GiB, system, and GPU if any.

    The description contains neither host nor user name.
    """
    import torch

    machine: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "memory_gib": _memory_gib(),
        "architecture": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "isa": torch.backends.cpu.get_cpu_capability(),
    }
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    return machine


def versions(*names: str) -> dict[str, str]:
    """Return the versions of Python and of installed packages.

    Args:
        *names: Names of packages; by default all that can affect a measurement.
    """
    found = {"python": platform.python_version()}
    for name in names or _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(_PACKAGES[name])
    return found


def summary() -> str:
    """Describe the machine in one line."""
    machine = describe_machine()
    parts = [f"{machine['cpu']}, {machine['usable_cores']} cores", machine["system"]]
    return ", ".join([*parts, *([machine["gpu"]] if "gpu" in machine else [])])


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith(("model name", "hardware")):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def parallel_limit() -> int:
    """Return how many threads or processes of this machine a setting may request."""
    return max(FEWEST_LIMIT, MOST_PER_CORE * usable_cores())


def _memory_gib() -> float | None:
    try:
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
    return round(pages * size / 2**30, 1)


def need(what: str, packages: Sequence[str]) -> None:
    """Raise `MissingExtra`, with the command that installs them, unless `packages` are installed.

    Args:
        what: The feature that needs them, for the message.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtra(
            f"{what} needs packages that are not installed: pip install {' '.join(missing)}"
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress output, log messages and warnings of other packages; errors still pass."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
