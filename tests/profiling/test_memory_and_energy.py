"""Peak memory of calls with a known size, and energy from simulated counters."""

import sys

import pytest
import torch

from zoo.profiling.energy import Rapl, energy_per_call
from zoo.profiling.memory import peak_memory

MIB = 2**20


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux reports the peak memory of a process"
)
@pytest.mark.parametrize("mib", [16, 96])
def test_peak_memory_is_the_most_that_a_call_allocates_at_once(mib):
    def call() -> None:
        half = torch.ones(mib * MIB // 8)  # half of the memory
        other = half + 1
        del half, other

    assert peak_memory(call) == pytest.approx(mib * MIB, rel=0.1, abs=2 * MIB)


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux reports the peak memory of a process"
)
def test_peak_memory_excludes_memory_allocated_before():
    kept = torch.ones(64 * MIB // 4)
    assert peak_memory(lambda: kept.sum()) < 8 * MIB


def zone(root, name, energy, end=10**9):
    folder = root / name
    folder.mkdir()
    (folder / "energy_uj").write_text(str(energy))
    (folder / "max_energy_range_uj").write_text(str(end))
    return folder / "energy_uj"


def test_energy_per_call_adds_all_cpu_packages(tmp_path):
    packages = [zone(tmp_path, f"intel-rapl:{i}", 1000 * i) for i in range(2)]
    zone(tmp_path, "intel-rapl:0:0", 5)  # part of the first package, must not count twice
    meter = Rapl(tmp_path)
    assert len(meter.counters) == 2

    def call() -> None:
        for package in packages:
            package.write_text(str(int(package.read_text()) + 250_000))

    assert energy_per_call(call, meter=meter, seconds=0) == pytest.approx(0.5)


def test_a_counter_may_wrap_around(tmp_path):
    package = zone(tmp_path, "intel-rapl:0", 999_999_000, end=999_999_999)
    meter = Rapl(tmp_path)
    assert energy_per_call(lambda: package.write_text("1000"), meter=meter, seconds=0) == 0.002


def test_energy_is_none_without_counters(tmp_path):
    assert energy_per_call(lambda: None, meter=Rapl(tmp_path)) is None
