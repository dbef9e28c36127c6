"""Measuring and comparing latencies, mostly with a simulated clock."""

import gc
import itertools
import json
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from synthetic import Clock, Synthetic, noisy
from torch import nn

import zoo
from zoo.profiling.latency import compare, measure
from zoo.profiling.timing import MeasurementBudget, compare_calls, time_calls, warm_up

QUICK = {"min_runs": 6, "min_time": 0.0, "max_time": 5.0, "threads": 1}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())

    def forward(self, x):
        return self.body(x).mean((2, 3))


@pytest.mark.parametrize(
    ("budget", "runs"),
    [
        (MeasurementBudget(min_runs=10, min_time=0.0, max_time=100.0), 10),
        (MeasurementBudget(min_runs=10, min_time=30.0, max_time=100.0), 30),
        (
            MeasurementBudget(min_runs=1000, min_time=0.0, max_time=20.0),
            20,
        ),  # max_time overrides the minima
    ],
)
def test_the_budget_decides_how_many_calls_are_measured(budget, runs):
    clock = Clock()
    times = time_calls(clock.taking(itertools.repeat(1.0)), clock, budget)
    assert times.tolist() == [1.0] * runs


def test_the_warm_up_ends_when_the_median_is_stable():
    clock = Clock()
    falling = (0.01 * (1 + 5 * 0.97**i) for i in itertools.count())
    call = clock.taking(falling)
    warm = warm_up(call, clock, max_time=60.0)
    before = clock.now
    call()
    assert warm.steady
    assert warm.first_s == pytest.approx(0.06)
    assert clock.now - before < 0.0115, "the warm-up ended while calls were still 15 % too slow"
    assert warm.seconds == pytest.approx(before)


def test_the_warm_up_ends_after_max_time():
    clock = Clock()
    rising = (0.01 * 1.1**i for i in itertools.count())
    warm = warm_up(clock.taking(rising), clock, max_time=3.0)
    assert not warm.steady
    assert 3.0 <= warm.seconds < 3.5


def test_the_warm_up_of_a_steady_call_takes_two_windows():
    clock = Clock()
    warm = warm_up(clock.taking(itertools.repeat(0.02)), clock, max_time=60.0)
    assert (warm.steady, warm.calls) == (True, 17)


def test_the_result_for_a_simulated_runtime():
    clock = Clock()
    durations = itertools.chain([0.9], itertools.repeat(0.1, 16), itertools.cycle([0.1, 0.2, 0.3]))
    runtime = Synthetic(clock, durations)
    record = measure(runtime, (2, 3, 8, 9), min_runs=30, min_time=0, max_time=60, clock=clock)
    assert runtime.batches == [(2, 3, 8, 9)]
    assert record.first_call_ms == pytest.approx(900)
    assert record.load_ms == pytest.approx(250)
    assert (record.p50_ms, record.min_ms) == (pytest.approx(200), pytest.approx(100))
    assert record.p90_ms is None, "30 calls are too few"
    assert record.low_ms <= record.p50_ms <= record.high_ms
    assert (record.n, record.warmup_calls, record.steady) == (30, 17, True)
    assert (record.runtime, record.runtime_version, record.threads) == ("synthetic", "1", 3)
    assert record.input_size == (2, 3, 8, 9)
    assert record.fused is None
    plain = json.loads(json.dumps(record.to_dict()))
    assert plain["input_size"] == [2, 3, 8, 9]
    assert plain["machine"]["cpu"]
    assert plain["versions"]["torch"] == torch.__version__.split("+")[0]


def test_an_unstable_median_is_reported():
    clock = Clock()
    runtime = Synthetic(clock, (1.05**i for i in itertools.count()))
    record = measure(runtime, (1, 3, 8, 8), min_runs=6, min_time=0, max_time=30, clock=clock)
    assert not record.steady
    assert "median not stable" in str(record)


def test_measuring_does_not_change_the_model_or_the_process():
    model = Net().train()
    model.body[1].eval()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    threads, collecting, grad = torch.get_num_threads(), gc.isenabled(), torch.is_grad_enabled()
    measure(model, (1, 3, 16, 16), channels_last=True, dtype="bfloat16", **QUICK)
    measure(model, (1, 3, 16, 16), fused=True, **QUICK)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert (torch.get_num_threads(), gc.isenabled()) == (threads, collecting)
    assert torch.is_grad_enabled() == grad


def test_a_failing_model_does_not_change_the_process():
    threads = torch.get_num_threads()
    with pytest.raises(zoo.BadInput, match=r"input_size=\(1, 4, 8, 8\)"):
        measure(Net(), (1, 4, 8, 8), **{**QUICK, "threads": threads + 1})
    assert torch.get_num_threads() == threads
    assert gc.isenabled()


def test_the_result_describes_the_settings():
    record = measure(Net(), (2, 3, 16, 16), channels_last=True, **QUICK)
    assert (record.runtime, record.threads, record.dtype) == ("eager", 1, "float32")
    assert (record.layout, record.device, record.fused) == ("NHWC", "cpu", False)
    assert record.n >= 6
    assert record.min_ms <= record.p50_ms
    assert 0 < record.p50_ms < record.warmup_s * 1e3
    assert "unfused" in str(record)


def test_the_result_states_whether_the_model_is_fused():
    model = Net().eval()
    assert measure(model, (1, 3, 16, 16), fused=True, **QUICK).fused is True
    assert measure(zoo.reparameterize(model), (1, 3, 16, 16), **QUICK).fused is True


def test_a_sleeping_model_takes_its_sleeping_time():
    class Sleeper(nn.Module):
        def forward(self, x):
            time.sleep(0.02)
            return x

    record = measure(Sleeper(), (1, 3, 4, 4), **QUICK)
    assert 20 <= record.min_ms < 30


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"input_size": (3, 8, 8)}, "B C H W"),
        ({"input_size": (0, 3, 8, 8)}, "positive integers"),
        ({"runtime": "egaer"}, "unknown runtime 'egaer'; did you mean 'eager'"),
        ({"threads": 0}, "threads=0"),
        ({"dtype": "int8"}, "dtype='int8'"),
        ({"runtime": "onnxruntime", "channels_last": True}, "NCHW only"),
        ({"min_runs": 0}, "min_runs=0"),
        ({"min_time": 9.0}, "min_time=9.0"),
        ({"max_time": float("inf")}, "max_time=inf"),
    ],
)
def test_invalid_arguments_of_measure(wrong, message):
    with pytest.raises(zoo.BadInput, match=message):
        measure(Net(), **{"input_size": (1, 3, 8, 8), **QUICK, **wrong})


def test_a_loaded_runtime_takes_no_settings():
    clock = Clock()
    with pytest.raises(zoo.BadInput, match=r"zoo\.runtimes\.load"):
        measure(Synthetic(clock, itertools.repeat(1.0)), (1, 3, 8, 8), threads=2, clock=clock)


def verdict(a: float, b: float, noise: float, n: int, seed: int) -> str:
    clock = Clock()
    first = clock.taking(noisy(a, noise, 2 * seed))
    second = clock.taking(noisy(b, noise, 2 * seed + 1))
    budget = MeasurementBudget(min_runs=n, min_time=0, max_time=1e9)
    result = compare_calls(first, second, clock, budget)
    assert result.n == n
    return result.verdict


def test_a_difference_of_one_percent_in_five_percent_noise_is_not_reported():
    verdicts = [verdict(1.0, 1.01, 0.05, 20, seed) for seed in range(300)]
    assert verdicts.count("no difference") >= 0.95 * len(verdicts)


def test_a_difference_of_ten_percent_in_five_percent_noise_is_reported():
    slower = [verdict(1.0, 1.10, 0.05, 30, seed) for seed in range(300)]
    faster = [verdict(1.1, 1.00, 0.05, 30, seed) for seed in range(300)]
    assert slower.count("B is slower") >= 0.99 * len(slower)
    assert faster.count("B is faster") >= 0.99 * len(faster)


def test_equal_models_show_no_difference_after_many_pairs():
    verdicts = [verdict(1.0, 1.0, 0.05, 500, seed) for seed in range(20)]
    assert set(verdicts) == {"no difference"}


def test_a_slowing_machine_does_not_change_the_verdict():
    clock = Clock()
    slow = 1 + 2 * np.arange(40) / 40
    first = clock.taking(slow[0::2])
    second = clock.taking(1.05 * slow[1::2])
    result = compare_calls(first, second, clock, MeasurementBudget(20, 0, 1e9))
    assert result.verdict == "B is slower"
    assert 1.05 < result.ratio < 1.10


def test_both_sides_are_called_in_turn():
    calls: list[str] = []
    clock = Clock()

    def side(name: str):
        step = clock.taking(itertools.repeat(1.0))
        return lambda: (calls.append(name), step())

    result = compare_calls(side("A"), side("B"), clock, MeasurementBudget(6, 0, 100))
    assert calls == ["A", "B"] * 6
    assert (result.ratio, result.verdict) == (1.0, "no difference")


def test_five_pairs_give_no_interval():
    clock = Clock()
    first, second = (clock.taking(itertools.repeat(t)) for t in (1.0, 2.0))
    result = compare_calls(first, second, clock, MeasurementBudget(5, 0, 100))
    assert (result.ratio, result.low, result.verdict) == (2.0, None, "no difference")


def test_compare_loaded_runtimes():
    clock = Clock()
    a, b = (Synthetic(clock, noisy(t, 0.01, seed)) for t, seed in ((0.1, 1), (0.08, 2)))
    result = compare(a, b, (1, 3, 8, 8), min_runs=20, min_time=0, max_time=100, clock=clock)
    assert result.verdict == "B is faster"
    assert result.low < 0.8 < result.high
    assert result.low > 0.78
    assert "B is faster: B/A = 0.80" in str(result)


def test_compare_models():
    deep = nn.Sequential(*[nn.Conv2d(3, 3, 3, padding=1) for _ in range(30)]).eval()
    result = compare(deep[:3], deep, (1, 3, 24, 24), **QUICK)
    assert (
        result.ratio > 1.5
    )  # ten times the work; a verdict would depend on the load of the machine
    assert result.a.p50 < result.b.p50


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux reports the peak memory of a process"
)
def test_peak_memory_includes_buffers_that_a_runtime_keeps():
    """Runs in new processes: an old one may reuse memory that it has freed."""
    code = """
import os
import torch
from torch import nn
import zoo
from zoo.profiling import latency
from zoo.runtimes import onnxruntime
torch.set_num_threads(1)
for runtime in ("eager", "onnxruntime"):
    if os.fork() == 0:
        model = nn.Sequential(nn.Conv2d(3, 64, 1), nn.Sigmoid(), nn.Conv2d(64, 3, 1)).eval()
        found = zoo.measure(model, (1, 3, 512, 512), runtime, min_runs=2, min_time=0)
        assert found.energy_j is None or found.energy_j > 0
        print(found.peak_memory_bytes, flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # Bytes of the wide feature map, which is needed once or twice; arenas grow in steps.
    wide = 64 * 512 * 512 * 4
    eager, onnxruntime = map(int, done.stdout.split())
    assert 0.9 * wide < eager < 3.5 * wide
    assert 0.9 * wide < onnxruntime < 3.5 * wide
