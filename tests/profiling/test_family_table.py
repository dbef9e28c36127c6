"""The README's table of families: how it is made, and that the README has it."""

import re

import pytest
from synthetic import record

import zoo
from tools import families
from tools.families import BEGIN, END
from tools.overview import FORMS, finished

RENEW = "run `python -m zoo catalogue`, or `make results` where latencies are missing"


@pytest.fixture(scope="module")
def counts():
    return families.kept()[0]


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
    cells = row(families.readme_table(counts, []), "efficientformer")
    assert cells[1:4] == ["3", "12.29 M to 82.23 M", "1.29 G to 10.12 G"]
    assert cells[5] == "3 of 3"
    assert "any size" in cells[6]
    assert cells[7] == "[2206.01191](https://arxiv.org/abs/2206.01191)"


def test_latencies_of_a_family(counts):
    some = measured("efficientformer_l1", 9.0, 8.0, 4.0) + measured(
        "efficientformer_l3", 20, 18, 19
    )
    every = some + measured("efficientformer_l7", 1500.0, 1373.79, 31.04)
    assert row(families.readme_table(counts, some), "efficientformer")[5:7] == ["", ""]
    text = families.readme_table(counts, every)
    assert row(text, "family")[4:8] == ["top-1", "ms", "fastest", "weights"]
    assert row(text, "efficientformer")[5:7] == ["8 to 1374", "4 to 31"]
    assert "(A, B, 2 cores, zoo 0.1.0, torch 2.15.0)" in text


def test_families_without_accuracy_and_with_other_tasks(counts):
    cells = row(families.readme_table(counts, []), "lightm_unet")
    assert cells[4] == ""
    assert cells[6].startswith("segmentation")


@pytest.mark.parametrize("text", ["", BEGIN, f"{END} {BEGIN}", f"{BEGIN}{BEGIN}{END}"])
def test_a_readme_without_the_place(text):
    with pytest.raises(zoo.BadInput, match=r"README\.md has no place"):
        families.with_table(text, "table")


def test_the_readme_has_the_table_and_all_families(counts):
    text = families.README.read_text()
    assert families.with_table(text, families.readme_table(*families.kept())) == text, RENEW
    table = text.split(BEGIN)[1].split(END)[0]
    known = {zoo.model_info(name)["family"] for name in finished()}
    assert set(re.findall(r"^\| (\w+) \| \d+ \|", table, re.M)) == known
