"""What the outputs of a classifier say about its images."""

import itertools
import math

import pytest
import torch
from scipy.stats import binomtest

from zoo.diagnosis import findings

# Confidences 0.9, 0.6, 0.8, 0.8; the second and the last prediction are wrong.
SHARES = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.8, 0.2]], dtype=torch.float64)
LOGITS, TARGETS = SHARES.log(), torch.tensor([0, 1, 1, 1])


def test_the_worst_image_is_the_one_whose_label_is_least_probable() -> None:
    assert findings.worst(LOGITS, TARGETS) == [3, 1]
    assert findings.worst(LOGITS, torch.tensor([0, 0, 1, 0])) == []


def test_suspects_are_ordered_by_the_probability_of_their_label() -> None:
    found = findings.suspects(LOGITS, TARGETS)
    assert [one.index for one in found] == [3, 1, 2, 0]
    assert [one.suggested for one in found] == [0, 0, 1, 0]
    assert found[0].confidence == pytest.approx(0.2)


def test_a_label_is_doubted_if_another_class_is_as_sure_as_usual() -> None:
    # Class 0 has a mean probability of 0.9 where it is the label, so 0.8 and 0.6 are too little.
    assert findings.is_doubted(LOGITS, TARGETS).tolist() == [False] * 4
    sure = torch.tensor([[0.9, 0.1], [0.95, 0.05], [0.2, 0.8], [0.8, 0.2]]).log()
    assert findings.is_doubted(sure, TARGETS).tolist() == [False, True, False, False]


def test_a_class_without_images_doubts_no_label() -> None:
    shares = torch.tensor([[0.1, 0.2, 0.7], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1]])
    assert not findings.is_doubted(shares.log(), torch.tensor([0, 0, 1])).any()


def test_the_abstention_curve_keeps_equal_confidences_together() -> None:
    curve = findings.abstention_curve(LOGITS, TARGETS)
    expected = [(0.9, 0.25, 1.0), (0.8, 0.75, 2 / 3), (0.6, 1.0, 0.5)]
    assert [tuple(map(pytest.approx, row)) for row in expected] == curve


def test_the_lowest_threshold_that_reaches_an_accuracy_is_chosen() -> None:
    rows = findings.abstention(LOGITS, TARGETS)
    assert [row["goal"] for row in rows] == [0.9, 0.95, 0.98, 0.99]
    assert all(row["threshold"] == pytest.approx(0.9) for row in rows)
    assert all(row["coverage"] == 0.25 for row in rows)
    hopeless = findings.abstention(LOGITS, 1 - LOGITS.argmax(1))
    assert (hopeless[0]["threshold"], hopeless[0]["coverage"]) == (None, 0.0)


def test_bins_of_confidence() -> None:
    assert [pytest.approx(row) for row in ((0.6, 0), (0.8, 0.5), (0.9, 1))] == (
        findings.reliability(LOGITS, TARGETS)
    )


def test_flips_are_counted_in_pairs() -> None:
    before = {"a": "cat", "b": "dog", "c": "dog", "d": "cow", "gone": "cat"}
    after = {
        "a": ("cat", "cat"),
        "b": ("cat", "cat"),  # became right
        "c": ("dog", "cow"),  # became wrong
        "d": ("cat", "dog"),  # stays wrong
        "new": ("cat", "cow"),
    }
    found = findings.change(before, after)
    assert (found["images"], found["flipped"], found["gained"], found["lost"]) == (4, 3, 1, 1)
    assert found["difference"] == 0
    assert found["low"] == pytest.approx(-found["high"])
    assert found["p"] == 1
    assert found["flips"][1] == findings.Flip("c", "dog", "dog", "cow")


def test_no_common_image_changes_nothing() -> None:
    found = findings.change({}, {"a": ("cat", "cat")})
    assert (found["images"], found["difference"], found["low"] <= 0 <= found["high"]) == (0, 0, 1)


def test_the_test_of_changes_is_mcnemars() -> None:
    before = {str(n): "no" for n in range(200)}
    after = {str(n): ("yes", "yes" if n < 12 else "no") for n in range(150)}
    after |= {str(n): ("no", "no" if n < 198 else "yes") for n in range(150, 200)}
    found = findings.change(before, after)
    assert (found["gained"], found["lost"]) == (12, 2)
    assert found["p"] == pytest.approx(binomtest(2, 14).pvalue)
    assert found["low"] < found["difference"] < found["high"]


def test_the_interval_covers_the_difference_as_often_as_it_says() -> None:
    """Over all outcomes of 40 images, weighted by their probability."""
    n, up, down = 40, 0.1, 0.04
    covered = 0.0
    for gained, lost in itertools.product(range(n + 1), repeat=2):
        if gained + lost <= n:
            ways = math.comb(n, gained) * math.comb(n - gained, lost)
            chance = ways * up**gained * down**lost * (1 - up - down) ** (n - gained - lost)
            low, high = findings.paired_interval(gained, lost, n)
            covered += chance * (low <= up - down <= high)
    assert 0.94 < covered < 0.99
