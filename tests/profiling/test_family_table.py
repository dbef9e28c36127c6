"""The README's table of families."""

import re

import pytest
from synthetic import record

import zoo
from tools import counts as stored_counts
from tools import readme_table
from tools.latencies import FORMS
from tools.project import finished
from tools.readme_table import BEGIN, END


@pytest.fixture(scope="module")
def counts():
    return stored_counts.read()


def measured(name, *times):
    """Records of one model in every form."""
    return [
        record(model=name, runtime=runtime, fused=fused, p50_ms=time)
        for (runtime, fused), time in zip(FORMS, times, strict=True)
    ]


def row(text, family):
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {family} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_row_of_a_family(counts):
    cells = row(readme_table.table(counts, []), "efficientformer")
    assert cells[1:4] == ["3", "12.29 M to 82.23 M", "1.29 G to 10.12 G"]
    assert cells[7] == "3 of 3"
    assert "any size" in cells[8]
    assert cells[9] == "[2206.01191](https://arxiv.org/abs/2206.01191)"


def test_latencies_of_a_family(counts):
    some = measured("efficientformer_l1", 9.0, 8.0, 4.0)
    some += measured("efficientformer_l3", 20, 18, 19)
    every = some + measured("efficientformer_l7", 1500.0, 1373.79, 31.04)
    none = readme_table.table(counts, [])
    assert row(none, "family")[4:8] == ["top-1", "PyTorch ms", "best ms", "weights"]
    assert row(none, "efficientformer")[5:7] == ["not measured", "not measured"]
    assert "Measured on" not in none
    part = readme_table.table(counts, some)
    assert row(part, "efficientformer")[5:7] == ["8 to 18 (2 of 3)", "4 to 18 (2 of 3)"]
    text = readme_table.table(counts, every)
    assert row(text, "efficientformer")[5:7] == ["8 to 1374", "4 to 31"]
    assert "Measured on: A, B, 2 cores, zoo 0.1.0, torch 2.15.0." in text


def test_a_family_of_another_task_has_no_accuracy(counts):
    cells = row(readme_table.table(counts, []), "lightm_unet")
    assert cells[4] == ""
    assert cells[8].startswith("segmentation")


@pytest.mark.parametrize("text", ["", BEGIN, f"{END} {BEGIN}", f"{BEGIN}{BEGIN}{END}"])
def test_a_readme_without_a_place_for_the_table(text, counts):
    with pytest.raises(zoo.BadInput, match=r"README\.md has no place"):
        readme_table.render(text, counts, [])


def test_the_rest_of_the_readme_is_kept(counts):
    text = readme_table.render(f"before\n{BEGIN}old{END}\nafter\n", counts, [])
    assert text.startswith(f"before\n{BEGIN}\n\n| family |")
    assert text.endswith(f"\n\n{END}\nafter\n")
    assert readme_table.render(text, counts, []) == text


def test_the_readme_has_all_families():
    text = readme_table.FILE.read_text("utf-8")
    table = text.split(BEGIN)[1].split(END)[0]
    known = {zoo.model_info(name)["family"] for name in finished()}
    assert set(re.findall(r"^\| (\w+) \| \d+ \|", table, re.MULTILINE)) == known
