"""The README's table of families: how it is made, and that the README has it."""

import json
import re

import pytest

import zoo
from zoo.profiling import catalogue, families
from zoo.profiling.families import BEGIN, END
from zoo.profiling.overview import finished

RENEW = "run `python -m zoo catalogue`"


@pytest.fixture(scope="module")
def counts():
    return json.loads(catalogue.COUNTS.read_text())


def row(text, family):
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {family} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_row_of_a_family(counts):
    cells = row(families.readme_table(counts), "efficientformer")
    assert cells[1:4] == ["3", "12.29 M to 82.23 M", "1.29 G to 10.12 G"]
    assert cells[5] == "3 of 3"
    assert "any size" in cells[6]
    assert cells[7] == "[2206.01191](https://arxiv.org/abs/2206.01191)"


def test_families_without_accuracy_and_with_other_tasks(counts):
    cells = row(families.readme_table(counts), "lightm_unet")
    assert cells[4] == ""
    assert cells[6].startswith("segmentation")


@pytest.mark.parametrize("text", ["", BEGIN, f"{END} {BEGIN}", f"{BEGIN}{BEGIN}{END}"])
def test_a_readme_without_the_place(text):
    with pytest.raises(zoo.BadInput, match=r"README\.md has no place"):
        families.with_table(text, "table")


def test_the_readme_has_the_table_and_all_families(counts):
    text = catalogue.README.read_text()
    assert families.with_table(text, families.readme_table(counts)) == text, RENEW
    table = text.split(BEGIN)[1].split(END)[0]
    known = {zoo.model_info(name)["family"] for name in finished()}
    assert set(re.findall(r"^\| (\w+) \| \d+ \|", table, re.M)) == known
