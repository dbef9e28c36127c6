"""Layer profiles: MACs, bytes and times per layer, limits, and names of layer types."""

import time

import pytest
import torch
from torch import nn

import zoo
from zoo.profiling.layers import Layers, Roofline, _layer, comparison_table, kind_of, profile_layers


class Slow(nn.Module):
    def forward(self, x):
        time.sleep(0.02)
        return x * 2


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.deep = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU())
        self.slow = Slow()

    def forward(self, x):
        x = self.conv(x)
        x = x + self.deep(x)
        return self.slow(x).mean((2, 3)) @ torch.ones(8, 5)


@pytest.fixture(scope="module")
def profile() -> Layers:
    model = Net().train()
    layers = profile_layers(model, (2, 3, 16, 16), threads=1, passes=3)
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    return layers


def test_each_mac_belongs_to_exactly_one_layer(profile):
    macs = {layer.name: layer.macs for layer in profile.layers}
    pixels = 2 * 16 * 16
    assert macs["conv"] == pixels * 8 * 27
    assert macs["deep.0"] == pixels * 8 * 9
    assert macs[""] == 2 * 8 * 5  # the matrix product that the model calls directly
    assert sum(macs.values()) == zoo.count(Net(), (2, 3, 16, 16)).macs
    assert {layer.name: layer.params for layer in profile.layers}["conv"] == 216


def test_the_time_of_a_layer_excludes_its_submodules(profile):
    times = {layer.name: layer.ms for layer in profile.layers}
    assert times["slow"] >= 20
    assert (
        sum(times.values()) - times["slow"] < times["slow"]
    )  # the modules around it do not include it
    assert profile.total_ms >= times["slow"]
    assert profile.roofline.gmacs_per_s > 0
    assert profile.roofline.gbytes_per_s > 0


def test_a_sleeping_layer_is_bound_by_overhead(profile):
    assert {layer.name: layer.bound for layer in profile.layers}["slow"] == "overhead"


@pytest.mark.parametrize(
    ("seconds", "macs", "moved", "bound"),
    [(1.0, 10**9, 10**8, "compute"), (1.0, 10**8, 10**9, "memory"), (1.0, 10**7, 0, "overhead")],
)
def test_the_roofline_decides_what_bounds_a_layer(seconds, macs, moved, bound):
    layer = _layer("x", nn.ReLU(), seconds, macs, moved, Roofline(2.0, 2.0))
    assert layer.bound == bound
    assert layer.gmacs_per_s == pytest.approx(macs / 1e9)


def test_layer_types_include_kernel_size_and_grouping():
    assert kind_of(nn.Conv2d(8, 8, 3, groups=8)) == "Conv2d 3x3 depthwise"
    assert kind_of(nn.Conv2d(8, 8, (1, 5), groups=2)) == "Conv2d 1x5 grouped"
    assert kind_of(nn.Conv2d(8, 8, 1)) == "Conv2d 1x1"
    assert kind_of(nn.Linear(2, 2)) == "Linear"


def test_table_of_two_models(profile):
    by_type = profile.by_type()
    assert next(iter(by_type)) == "Slow"
    assert by_type["Conv2d 3x3"]["layers"] == 1
    table = comparison_table({"a": profile, "b": profile})
    assert len(table.columns) == 1 + 2 * 4
    assert table.row_count == len(by_type) + 1


def test_a_profile_can_be_written_as_json(profile):
    import json

    values = json.loads(json.dumps(profile.to_dict()))
    assert [layer["name"] for layer in values["layers"]] == ["", "conv", "deep.0", "deep.1", "slow"]
    assert set(values) == {"layers", "roofline", "total_ms"}
