"""Wrong labels are found early in the list of suspects."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from zoo.diagnosis import labels


@pytest.mark.parametrize("seed", [0, 1])
def test_planted_label_errors_of_the_digits_come_first(seed: int) -> None:
    digits = load_digits()
    generator = np.random.default_rng(seed)
    planted = generator.choice(len(digits.target), len(digits.target) // 20, replace=False)
    given = digits.target.copy()
    given[planted] = (given[planted] + generator.integers(1, 10, len(planted))) % 10
    found = labels.ranked(digits.data, given.tolist())
    assert sorted(one.index for one in found) == list(range(len(given)))
    first = found[: len(given) // 10]
    recall = len({one.index for one in first} & set(planted.tolist())) / len(planted)
    assert recall >= 0.9
    right = [one.suggested == digits.target[one.index] for one in first if one.index in planted]
    assert np.mean(right) >= 0.85


def test_classes_of_one_image_come_last() -> None:
    values = np.array([[0.1 * number] for number in range(6)] + [[3 + 0.1 * n] for n in range(6)])
    values = np.concatenate([values, [[9.0]]])
    found = labels.ranked(values, [0, 0, 1, 0, 0, 0, 1, 1, 1, 1, 1, 1, 3])
    assert (found[0].index, found[0].suggested) == (2, 0)
    assert (found[-1].index, found[-1].confidence, found[-1].suggested) == (12, 1.0, 3)
    alike = labels.ranked(values[:2], [0, 0])
    assert [one.confidence for one in alike] == [1.0, 1.0]
