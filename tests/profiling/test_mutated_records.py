"""Records with any value in any field: used, or left out with one line; never an exception."""

import copy
import csv
import io
import json

import pytest
from rich.console import Console
from synthetic import record
from test_report import layers

from zoo.reports.changes import changes, notes, outcome
from zoo.reports.changes import table as table_of_changes
from zoo.reports.page import render
from zoo.reports.records import case_key, csv_text, parse
from zoo.reports.report import markdown
from zoo.reports.table import legend, table
from zoo.reports.view import View

DEEP: list = []
for _ in range(15):
    DEEP = [DEEP]
VALUES = [
    *(None, True, False, 0, 1, -1, 2.5, -0.5, 1e-300, 1e300, 2**62, 10**400, -(10**400)),
    *(float("nan"), float("inf"), "", "x", "\ud800", "\x1b[2J", "=cmd|' /C calc'!A0", "<b>[red]"),
    *("a" * 5000, "2026-01-01", [], [1], [1, 3, 8, 8], [[]], {}, {"a": 1}, {"": None}),
    *({"layers": []}, {"layers": [None]}, {"a": {"b": [1]}}, DEEP, [1, 3, 2**70, 1]),
]
GOOD = record(
    model="efficientformer_l1",
    layers=layers(2),
    peak_memory_bytes=2**20,
    energy_j=0.5,
    intensity=3.0,
    paired={"ratio": 0.9, "low": 0.8, "high": 1.0, "n": 50},
    fused=True,
    warmup_s=1.0,
    steady=False,
)
PATHS = [
    *((key,) for key in [*GOOD, "unknown", ""]),
    *(("layers", key) for key in GOOD["layers"]),
    *(("layers", "roofline", key) for key in GOOD["layers"]["roofline"]),
    *(("layers", "layers", 0, key) for key in GOOD["layers"]["layers"][0]),
    *(("paired", key) for key in ("ratio", "low", "high", "n")),
    *(("machine", "cpu"), ("versions", "torch"), ("asked", "min_runs"), ("args", "in_chans")),
]


def mutated(path, value):
    changed = copy.deepcopy(GOOD)
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return changed


def without(path):
    changed = copy.deepcopy(GOOD)
    place = changed
    for key in path[:-1]:
        place = place[key]
    place.pop(path[-1], None)
    return changed


def use(records):
    """Make everything that this package makes of records."""
    other = record(model="efficientformer_l1", fused=False, runtime="eager")
    both = [*records, other]
    view = View(both)
    page = render(view, "title")
    assert "NaN" not in page.split('id="data">')[1].split("</script>")[0]
    page.encode()
    markdown(view, "title").encode()
    text = csv_text(both)
    text.encode()
    for row in csv.reader(io.StringIO(text)):
        assert not any(cell.startswith(("=", "@")) for cell in row)
    found = changes(records, both)
    console = Console(file=io.StringIO(), width=80)
    for part in (*notes(found, records, both), table_of_changes(found), *outcome(found)):
        console.print(part)
    shown, omitted = table(both)
    console.print(shown, *legend(both, omitted))
    list(map(case_key, both))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: ".".join(map(str, path)))
def test_any_value_of_a_field_is_used_or_left_out(path):
    variants = [mutated(path, value) for value in VALUES] + [without(path)]
    lines = [json.dumps(variant).encode() for variant in variants]
    content = parse(b"\n".join(lines) + b"\n")
    assert len(content.records) + len(content.faults) == len(lines)
    assert content.recovered == 0
    for note in content.notes():
        note.encode()
        assert "\n" not in note
        assert len(note) < 300
    use(content.records)
    for number in range(0, len(content.records), 7):
        use(content.records[number : number + 1])


@pytest.mark.parametrize("key", ["model", "runtime", "input_size", "p50_ms"])
def test_few_values_of_a_required_field_are_used(key):
    lines = [json.dumps(mutated((key,), value)).encode() for value in VALUES]
    assert len(parse(b"\n".join(lines) + b"\n").records) <= 10


def test_a_good_record_is_used():
    content = parse(json.dumps(GOOD).encode())
    assert content.records == [GOOD]
    use(content.records)
