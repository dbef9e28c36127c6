"""Energy per call, read from hardware counters; None on machines without them."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RAPL = Path("/sys/class/powercap")


class Rapl:
    """Energy of all CPU packages, from the RAPL counters of Intel and AMD processors.

    Args:
        root: Folder in which Linux exposes the counters.
    """

    def __init__(self, root: Path = RAPL) -> None:
        self.counters = [
            (zone / "energy_uj", int((zone / "max_energy_range_uj").read_text()))
            for zone in sorted(root.glob("*rapl:[0-9]*"))
            if zone.name.count(":") == 1 and _readable(zone / "energy_uj")
        ]

    def read(self) -> list[int]:
        """Return each counter in microjoules; a counter wraps around at its maximum."""
        return [int(path.read_text()) for path, _ in self.counters]

    def joules(self, before: list[int], after: list[int]) -> float | None:
        """Return the joules used between two readings, or None without counters."""
        if not self.counters:
            return None
        maxima = (maximum for _, maximum in self.counters)
        used = ((b - a) % (top + 1) for a, b, top in zip(before, after, maxima, strict=True))
        return sum(used) / 1e6


class Nvml:
    """Energy of the first NVIDIA GPU, from the counter that NVML provides."""

    def __init__(self) -> None:
        try:
            import pynvml  # pyright: ignore[reportMissingImports]

            pynvml.nvmlInit()
            self.handle = pynvml.nvmlDeviceGetHandleByIndex(0)
            pynvml.nvmlDeviceGetTotalEnergyConsumption(self.handle)
            self.library: Any = pynvml
        except Exception:  # pynvml or the driver is missing, or the GPU has no counter
            self.library = None

    def read(self) -> list[int]:
        """Return the value of the counter in millijoules, or an empty list without a counter."""
        if self.library is None:
            return []
        return [self.library.nvmlDeviceGetTotalEnergyConsumption(self.handle)]

    def joules(self, before: list[int], after: list[int]) -> float | None:
        """Return the joules used between two readings, or None without a counter."""
        return (after[0] - before[0]) / 1e3 if before else None


def energy_per_call(
    call: Callable[[], Any], device: str = "cpu", seconds: float = 1.0, meter: Any = None
) -> float | None:
    """Return the average joules per call, or None without a counter.

    The counters measure the whole device, including other programs that run at the same time.

    Args:
        call: The function to measure. It is repeated, because the counters update only about once
            per millisecond.
        device: `"cuda..."` reads the counter of the GPU, any other value that of the CPU.
        seconds: How long to repeat `call`.
        meter: The counter to read instead of the one of `device`.
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
    except OSError:  # on most systems only root may read it
        return False
