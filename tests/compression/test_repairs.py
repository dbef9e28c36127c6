"""Repairs before int8: what each leaves equal, and that none makes its own objective worse."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from zoo import runtimes
from zoo.compression import int8_executorch, int8_onnx, int8_openvino, repairs, saturation
from zoo.compression.recipe import Recipe
from zoo.deploy.spec import ExportSpec


def chain() -> nn.Sequential:
    """Pairs of convolutions of each kind, with channels of very different size."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8, bias=False),
        nn.LeakyReLU(0.1),
        nn.Conv2d(8, 6, 1, groups=2),
        nn.ReLU6(),
        nn.Conv2d(6, 4, 1),
    )
    with torch.no_grad():
        for layer in model[::2]:
            layer.weight.mul_(torch.logspace(-2, 2, len(layer.weight)).view(-1, 1, 1, 1))
    return model.double().eval()


def test_equalised_channels_leave_the_float_output_unchanged():
    model, x = chain(), torch.randn(4, 3, 12, 12, dtype=torch.float64)
    equal = copy.deepcopy(model)
    assert repairs.equalize(equal) == 2, "not across ReLU6, whose limit has a size of its own"
    with torch.no_grad():
        want, have = model(x), equal(x)
    assert (want - have).abs().max() <= 1e-12 * want.abs().max()
    assert not torch.equal(model[0].weight, equal[0].weight)
    for i in (0, 2):
        written = equal[i].weight.flatten(1).abs().amax(1)
        read = repairs._inputs(equal[i + 2]).abs().amax(1)
        assert torch.allclose(written, read), "both ranges of a channel are equal"


class Reread(nn.Module):
    """A layer whose output two others read, and one that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.twice = (nn.Conv2d(3, 3, 1) for _ in range(3))

    def forward(self, x):
        y = self.first(x).relu()
        return self.twice(self.twice(self.second(y) + y))


def test_only_a_sole_reader_makes_a_pair():
    assert repairs.equalize(Reread()) == 0


@pytest.mark.parametrize("kind", ["conv", "grouped", "transposed", "linear"])
def test_corrected_biases_make_channel_means_equal(kind):
    torch.manual_seed(1)
    layers = {
        "conv": nn.Conv2d(4, 6, 3, padding=1, stride=2),
        "grouped": nn.Conv2d(4, 6, 3, padding=1, groups=2),
        "transposed": nn.ConvTranspose2d(4, 6, 2, stride=2),
        "linear": nn.Linear(4, 6),
    }
    layer = layers[kind].double()
    model = nn.Sequential(layer).eval()
    shape = (16, 5, 4) if kind == "linear" else (16, 4, 6, 6)
    batches = [3 + np.random.default_rng(i).standard_normal(shape) for i in range(2)]
    rows = repairs.rows_of(layer)
    rounded = repairs.nearest(rows, (np.abs(rows).reshape(len(rows), -1).max(1), 3))
    coarse = copy.deepcopy(model)
    axis = 1 if kind == "transposed" else 0
    with torch.no_grad():
        coarse[0].weight.copy_(torch.from_numpy(np.moveaxis(rounded, 0, axis)))

    def means(net: nn.Module) -> torch.Tensor:
        with torch.no_grad():
            y = torch.cat([net(torch.from_numpy(batch)) for batch in batches])
        return y.movedim(-1 if kind == "linear" else 1, 0).flatten(1).mean(1)

    assert (means(coarse) - means(model)).abs().max() > 1e-3
    assert repairs.correct_biases(coarse, model, {"0": rounded}, batches) == 1
    assert torch.allclose(means(coarse), means(model), rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("groups", [1, 3])
def test_adaptive_rounding_is_never_worse_than_the_nearest_step(seed, groups):
    generator = np.random.default_rng(seed)
    rows = generator.standard_normal((6, 12))
    inputs = generator.standard_normal((groups, 50, 12)) @ generator.standard_normal((12, 12))
    moments = inputs.swapaxes(1, 2) @ inputs / 50
    grid = saturation.weight_limits(rows, 0).astype(np.float64) * 4, 127  # coarse

    def objective(rounded: np.ndarray) -> np.ndarray:
        error = (rounded - rows).reshape(groups, -1, 12)
        return np.einsum("goi,gij,goj->go", error, moments, error).ravel()

    nearest, adapted = repairs.nearest(rows, grid), repairs.round_rows(rows, grid, moments)
    assert (objective(adapted) <= objective(nearest)).all()
    assert objective(adapted).sum() < 0.9 * objective(nearest).sum()
    steps = adapted / (grid[0][:, None] / 127)
    assert np.allclose(steps, steps.round())
    assert (np.abs(adapted - rows) <= 1.0001 * grid[0][:, None] / 127).all(), "up or down only"
    assert saturation.largest_pair(np.round(steps)) <= saturation.largest_pair(
        np.round(nearest / (grid[0][:, None] / 127))
    )


def test_a_single_weight_that_cannot_win_stays_nearest():
    rows = np.array([[0.6, 1.0, -1.0]])
    same = repairs.round_rows(rows, (np.array([1.0]), 1), np.eye(3)[None])
    assert same.tolist() == [[1.0, 1.0, -1.0]]


@pytest.mark.parametrize(("quantizer", "suffix", "runtime"), [
    (int8_onnx, "onnx", "onnxruntime"), (int8_openvino, "xml", "openvino"),
])  # fmt: skip
def test_biases_are_corrected_once(quantizer, suffix, runtime, tmp_path):
    """By our repair or by the quantiser: twice would be as wrong as never."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 1)).eval()
    with torch.no_grad():  # one weight makes the steps of the others coarse
        model[0].weight[:, 0, 0, 0] = 40 * torch.rand(6)
        model[0].bias.fill_(100.0)
    batches = [3 + np.random.default_rng(0).standard_normal((64, 4, 6, 6), dtype=np.float32)]
    with torch.no_grad():
        want = model(torch.from_numpy(batches[0])).numpy()

    def mean_error(names: tuple[str, ...]) -> float:
        recipe, file = Recipe(repairs=names), tmp_path / f"{len(names)}.{suffix}"
        repaired, limits, _ = repairs.repair(model, recipe, quantizer, batches)
        spec = ExportSpec((1, 4, 6, 6), dynamic_batch=True)
        quantizer.convert(repaired, file, spec, batches, recipe, limits)
        error = runtimes.load(file, runtime)(batches[0])[0] - want
        return float(np.abs(error.mean((0, 2, 3))).max())

    never = mean_error(())
    assert mean_error(("biases",)) < 0.4 * never


@pytest.mark.parametrize("quantizer", [int8_onnx, int8_openvino, int8_executorch])
def test_a_repaired_copy_has_its_weights_on_the_grid_of_the_format(quantizer):
    model = chain().float()
    before = copy.deepcopy(model.state_dict())
    batches = [np.random.default_rng(0).standard_normal((8, 3, 12, 12), dtype=np.float32)]
    recipe = Recipe(repairs=("rounding", "biases"), keep_float=("6",))
    repaired, limits, changed = repairs.repair(model, recipe, quantizer, batches)
    assert changed == {"rounding": 3, "biases": 2}
    assert limits is not None
    assert set(limits) == {"0", "2", "4"}
    for name, limit in limits.items():
        layer = repaired.get_submodule(name)
        _, steps = quantizer.grid(layer, repairs.rows_of(model.get_submodule(name)))
        scaled = repairs.rows_of(layer) / np.reshape(limit, (-1, 1, 1, 1)) * steps
        assert np.allclose(scaled, scaled.round(), atol=1e-3)
    assert torch.equal(repaired[6].weight, before["6.weight"]), "a layer in float is not rounded"
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert repairs.repair(model, Recipe(repairs=()), quantizer, batches)[0] is model
