"""docs/models.md states the facts of every finished model; its counts are those of the code."""

import json
import re

import pytest
from support import FINISHED, SMALLEST

import zoo
from tools import counts, latencies, models_page
from tools.generated import WRITE
from tools.latencies import RECORDS
from zoo import registry

COUNTS = counts.read()
PAGE = models_page.FILE.read_text("utf-8")
# Counted again here; `python -m tools write` counts models with other parameters or sizes.
QUICK = [name for name in SMALLEST if COUNTS.get(name, {}).get("macs", 0) < 4e8]


def cells(name: str) -> dict[str, str]:
    """Return the row of a model by its columns."""
    rows = [line for line in PAGE.splitlines() if line.startswith(("| model |", f"| {name} |"))]
    parted = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in rows]
    head = next(line for line in parted if "input size" in line)
    (row,) = [line for line in parted if line[0] == name and len(line) == len(head)]
    return dict(zip(head, row, strict=True))


def test_every_finished_model_has_current_counts():
    assert list(COUNTS) == sorted(FINISHED), WRITE
    for name in FINISHED:
        assert counts.is_current(name, COUNTS), f"{name}: {WRITE}"


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_counts_are_those_of_the_code(name):
    assert counts.count_model(name) == COUNTS[name], WRITE


def test_counts_are_those_of_the_measurements():
    for line in RECORDS.read_text("utf-8").splitlines():
        record = json.loads(line)
        if not record["fused"] and record.get("macs") is not None and record["model"] in COUNTS:
            assert record["macs"] == COUNTS[record["model"]]["macs"], record["model"]


@pytest.mark.parametrize("name", FINISHED)
def test_a_row_states_the_facts_of_the_model(name):
    facts, row = zoo.model_info(name), cells(name)
    assert facts["paper"]["arxiv"] in row["paper"]
    assert row["year"] == str(facts["paper"]["year"])
    tops = [entry["top1"] for entry in facts["published"] if "top1" in entry]
    assert not tops or float(row["top-1"]) == max(tops)
    assert not tops or row["top-1 source"], "a figure without its source"
    assert facts["code"]["url"] in row["code licence"]
    licences = {entry.get("licence", "not stated") for entry in facts.get("weights", [])}
    assert set(row["weights licence"].split("; ")) - {""} == licences
    assert (row["weights"] == "automatic") == registry.is_pretrained(registry.get_spec(name))
    assert ("any size" in row["supports"]) == facts["capabilities"].get("dynamic_size", False)
    assert str(facts["input"].get("multiple", "any")) in row["input size"]
    assert ("fused" in row["supports"]) == facts["capabilities"].get("reparam", False)
    for column, figure in (("params", facts["params"]), ("MACs", COUNTS[name]["macs"])):
        number, unit = (row[column] + " ").split(" ")[:2]
        assert float(number) * {"k": 1e3, "M": 1e6, "G": 1e9}[unit] == pytest.approx(
            figure, rel=1e-2
        )


@pytest.mark.parametrize("name", SMALLEST)
def test_quirks_are_kept_or_changed_for_a_reason(name):
    quirks = zoo.model_info(name).get("quirks")
    assert isinstance(quirks, list), "facts list the quirks of the public code; [] if it has none"
    for quirk in quirks:
        assert quirk.keys() in ({"kept", "why"}, {"changed", "why"})
        assert all(text.strip() and not text.endswith(".") for text in quirk.values())
        assert f"{quirk.get('kept') or quirk['changed']}; {quirk['why']}." in PAGE, WRITE


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("paper", {"title": "t", "arxiv": "1234.56789", "year": 1999}),
        ("published", [{"source": "s", "top1": 12.5}]),
        ("weights", [{"tag": "t", "keys": "timm", "licence": "new", "page": "https://x.org"}]),
        ("input", {"size": [3, 96, 96], "multiple": 32}),
        ("capabilities", {"features": True}),
        ("quirks", []),
    ],
)
def test_any_change_of_facts_changes_the_page(key, value, monkeypatch):
    for name in zoo.list_models(family="pvt"):
        monkeypatch.setitem(registry.get_spec(name).facts, key, value)
    assert models_page.render(COUNTS, latencies.read()) != PAGE


def test_families_are_sorted_by_latency_and_the_front_comes_first():
    records = latencies.read()
    fused = [record for record in records if record["fused"]]
    least = {}
    for record in fused:
        name = record["model"]
        least[name] = min(record["p50_ms"], least.get(name, record["p50_ms"]))
    section = PAGE[PAGE.index("## vovnet") : PAGE.index("## wavemix")]
    names = [name for name in re.findall(r"^\| (\w+) \|", section, re.M) if name in least]
    assert [least[name] for name in names] == sorted(least[name] for name in names)
    assert len(names) == len(zoo.list_models(family="vovnet"))
    front = PAGE[PAGE.index("## The most accurate") : PAGE.index("## compact_transformers")]
    rows = re.findall(r"^\| (\w+) \| ([\d.]+) \| ([\d.]+) \|", front, re.M)
    assert len(rows) > 5
    assert [float(ms) for _, ms, _ in rows] == sorted(float(ms) for _, ms, _ in rows)
    assert [float(top) for *_, top in rows] == sorted(float(top) for *_, top in rows)
    assert "PyTorch ms" in cells("mobilenetv2_100")


def test_new_and_changed_models_are_counted(monkeypatch):
    changed, new = "mobilenetv2_035", "spnasnet_100"
    before = {name: entry for name, entry in COUNTS.items() if name != new}
    before |= {changed: COUNTS[changed] | {"params": 1}, "gone": {"params": 1}}
    counted = []
    monkeypatch.setattr(counts, "count_model", lambda name: counted.append(name) or name)
    after = counts.up_to_date(before)
    assert counted == [changed, new]
    assert after == COUNTS | {changed: changed, new: new}


def test_the_file_of_counts_is_read_as_it_is_written():
    assert json.loads(counts.render(COUNTS)) == COUNTS
    assert counts.FILE.read_text("utf-8") == counts.render(COUNTS)
