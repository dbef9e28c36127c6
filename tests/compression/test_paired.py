"""The paired difference of two classifiers: by hand, and at its ends."""

import numpy as np
import pytest

from zoo.compression.paired import paired_drop, tango_interval

Z2 = 1.959963984540054**2


def test_a_case_by_hand():
    """Of 50 images both miss none of 36, 12 only the first and 2 only the second names."""
    first = np.array([1] * 36 + [1] * 12 + [0] * 2)
    second = np.array([1] * 36 + [0] * 12 + [1] * 2)
    found = paired_drop(first, second)
    assert (found.images, found.only_first, found.only_second) == (50, 12, 2)
    assert found.points == pytest.approx(20.0)
    # McNemar, exactly: 2 (C(14,0) + C(14,1) + C(14,2)) / 2**14.
    assert found.p_value == pytest.approx(2 * (1 + 14 + 91) / 2**14)
    # At an end of the interval the score is z: (b - c - n d)^2 = z^2 n (2 q + d - d^2), where q is
    # the root of 2 n q^2 + (-b - c + (2 n - b + c) d) q - c d (1 - d) = 0.
    for end in (found.low / 100, found.high / 100):
        linear = -14 + (100 - 10) * end
        q = (np.sqrt(linear**2 + 8 * 50 * 2 * end * (1 - end)) - linear) / 200
        assert (10 - 50 * end) ** 2 == pytest.approx(Z2 * 50 * (2 * q + end - end**2), rel=1e-6)
    assert found.low == pytest.approx(6.11, abs=0.01)
    assert found.high == pytest.approx(34.47, abs=0.01)
    assert found.change == "-20.00 ± 14.18 points"


def test_no_difference_still_has_an_interval():
    low, high = tango_interval(0, 0, 360)
    assert high == pytest.approx(Z2 / (360 + Z2), rel=1e-5)
    assert low == -high
    assert paired_drop(np.ones(5), np.ones(5)).p_value == 1.0


@pytest.mark.parametrize(("b", "c", "n"), [(50, 0, 50), (0, 50, 50), (1, 0, 1), (3, 1, 44)])
def test_ends_contain_the_difference_and_mirror(b, c, n):
    low, high = tango_interval(b, c, n)
    assert -1 <= low <= (b - c) / n <= high <= 1
    assert tango_interval(c, b, n) == pytest.approx((-high, -low))
