"""docs/models.md says what facts say, of every finished model; its counts are those of the code."""

import json
import re

import pytest
from support import FINISHED, SMALLEST

import zoo
from tools import catalogue, families
from tools.overview import RECORDS
from zoo import registry
from zoo.__main__ import main

COUNTS = json.loads(catalogue.COUNTS.read_text("utf-8"))
PAGE = catalogue.PAGE.read_text("utf-8")
RENEW = "write it anew: python -m zoo catalogue"
# Counted anew here; MACs of the others in tests/profiling/test_count_models.py, as far as there are
# published ones to compare them with.
QUICK = [name for name in SMALLEST if COUNTS.get(name, {}).get("macs", 0) < 4e8]


def cells(name: str) -> dict[str, str]:
    """Return the row of a model by its columns; `params` and `MACs` are ours."""
    head = ["model", "paper", "year", "params published", "params", "MACs published", "MACs"]
    head += ["top-1", "source", "code", "licences", "weights", "takes", "can", "quirks"]
    (row,) = re.findall(rf"^\| {re.escape(name)} \| .*\|$", PAGE, re.MULTILINE)
    return dict(zip(head, (cell.strip() for cell in row.strip("| \n").split(" | ")), strict=False))


def test_the_page_is_what_facts_and_counts_make():
    assert catalogue.page(COUNTS) == PAGE, RENEW


def test_every_finished_model_is_counted_as_it_is():
    assert list(COUNTS) == sorted(FINISHED), RENEW
    for name, entry in COUNTS.items():
        facts = zoo.model_info(name)
        assert (entry["params"], entry["input"]) == (facts["params"], facts["input"]["size"]), name


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_counts_are_those_of_the_code(name):
    assert catalogue.count_model(name) == COUNTS[name], RENEW


def test_counts_are_those_of_the_measurements():
    for line in RECORDS.read_text("utf-8").splitlines():
        record = json.loads(line)
        if not record["fused"] and record.get("macs") is not None and record["model"] in COUNTS:
            assert record["macs"] == COUNTS[record["model"]]["macs"], record["model"]


@pytest.mark.parametrize("name", FINISHED)
def test_a_row_holds_what_is_known_of_the_model(name):
    facts, row = zoo.model_info(name), cells(name)
    assert facts["paper"]["arxiv"] in row["paper"]
    assert row["year"] == str(facts["paper"]["year"])
    tops = [entry["top1"] for entry in facts["published"] if "top1" in entry]
    assert not tops or float(row["top-1"]) == max(tops)
    assert not tops or row["source"], "a figure without its source"
    assert facts["code"]["url"] in row["code"]
    licences = {entry.get("licence", "not stated") for entry in facts.get("weights", [])}
    assert set(row["licences"].split("; ")) - {""} == licences
    assert (row["weights"] == "fetched") == registry.is_pretrained(registry.get_spec(name))
    assert ("any size" in row["can"]) == facts["capabilities"].get("dynamic_size", False)
    assert str(facts["input"].get("multiple", "any")) in row["takes"]
    assert ("fused" in row["can"]) == facts["capabilities"].get("reparam", False)
    for column, figure in (("params", facts["params"]), ("MACs", COUNTS[name]["macs"])):
        number, unit = (row[column] + " ").split(" ")[:2]
        assert float(number) * {"k": 1e3, "M": 1e6, "G": 1e9}[unit] == pytest.approx(
            figure, rel=1e-2
        )


@pytest.mark.parametrize("name", SMALLEST)
def test_quirks_are_kept_or_changed_for_a_reason(name):
    quirks = zoo.model_info(name).get("quirks")
    assert isinstance(quirks, list), "facts state the quirks of the public code, none as []"
    for quirk in quirks:
        assert quirk.keys() in ({"kept", "why"}, {"changed", "why"})
        assert all(text.strip() and not text.endswith(".") for text in quirk.values())
        assert f"{quirk.get('kept') or quirk['changed']}; {quirk['why']}." in PAGE, RENEW


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
def test_any_change_of_facts_shows(key, value, monkeypatch):
    for name in zoo.list_models(family="pvt"):
        monkeypatch.setitem(registry.get_spec(name).facts, key, value)
    assert catalogue.page(COUNTS) != PAGE


def test_a_model_that_is_new_or_changed_is_counted(monkeypatch):
    changed, new = "mobilenetv2_035", "spnasnet_100"
    before = {name: entry for name, entry in COUNTS.items() if name != new}
    before |= {changed: COUNTS[changed] | {"params": 1}, "gone": {"params": 1}}
    counted = []
    monkeypatch.setattr(catalogue, "count_model", lambda name: counted.append(name) or name)
    after = catalogue.up_to_date(before)
    assert counted == [changed, new]
    assert after == COUNTS | {changed: changed, new: new}


def test_the_command_writes_all_files(monkeypatch, tmp_path, capsys):
    for module, name, file in (
        (catalogue, "COUNTS", "results/counts.json"),
        (catalogue, "PAGE", "docs/models.md"),
        (families, "COUNTS", "results/counts.json"),
        (families, "README", "README.md"),
    ):
        monkeypatch.setattr(module, name, tmp_path / file)
        monkeypatch.setattr(module, "ROOT", tmp_path)
    (tmp_path / "README.md").write_text(f"# A\n{families.BEGIN}{families.END}\n", "utf-8")
    assert main(["catalogue"]) == 1
    assert "no checkout of the project" in capsys.readouterr().err
    for folder in ("results", "docs"):
        (tmp_path / folder).mkdir()
    (tmp_path / "results/counts.json").write_text(json.dumps(COUNTS), "utf-8")
    assert main(["catalogue"]) == 0
    assert (tmp_path / "docs/models.md").read_text("utf-8") == PAGE
    assert json.loads((tmp_path / "results/counts.json").read_text("utf-8")) == COUNTS
    assert "| wavemix |" in (tmp_path / "README.md").read_text("utf-8")
    written = ["results/counts.json", "docs/models.md", "README.md"]
    assert capsys.readouterr().out == "".join(f"wrote {file}\n" for file in written)
