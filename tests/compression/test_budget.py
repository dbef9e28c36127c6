"""int8 within an accuracy budget: which layers stay in float, and when to stay in float."""

import json
from dataclasses import replace

import onnx
import pytest
import torch

import zoo
from zoo.compression import budget, int8_report
from zoo.compression.budget import Trial, find
from zoo.compression.calibration import arrays, calibration, held_out
from zoo.compression.int8 import quantize
from zoo.compression.paired import PairedDrop
from zoo.compression.recipe import Recipe, make
from zoo.compression.sensitivity import Row
from zoo.data.create import create_datamodule
from zoo.settings import DataConfig

LAYERS = [f"layer{i}" for i in range(40)]


def drop(points: float) -> PairedDrop:
    return PairedDrop(1000, 0, 0, points, points - 0.1, points + 0.1, 1.0)


def searched(lost, max_drop: float = 0.5, validated=None):
    """Search with drops that are functions of the recipe."""
    seen = []

    def measure(recipe: Recipe) -> Trial:
        seen.append(recipe)
        return Trial(recipe, drop(lost(recipe)))

    def validate(trial: Trial) -> Trial:
        return replace(trial, validation=drop((validated or lost)(trial.recipe)))

    chosen, trials = find(Recipe(), lambda: LAYERS, max_drop, measure, validate)
    assert [trial.recipe for trial in trials] == seen
    return chosen, trials


def test_the_first_recipe_is_taken_if_it_is_within_the_budget():
    chosen, trials = searched(lambda recipe: 0.5)
    assert chosen is trials[0]
    assert len(trials) == 1
    assert chosen.recipe == Recipe()


def test_ranges_and_repairs_are_tried_before_layers_in_float():
    chosen, trials = searched(
        lambda r: 3 - 2 * (r.ranges == "mse") - 0.7 * ("rounding" in r.repairs)
    )
    assert chosen.recipe == Recipe("mse", ("rounding", "biases"))
    assert [trial.recipe.ranges for trial in trials[:4]] == [
        "minmax", "percentile", "mse", "entropy",
    ]  # fmt: skip


@pytest.mark.parametrize("needed", [1, 2, 3, 5, 8, 13, 20])
def test_the_fewest_layers_that_suffice_stay_in_float(needed):
    chosen, trials = searched(lambda r: 0.4 if len(r.keep_float) >= needed else 2.0)
    if needed > 16:  # 32 would be more than half of them
        assert chosen is None
        return
    assert chosen.recipe.keep_float == tuple(LAYERS[:needed])
    assert len(trials) <= 7 + 2 * 5


def test_a_recipe_that_fails_on_the_validation_images_is_not_taken():
    chosen, trials = searched(
        lambda r: 0.0, validated=lambda r: 0.0 if len(r.keep_float) >= 2 else 9.0
    )
    assert chosen.recipe.keep_float == tuple(LAYERS[:2])
    assert trials[0].validation.points == 9.0


def test_a_budget_that_nothing_meets_ends():
    chosen, trials = searched(lambda r: 5.0)
    assert chosen is None
    assert max(len(trial.recipe.keep_float) for trial in trials) <= len(LAYERS) // 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"ranges": "mean"}, "ranges"),
        ({"repairs": ["bias"]}, "did you mean 'biases'"),
        ({"repairs": "biases"}, "must be a list"),
        ({"keep_float": "stem"}, "must be a list"),
    ],
)
def test_mistakes_in_a_recipe_are_named(arguments, said):
    with pytest.raises(zoo.BadInput, match=said):
        make(**arguments)


class Net(torch.nn.Module):
    """Names digits; `hard` loses them in int8."""

    num_classes, in_chans = 10, 3

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = torch.nn.Conv2d(3, 16, 5, stride=2)
        self.hard = torch.nn.Conv2d(16, 16, 3)
        self.last = torch.nn.Conv2d(16, 16, 1)
        self.head = torch.nn.Linear(256, 10)

    def forward(self, x):
        x = self.last(self.hard(self.stem(x).relu()).relu()).relu()
        return self.head(torch.nn.functional.adaptive_avg_pool2d(x, 4).flatten(1))


@pytest.fixture(scope="module")
def trained():
    data = create_datamodule(DataConfig(name="digits", image_size=16), batch_size=64)
    data.setup("fit")
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(2):
        for images, labels in data.eval_dataloader("train"):
            loss = torch.nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():  # a channel that is always zero, whose weights drown the others
        model.stem.weight[3], model.stem.bias[3] = 0, -1
        model.hard.weight[:, 3] = 300
    return model.eval(), data


def written(trained, path, monkeypatch, ratio: float, max_drop: float = 2.0):
    def latency(both, takes):
        return {"latency": {"ratio": ratio, "low": ratio - 0.01, "high": ratio + 0.01}}

    monkeypatch.setattr(int8_report, "latency", latency)
    model, data = trained
    rows = [Row(name, "", 1, 0.0, 0.0) for name in ("hard", "stem", "last", "head")]
    return quantize(
        model, "onnx", path, batches=arrays(calibration(data, 64), data), data=data, rows=rows,
        max_drop=max_drop, search_on=held_out(data, 128), input_size=(1, 3, 16, 16),
    )  # fmt: skip


def int8_weights(path) -> int:
    return sum(t.data_type == 3 and len(t.dims) > 1 for t in onnx.load(path).graph.initializer)


def test_the_layer_that_int8_hurts_stays_in_float(trained, tmp_path, monkeypatch, capsys):
    made = written(trained, tmp_path / "made", monkeypatch, 0.5)
    about = made.manifest["quantization"]
    assert about["keep_float"] == ["hard"]
    assert int8_weights(made.path) == 3
    assert about["budget"]["verdict"].startswith("int8: ")
    assert about["budget"]["verdict"].endswith(" points, 2.00x")
    tried = about["budget"]["trials"]
    assert tried[0]["searched"]["points"] > 5
    assert tried[-1]["keep_float"] == ["hard"]
    assert tried[-1]["validated"]["points"] == about["drop"]["points"] <= 2
    assert about["budget"]["certain"] == (about["drop"]["high"] <= 2)
    assert json.loads((made.path.parent / "quantization.json").read_text()) == about
    assert capsys.readouterr().out.count("int8 with ranges") == len(tried)


@pytest.mark.parametrize(("ratio", "max_drop", "said"), [
    (0.98, 99.0, "stay in float: 1.02x"),
    (0.5, 0.0, "stay in float: int8 changes the accuracy by"),
])  # fmt: skip
def test_float_is_what_is_left_where_int8_does_not_pay(
    trained, tmp_path, monkeypatch, ratio, max_drop, said
):
    """The search itself is left out here: it tries many files."""
    good, bad = Recipe(keep_float=("hard",)), Recipe()
    tried = [Trial(bad, drop(30.0)), Trial(good, drop(3.0)), Trial(Recipe("mse"), None, "no file")]
    monkeypatch.setattr(budget, "find", lambda *_: (tried[1] if max_drop else None, tried))
    made = written(trained, tmp_path / "made", monkeypatch, ratio, max_drop)
    found = made.manifest["quantization"]["budget"]
    assert found["verdict"].startswith(said)
    assert made.manifest["precision"] == "float32"
    assert made.manifest["comparison"]["proven"]
    assert int8_weights(made.path) == 0
    assert found["best_int8"]["drop"]["images"] == 360
    assert found["best_int8"]["keep_float"] == ["hard"], "the best that was tried"
    assert [trial["failed"] for trial in found["trials"]] == [None, None, "no file"]


@pytest.mark.parametrize(("changed", "said"), [
    ({"max_drop": -1}, "max_drop=-1 must be from 0"),
    ({"max_drop": True}, "max_drop=True"),
    ({"keep_float": ["stem"]}, "leave out keep_float"),
    ({"data": None}, "needs data and search_on"),
])  # fmt: skip
def test_a_search_without_what_it_needs_is_refused(trained, tmp_path, changed, said):
    model, data = trained
    arguments = {"max_drop": 1.0, "data": data, "search_on": held_out(data, 8)} | changed
    batches = arrays(calibration(data, 8), data)
    with pytest.raises(zoo.BadInput, match=said):
        quantize(
            model, "onnx", tmp_path / "x", batches=batches, input_size=(1, 3, 16, 16), **arguments
        )
    assert not (tmp_path / "x").exists()
