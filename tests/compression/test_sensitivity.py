"""The table of layers: it names the layer that int8 hurts, and leaves the model as it was."""

import csv
import json
import math

import pytest
import torch
from torch import nn

import zoo
from zoo.compression.calibration import calibration, held_out
from zoo.compression.sensitivity import Row, measure, rounded, rounded_weight, table, worst, write
from zoo.data.create import create_datamodule
from zoo.settings import DataConfig
from zoo.training.tasks import get_task


class Net(nn.Module):
    """Names digits; `hard` has one weight so large that a scale for it drowns the others."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 16, 5, stride=2)
        self.hard = nn.Conv2d(16, 16, 3)
        self.head = nn.Linear(16 * 16, 10)
        self.idle = nn.Linear(2, 2)

    def forward(self, x):
        x = self.hard(self.stem(x).relu()).relu()
        return self.head(nn.functional.adaptive_avg_pool2d(x, 4).flatten(1))


@pytest.fixture(scope="module")
def measured():
    data = create_datamodule(DataConfig(name="digits", image_size=16), batch_size=64)
    data.setup("fit")
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(3):
        for images, labels in data.eval_dataloader("train"):
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        # A channel of the stem that is always zero: whatever weighs it changes nothing in float.
        model.stem.weight[3], model.stem.bias[3] = 0, -1
        model.hard.weight[:, 3] = 50
    before = {key: value.clone() for key, value in model.state_dict().items()}
    rows = measure(
        model, get_task("classification"), data, calibration(data, 64), held_out(data, 128)
    )  # fmt: skip
    after = model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert all(not module._forward_pre_hooks for module in model.modules())
    return rows


def test_the_bad_layer_comes_first(measured):
    assert [row.layer for row in measured][0] == "hard"
    assert {row.layer for row in measured} == {"stem", "hard", "head"}, "the idle one has no row"
    assert measured[0].lost > 0.05
    assert measured[0].snr_db < 10
    assert all(row.lost < 0.02 for row in measured[1:])
    assert all(row.snr_db > 25 for row in measured[1:])
    assert measured[0].weights == 16 * 16 * 9


def test_what_is_won_by_chance_is_no_merit(measured):
    keys = [(max(row.lost, 0), -row.snr_db) for row in measured]
    assert keys == sorted(keys, reverse=True)


def test_the_worst_are_named(measured):
    assert worst(measured, 0) == []
    assert worst(measured, 1) == ["hard"]
    with pytest.raises(zoo.BadInput, match="quantize.keep_float=3 must be from 0 to 2"):
        worst(measured, 3)


def test_the_table_is_written_and_shown(measured, tmp_path):
    write(measured, tmp_path)
    with (tmp_path / "sensitivity.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["layer"] for row in rows] == [row.layer for row in measured]
    assert [
        Row(**row) for row in json.loads((tmp_path / "sensitivity.json").read_text())
    ] == measured
    lines = table(measured, "classification").splitlines()
    assert lines[0].split() == ["layer", "kind", "weights", "lost,", "points", "SNR,", "dB"]
    assert lines[1].split()[:3] == ["hard", "Conv2d", "2,304"]
    assert float(lines[1].split()[3]) == pytest.approx(100 * measured[0].lost, abs=0.01)


def test_rounding_is_that_of_int8():
    torch.manual_seed(0)
    x = torch.rand(1000) * 7 - 2
    y = rounded(x, (-2.0, 5.0))
    assert (y - x).abs().max() <= 0.51 * 7 / 255
    assert len(y.unique()) <= 256
    assert rounded(torch.zeros(1), (-2.0, 5.0)) == 0
    assert rounded(torch.tensor([99.0, -99.0]), (-2.0, 5.0)).tolist() == pytest.approx(
        [5, -2], abs=0.02
    )
    weight = torch.randn(4, 3, 2) * torch.tensor([1.0, 10.0, 0.1, 0.0]).view(4, 1, 1)
    for axis, w in [(0, weight), (1, weight.transpose(0, 1).contiguous())]:
        z = rounded_weight(w, axis)
        for before, after in zip(w.unbind(axis), z.unbind(axis), strict=True):
            assert len(after.unique()) <= 255
            assert (after - before).abs().max() <= 0.51 * before.abs().max() / 127
            assert not math.isnan(float(after.sum()))
