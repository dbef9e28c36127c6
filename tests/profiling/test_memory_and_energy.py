"""Figures from the system: memory of a call that is known, counters of a made-up machine."""

import sys

import pytest
import torch

from zoo.profiling.energy import Rapl, energy_of
from zoo.profiling.memory import peak_memory

MIB = 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process's peak")
@pytest.mark.parametrize("mib", [16, 96])
def test_the_peak_of_a_call_is_what_it_held_at_once(mib):
    def call() -> None:
        half = torch.ones(mib * MIB // 8)  # half of it
        other = half + 1
        del half, other

    assert peak_memory(call) == pytest.approx(mib * MIB, rel=0.1, abs=2 * MIB)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process's peak")
def test_memory_that_stays_is_no_part_of_it():
    kept = torch.ones(64 * MIB // 4)
    assert peak_memory(lambda: kept.sum()) < 8 * MIB


def zone(root, name, energy, end=10**9):
    folder = root / name
    folder.mkdir()
    (folder / "energy_uj").write_text(str(energy))
    (folder / "max_energy_range_uj").write_text(str(end))
    return folder / "energy_uj"


def test_energy_is_that_of_all_packages_for_one_call(tmp_path):
    packages = [zone(tmp_path, f"intel-rapl:{i}", 1000 * i) for i in range(2)]
    zone(tmp_path, "intel-rapl:0:0", 5)  # a part of the first package: not to be counted twice
    meter = Rapl(tmp_path)
    assert len(meter.counters) == 2

    def call() -> None:
        for package in packages:
            package.write_text(str(int(package.read_text()) + 250_000))

    assert energy_of(call, meter=meter, seconds=0) == pytest.approx(0.5)


def test_a_counter_that_starts_anew(tmp_path):
    package = zone(tmp_path, "intel-rapl:0", 999_999_000, end=999_999_999)
    meter = Rapl(tmp_path)
    assert energy_of(lambda: package.write_text("1000"), meter=meter, seconds=0) == 0.002


def test_without_counters_there_is_no_figure(tmp_path):
    assert energy_of(lambda: None, meter=Rapl(tmp_path)) is None
