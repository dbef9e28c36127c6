"""What a selective scan counts: one figure by two counters, the same with any length of formula."""

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
    """A scan of a map with itself, by any form."""

    def __init__(self, backend="auto", gate=False):
        super().__init__()
        self.backend, self.gate = backend, gate
        self.register_buffer("A", -torch.rand(CHANNELS, STATES))
        self.register_buffer("B", torch.rand(BATCH, GROUPS, STATES, LENGTH))

    def forward(self, u):
        z = u if self.gate else None
        return selective_scan(u, u, self.A, self.B, self.B, z=z, backend=self.backend)


def test_flops_of_the_convention_and_no_macs():
    found = count(Scan(), (BATCH, CHANNELS, LENGTH))
    assert (found.macs, found.flops, found.activations) == (0, FLOPS, 0)
    assert found.by_operator() == {"scan": {"macs": 0, "flops": FLOPS, "activations": 0}}


@pytest.mark.parametrize("backend", ["auto", "tiled"])
def test_torchs_counter_sees_the_same(backend):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        Scan(backend)(torch.rand(BATCH, CHANNELS, LENGTH))
    assert counter.get_total_flops() == FLOPS
    assert cost.flops((BATCH, CHANNELS, LENGTH), (CHANNELS, STATES)) == FLOPS


def test_torchs_counter_sees_the_backward_pass():
    u = torch.rand(BATCH, CHANNELS, LENGTH, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        Scan()(u).sum().backward()
    backward = ELEMENTS * (19 * STATES + 4)
    assert counter.get_total_flops() == FLOPS + backward
    by_operator = counter.get_flop_counts()["Global"]
    assert by_operator[torch.ops.zoo.selective_scan_backward] == backward


def test_the_gate_is_counted_as_what_it_is():
    found = count(Scan(gate=True), (BATCH, CHANNELS, LENGTH))
    assert found.flops == FLOPS + 2 * ELEMENTS  # silu, product


@pytest.mark.parametrize("backend", ["multi_level", "doubling", "sequential"])
def test_plain_forms_count_their_own_operators(backend):
    """They do the recurrence more than once, or never all of it: their figures are their own."""
    found = count(Scan(backend), (BATCH, CHANNELS, LENGTH))
    assert found.macs == 0
    assert "scan" not in found.by_operator()
    assert found.flops > 5 * ELEMENTS * STATES


def test_a_mamba_block_by_hand():
    channels, length = 32, 20
    inner, rank, states = 64, 2, 16
    found = count(Mamba(channels), (1, length, channels))
    linear = channels * 2 * inner + inner * channels
    projections = inner * (rank + 2 * states) + rank * inner
    assert found.macs == length * (linear + projections + 4 * inner)
    assert found.by_operator()["scan"]["flops"] == length * inner * (9 * states + 1)


def test_lightm_unet_counts_as_measured():
    """0.735 G for 64 x 64 pixels by counters that do not see the projection of the steps."""
    model = zoo.create_model("lightm_unet_2d")
    found = count(model, (1, 3, 64, 64))
    unseen = sum(
        scan.dt_proj.numel() * positions
        for stage, positions in ((0, 4096), (1, 1024), (2, 256), (3, 64))
        for name, scan in model.stages[stage].named_modules()
        if name.endswith("mamba.scan") and "downsample" not in name
    ) + sum(
        model.get_submodule(f"stages.{i}.downsample.mixer.mamba.scan").dt_proj.numel() * positions
        for i, positions in ((1, 4096), (2, 1024), (3, 256))
    )
    assert found.macs - unseen == pytest.approx(0.735e9, rel=1e-3)
