"""Results print themselves: short texts, tables for notebooks, dictionaries for JSON."""

import json
import re

import pytest
import torch
from synthetic import Clock, Synthetic, noisy
from torch import nn

import zoo
from zoo import reparam
from zoo.display import Displayed, html_table
from zoo.profiling.fusing import report
from zoo.profiling.latency import compare, measure
from zoo.profiling.layers import profile_layers


def results():
    clock = Clock()
    a, b = (Synthetic(clock, noisy(t, 0.01, seed)) for t, seed in ((0.1, 1), (0.08, 2)))
    settings = {"min_runs": 20, "min_time": 0, "max_time": 100, "clock": clock}
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    yield zoo.count(model, (1, 3, 8, 8))
    yield measure(a, (1, 3, 8, 8), **settings)
    yield compare(a, b, (1, 3, 8, 8), **settings)
    yield profile_layers(model, (1, 3, 8, 8), passes=1)
    yield report(model, zoo.reparameterize(model), (2, 3, 8, 8), timed=False)
    yield reparam.report(zoo.reparameterize(model))


@pytest.mark.parametrize("result", list(results()), ids=lambda result: type(result).__name__)
def test_results_are_short_texts_tables_and_dictionaries(result):
    text = repr(result)
    assert text.startswith(f"{type(result).__name__}(")
    assert len(text) < 250
    assert "\n" not in text
    html = result._repr_html_()
    assert html.startswith("<table><caption>")
    assert html.count("<tr>") == len(result.rows()) >= 2
    assert json.loads(json.dumps(result.to_dict()))


def test_counts_are_all_in_the_dictionary():
    counts = zoo.count(nn.Conv2d(3, 4, 3), (1, 3, 8, 8))
    found = counts.to_dict()
    assert found["macs"] == counts.macs == 4 * 27 * 36
    assert found["input_size"] == [1, 3, 8, 8]
    assert {"params", "flops", "activations", "moved_bytes", "operators", "fused"} < set(found)
    assert str(counts) == "112 params, 3.89 k MACs, 7.78 k FLOPs, 144 activations, " + (
        "input 1x3x8x8, unfused"
    )


def test_latencies_are_in_milliseconds():
    clock = Clock()
    a, b = (Synthetic(clock, noisy(t, 0.0, 1)) for t in (0.1, 0.2))
    settings = {"min_runs": 20, "min_time": 0, "max_time": 100, "clock": clock}
    found = compare(a, b, (1, 3, 8, 8), **settings)
    assert found.a.p50 == pytest.approx(100)
    assert found.b.p50 == pytest.approx(200)
    assert "A 100.000 ms, B 200.000 ms" in str(found)
    assert re.search(r"<td[^>]*>100.000 ms</td>", found._repr_html_())
    assert found.to_dict()["verdict"] == "B is slower"


def test_wide_intervals_and_few_calls_are_said():
    clock = Clock()
    settings = {"min_runs": 20, "min_time": 0, "max_time": 100, "clock": clock}
    busy = measure(Synthetic(clock, noisy(0.1, 0.9, 1)), (1, 3, 8, 8), **settings)
    assert re.search(r"interval ±\d+ %: the machine was busy", str(busy))
    assert (busy.p90_ms, busy.p99_ms) == (None, None)
    assert "p90" not in str(busy)
    quiet = measure(Synthetic(clock, noisy(0.1, 0.01, 1)), (1, 3, 8, 8), **settings)
    assert "busy" not in str(quiet)
    sides = (Synthetic(clock, noisy(0.1, 0.9, seed)) for seed in (1, 2))
    assert "the machine was busy" in str(compare(*sides, (1, 3, 8, 8), **settings))


def test_texts_in_html_are_escaped():
    assert "<b>" not in html_table("<b>", [("<b>", "<b>")])


def test_an_artefact_shows_its_manifest(tmp_path):
    made = zoo.export(nn.Conv2d(3, 4, 3).eval(), "pt2", tmp_path / "m.pt2", input_size=(1, 3, 8, 8))
    assert isinstance(made, Displayed)
    assert repr(made).startswith("Artefact(model (fused) -> ")
    assert made.to_dict()["manifest"]["artefact"]["file"] == "m.pt2"
    assert "m.pt2" in made._repr_html_()
    assert torch.export.load(made.path)
