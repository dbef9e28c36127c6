"""Memory and memory traffic of a forward pass, compared with hand calculations."""

import json
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import zoo
from zoo.counting.traffic import measure_traffic

KIB = 1024


class Chain(nn.Module):
    """Feature maps of 4 KiB (8 x 8 x 16 floats) and one of 16 KiB."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(16, 64, 1, bias=False)
        self.narrow = nn.Conv2d(64, 16, 1, bias=False)

    def forward(self, x):
        y = self.wide(x)  # x, y: 4 + 16
        y = self.narrow(y)  # x, wide, narrow: 4 + 16 + 4
        return (x + y).transpose(1, 2)  # x, y, sum: 12


def test_peak_and_moved_bytes_of_a_small_model():
    traffic = measure_traffic(Chain().eval(), torch.zeros(1, 16, 8, 8))
    assert traffic.peak == (4 + 16 + 4) * KIB
    assert traffic.operators == 3, "two convolutions and a sum, but not the view"
    weights = 16 * 64 * 4
    assert traffic.by_module == {
        "wide": (4 + 16) * KIB + weights,
        "narrow": (16 + 4) * KIB + weights,
        "": (4 + 4 + 4) * KIB,
    }
    assert traffic.moved == sum(traffic.by_module.values())


def test_an_in_place_operator_moves_bytes_but_allocates_none():
    class InPlace(nn.Module):
        def forward(self, x):
            return (x * 2).relu_()

    traffic = measure_traffic(InPlace(), torch.zeros(1, 16, 8, 8))
    assert traffic.peak == 8 * KIB
    assert traffic.moved == 16 * KIB


def test_an_expanded_tensor_is_read_once():
    class Spread(nn.Module):
        def forward(self, x):
            return x + torch.ones(1, 16, 1, 1).expand(1, 16, 8, 8)

    # creating and filling the ones writes 64 bytes each; the sum reads 4 KiB + 64 and writes 4 KiB
    assert 8 * KIB < measure_traffic(Spread(), torch.zeros(1, 16, 8, 8)).moved <= 8 * KIB + 5 * 64


def test_count_reports_traffic_that_grows_with_the_batch():
    model = Chain().eval()
    one, four = (zoo.count(model, (batch, 16, 8, 8)) for batch in (1, 4))
    assert one.peak_activation_bytes == 24 * KIB
    assert four.peak_activation_bytes == 4 * 24 * KIB
    assert one.activations == 64 * 64 + 16 * 64
    assert one.activation_bytes == 4 * one.activations
    assert one.intensity == pytest.approx(one.flops / one.moved_bytes)
    assert zoo.count(model.double(), (1, 16, 8, 8)).activation_bytes == 8 * one.activations


def test_no_hooks_remain_after_an_error():
    class Faulty(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.inner(x)

    model = Faulty()
    with pytest.raises(RuntimeError):
        measure_traffic(model, torch.zeros(1, 5, 8, 8))
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def _peak_bytes(call: Callable[[], Any], folder: Path) -> int:
    """Return the peak memory of `call` in bytes, as PyTorch's profiler records it."""
    trace = folder / "trace.json"
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    profiler.export_chrome_trace(str(trace))
    events = [e for e in json.loads(trace.read_text())["traceEvents"] if e["name"] == "[memory]"]
    events.sort(key=lambda event: event["ts"])
    return max(accumulate(event["args"]["Bytes"] for event in events))


def test_counting_needs_no_more_memory_than_running(tmp_path):
    """Besides the memory of a forward pass, counting allocates only its own input."""
    model = zoo.create_model("mobilenetv2_100").eval()
    x = torch.zeros(1, 3, 512, 512)

    def run() -> None:
        with torch.no_grad():
            model(x)

    def count() -> None:
        zoo.count(model, tuple(x.shape))

    for call in (run, count):  # the first call allocates memory that stays
        call()
    running = _peak_bytes(run, tmp_path)
    assert (
        running > 8 * x.nbytes
    )  # at least two maps of 32 channels with half the sides of the input
    assert _peak_bytes(count, tmp_path) <= running + 1.01 * x.nbytes
