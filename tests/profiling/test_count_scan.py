"""The counts of selective scans by `zoo.count` and by PyTorch's FlopCounterMode."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import zoo
from zoo.counting.count import count
from zoo.models.lightm_unet import Mamba
from zoo.ops import selective_scan
from zoo.ops.scan import cost

BATCH, CHANNELS, LENGTH, STATES, GROUPS = 2, 12, 30, 5, 3
ELEMENTS = BATCH * CHANNELS * LENGTH
FLOPS = 9 * ELEMENTS * STATES + ELEMENTS  # state-spaces/mamba, issue 110


class Scan(nn.Module):
    """A selective scan with a given backend."""

    def __init__(self, backend="auto", gate=False):
        super().__init__()
        self.backend, self.gate = backend, gate
        self.register_buffer("A", -torch.rand(CHANNELS, STATES))
        self.register_buffer("B", torch.rand(BATCH, GROUPS, STATES, LENGTH))

    def forward(self, u):
        z = u if self.gate else None
        return selective_scan(u, u, self.A, self.B, self.B, z=z, backend=self.backend)


def test_a_scan_has_the_conventional_flops_and_no_macs():
    found = count(Scan(), (BATCH, CHANNELS, LENGTH))
    assert (found.macs, found.flops, found.activations) == (0, FLOPS, 0)
    assert found.by_operator() == {"scan": {"macs": 0, "flops": FLOPS, "activations": 0}}


@pytest.mark.parametrize("backend", ["auto", "tiled"])
def test_the_counter_of_pytorch_agrees(backend):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        Scan(backend)(torch.rand(BATCH, CHANNELS, LENGTH))
    assert counter.get_total_flops() == FLOPS
    assert cost.flops((BATCH, CHANNELS, LENGTH), (CHANNELS, STATES)) == FLOPS


def test_the_counter_of_pytorch_counts_the_backward_pass():
    u = torch.rand(BATCH, CHANNELS, LENGTH, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        Scan()(u).sum().backward()
    backward = ELEMENTS * (19 * STATES + 4)
    assert counter.get_total_flops() == FLOPS + backward
    by_operator = counter.get_flop_counts()["Global"]
    assert by_operator[torch.ops.zoo.selective_scan_backward] == backward


def test_the_gate_counts_as_elementwise_operators():
    found = count(Scan(gate=True), (BATCH, CHANNELS, LENGTH))
    assert found.flops == FLOPS + 2 * ELEMENTS  # silu, product


@pytest.mark.parametrize("backend", ["multi_level", "any_length", "sequential"])
def test_plain_algorithms_count_their_own_operators(backend):
    """Their FLOPs differ from the convention, because they organise the recurrence differently."""
    found = count(Scan(backend), (BATCH, CHANNELS, LENGTH))
    assert found.macs == 0
    assert "scan" not in found.by_operator()
    assert found.flops > 5 * ELEMENTS * STATES


def test_counts_of_a_mamba_block():
    channels, length = 32, 20
    inner, rank, states = 64, 2, 16
    found = count(Mamba(channels), (1, length, channels))
    linear = channels * 2 * inner + inner * channels
    projections = inner * (rank + 2 * states) + rank * inner
    assert found.macs == length * (linear + projections + 4 * inner)
    assert found.by_operator()["scan"]["flops"] == length * inner * (9 * states + 1)


def test_counts_of_lightm_unet():
    """Other counters report 0.735 GMACs for 64 x 64 pixels, without the step projections."""
    model = zoo.create_model("lightm_unet_2d")
    found = count(model, (1, 3, 64, 64))
    step_projections = sum(
        scan.dt_proj.numel() * positions
        for stage, positions in ((0, 4096), (1, 1024), (2, 256), (3, 64))
        for name, scan in model.stages[stage].named_modules()
        if name.endswith("mamba.scan") and "downsample" not in name
    ) + sum(
        model.get_submodule(f"stages.{i}.downsample.mixer.mamba.scan").dt_proj.numel() * positions
        for i, positions in ((1, 4096), (2, 1024), (3, 256))
    )
    assert found.macs - step_projections == pytest.approx(0.735e9, rel=1e-3)
