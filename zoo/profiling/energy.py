"""Energy by the machine's own counters; where there are none there is no figure."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RAPL = Path("/sys/class/powercap")


class Rapl:
    """The energy of all processor packages, by Intel's (and AMD's) running average power limit.

    Args:
        root: Where the system shows the counters.
    """

    def __init__(self, root: Path = RAPL) -> None:
        self.counters = [
            (zone / "energy_uj", int((zone / "max_energy_range_uj").read_text()))
            for zone in sorted(root.glob("*rapl:[0-9]*"))
            if zone.name.count(":") == 1 and _readable(zone / "energy_uj")
        ]

    def read(self) -> list[int]:
        """Return the counters, in microjoules; each starts anew at its end."""
        return [int(path.read_text()) for path, _ in self.counters]

    def joules(self, before: list[int], after: list[int]) -> float | None:
        """Return the energy between two readings; None without counters."""
        if not self.counters:
            return None
        ends = (end for _, end in self.counters)
        used = ((b - a) % (end + 1) for a, b, end in zip(before, after, ends, strict=True))
        return sum(used) / 1e6


class Nvml:
    """The energy of the first GPU since its driver was loaded, by NVIDIA's library."""

    def __init__(self) -> None:
        try:
            import pynvml  # pyright: ignore[reportMissingImports]

            pynvml.nvmlInit()
            self.handle = pynvml.nvmlDeviceGetHandleByIndex(0)
            pynvml.nvmlDeviceGetTotalEnergyConsumption(self.handle)
            self.library: Any = pynvml
        except Exception:  # not installed, no driver, or a GPU that does not count
            self.library = None

    def read(self) -> list[int]:
        """Return the counter, in millijoules."""
        if self.library is None:
            return []
        return [self.library.nvmlDeviceGetTotalEnergyConsumption(self.handle)]

    def joules(self, before: list[int], after: list[int]) -> float | None:
        """Return the energy between two readings; None without a counter."""
        return (after[0] - before[0]) / 1e3 if before else None


def energy_of(
    call: Callable[[], Any], device: str = "cpu", seconds: float = 1.0, meter: Any = None
) -> float | None:
    """Return the joules of one call, of everything that ran meanwhile; None without a counter.

    Args:
        call: Is repeated for `seconds`: the counters move a thousand times a second at most.
        device: Whose counter: the processor's, or with `"cuda..."` the GPU's.
        seconds: How long.
        meter: What to read instead.
    """
    meter = meter or (Nvml() if device.startswith("cuda") else Rapl())
    before = meter.read()
    if not before:
        return None
    calls, end = 0, time.perf_counter() + seconds
    while calls == 0 or time.perf_counter() < end:
        call()
        calls += 1
    used = meter.joules(before, meter.read())
    return None if used is None else used / calls


def _readable(path: Path) -> bool:
    try:
        return bool(path.read_text())
    except OSError:  # only root may read it, on most systems
        return False
