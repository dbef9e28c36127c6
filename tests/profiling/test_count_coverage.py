"""Which layers and operators `zoo.count` knows: all of torch.nn, timm and torchvision."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from zoo.counting.count import count
from zoo.counting.rules import all_rules
from zoo.errors import BadInput, UncountedOperator

RECORD = json.loads((Path(__file__).parent / "operators.json").read_text(encoding="utf-8"))

# Operators whose work depends on values, or that PyTorch does not let a tracer see.
REFUSED_OPERATORS = {"torchvision::nms", "torchvision::roi_align"}
REFUSED_LAYERS = {
    "CrossMapLRN2d": (UncountedOperator, "CrossMapLRN2d"),  # a Python function, not an operator
    "MaxUnpool1d": (BadInput, "cannot trace it"),  # compares sizes, which a trace makes tensors
    "MaxUnpool2d": (BadInput, "cannot trace it"),
    "MaxUnpool3d": (BadInput, "cannot trace it"),
}


@pytest.mark.parametrize("module", RECORD["modules"])
def test_every_recorded_operator_has_a_rule(module):
    """The record is written by `python -m tools operators`."""
    unknown = {*RECORD["modules"][module]["operators"]} - {*all_rules()} - REFUSED_OPERATORS
    assert not unknown


class Calls(nn.Module):
    """Calls `function(layer, x)`, for layers that do not take one tensor of numbers."""

    def __init__(self, layer, function):
        super().__init__()
        self.layer, self.function = layer, function

    def forward(self, x):
        return self.function(self.layer, x)


def twice(layer):
    return Calls(layer, lambda layer, x: layer(x, x))


def indexed(layer):
    return Calls(layer, lambda layer, x: layer(x.long()))


def unpooled(pool, unpool):
    return Calls(nn.ModuleList([pool, unpool]), lambda layer, x: layer[1](*layer[0](x)))


SPECIAL = {
    "Bilinear": (twice(nn.Bilinear(8, 8, 4)), (2, 8)),
    "CosineSimilarity": (twice(nn.CosineSimilarity()), (2, 8)),
    "PairwiseDistance": (twice(nn.PairwiseDistance()), (2, 8)),
    "Embedding": (indexed(nn.Embedding(4, 8)), (2, 8)),
    "EmbeddingBag": (indexed(nn.EmbeddingBag(4, 8)), (2, 8)),
    "Fold": (nn.Fold((4, 4), (2, 2)), (1, 32, 9)),
    "FractionalMaxPool2d": (nn.FractionalMaxPool2d(2, output_size=3), (1, 2, 8, 8)),
    "FractionalMaxPool3d": (nn.FractionalMaxPool3d(2, output_size=3), (1, 2, 8, 8, 8)),
    "MaxUnpool1d": (unpooled(nn.MaxPool1d(2, return_indices=True), nn.MaxUnpool1d(2)), (1, 2, 8)),
    "MaxUnpool2d": (
        unpooled(nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)),
        (1, 2, 8, 8),
    ),
    "MaxUnpool3d": (
        unpooled(nn.MaxPool3d(2, return_indices=True), nn.MaxUnpool3d(2)),
        (1, 2, 8, 8, 8),
    ),
    "MultiheadAttention": (
        Calls(nn.MultiheadAttention(8, 2, batch_first=True), lambda layer, x: layer(x, x, x)),
        (2, 5, 8),
    ),
    "Transformer": (twice(nn.Transformer(8, 2, 1, 1, 16, batch_first=True)), (2, 5, 8)),
    "TransformerDecoder": (
        twice(nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16, batch_first=True), 1)),
        (2, 5, 8),
    ),
    "TransformerDecoderLayer": (
        twice(nn.TransformerDecoderLayer(8, 2, 16, batch_first=True)),
        (2, 5, 8),
    ),
    "TransformerEncoder": (
        nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1),
        (2, 5, 8),
    ),
    "TransformerEncoderLayer": (
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        (2, 5, 8),
    ),
    "Unflatten": (nn.Unflatten(1, (2, 4)), (2, 8)),
    "AdaptiveLogSoftmaxWithLoss": (
        Calls(nn.AdaptiveLogSoftmaxWithLoss(16, 10, [3, 6]), lambda layer, x: layer.log_prob(x)),
        (2, 16),
    ),
}
CONTAINERS = {"Container", "DataParallel", "Module", "ModuleDict", "ModuleList", "ParameterDict"}
CONTAINERS |= {"ParameterList", "Sequential", "RNNBase", "RNNCellBase"}
LAYERS = sorted(
    name
    for name, cls in vars(nn).items()
    if isinstance(cls, type) and issubclass(cls, nn.Module) and name not in CONTAINERS
    if "Loss" not in name or name == "AdaptiveLogSoftmaxWithLoss"
)
ARGUMENTS = ((), (8,), (8, 8), (8, 8, 3), (2,), (2, 8), (8, 2), (2, 4, 8))
SIZES = ((2, 8), (2, 8, 16), (2, 8, 16, 16), (2, 8, 8, 8, 8))


def layer_and_size(name):
    """Return a layer of torch.nn and an input size that it takes, found by trying."""
    if name in SPECIAL:
        return SPECIAL[name]
    for arguments in ARGUMENTS:
        for size in SIZES:
            try:
                layer = getattr(nn, name)(*arguments).eval()
                layer(torch.zeros(size))
            except Exception:  # does not take these arguments or this input
                continue
            return layer, size
    raise AssertionError(f"no arguments for {name}; add it to SPECIAL")


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_of_torch(name):
    layer, size = layer_and_size(name)
    if name in REFUSED_LAYERS:
        error, message = REFUSED_LAYERS[name]
        with pytest.raises(error, match=message):
            count(layer, size)
        return
    found = count(layer, size)
    weights = sum(p.numel() for p in layer.parameters() if p.ndim > 1)
    if "Norm" not in name and "Embedding" not in name:  # norms may have weights of any rank
        assert (found.macs > 0) == (weights > 0)


def test_recurrent_layers():
    steps, batch = 5, 2
    lstm = nn.LSTM(8, 6, num_layers=2, bidirectional=True, batch_first=True)
    first, second = 4 * 6 * (8 + 6), 4 * 6 * (12 + 6)  # both matrices of a direction
    found = count(lstm, (batch, steps, 8))
    assert found.macs == steps * batch * 2 * (first + second)
    assert found.flops == 2 * found.macs + steps * batch * 4 * 6 * 13
    projected = nn.LSTM(8, 6, proj_size=3, bias=False)
    found = count(projected, (steps, batch, 8))
    assert found.macs == steps * batch * (24 * 8 + 24 * 3 + 3 * 6)
    assert found.flops == 2 * found.macs + steps * batch * 6 * 13
    found = count(nn.GRU(8, 6), (steps, batch, 8))
    assert found.macs == steps * batch * 3 * 6 * (8 + 6)
    assert found.flops == 2 * found.macs + steps * batch * 6 * 11
    assert count(nn.RNN(8, 6, nonlinearity="relu"), (steps, 8)).macs == steps * 6 * (8 + 6)
    cell = count(nn.LSTMCell(8, 6), (batch, 8))
    assert cell.macs == count(nn.LSTM(8, 6), (1, batch, 8)).macs


def test_bilinear_layer():
    assert count(twice(nn.Bilinear(8, 8, 4)), (2, 8)).macs == 2 * 4 * (8 * 8 + 8)


def test_fourier_transforms():
    size = (2, 3, 8, 16)
    n = math.prod(size)

    def flops(function):
        return count(Calls(nn.Identity(), lambda layer, x: function(x)), size).flops

    assert flops(torch.fft.fft) == 5 * n * 4
    assert flops(torch.fft.rfft2) == 2.5 * n * 7
    assert flops(lambda x: torch.fft.rfft2(x, dim=(1, 2))) == int(2.5 * n * math.log2(24))
    assert flops(torch.fft.fftn) == int(5 * n * math.log2(n))
    both = flops(lambda x: torch.fft.irfft2(torch.fft.rfft2(x)))
    assert both == 2 * 2.5 * n * 7


class Unreturned(nn.Module):
    def __init__(self):
        super().__init__()
        self.main, self.aux = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 80, 3)

    def forward(self, x):
        self.last = self.aux(x).relu()  # kept for a loss, not returned
        return self.main(x)


def test_work_that_is_not_returned_counts():
    found = count(Unreturned(), (1, 3, 16, 16))
    assert found.macs == 14 * 14 * 27 * 88
    assert found.flops == 2 * found.macs + 14 * 14 * 80
    assert found.operators == 3
    assert found.by_module()["aux"]["macs"] == 14 * 14 * 27 * 80


@dataclasses.dataclass
class Output:
    logits: torch.Tensor


@pytest.mark.parametrize(
    "wrap",
    [Output, lambda x: None, lambda x: {"a": [x, None, "text"]}, lambda x: float(x.sum())],
    ids=["dataclass", "nothing", "nested", "number"],
)
def test_outputs_of_any_type(wrap):
    model = Calls(nn.Conv2d(3, 8, 3), lambda layer, x: wrap(layer(x)))
    assert count(model, (1, 3, 16, 16)).macs == 14 * 14 * 27 * 8
