"""Intervals and tests against published or hand-computed values."""

import pytest

from echoink.statistics import mcnemar, wilson


def test_wilson_against_the_formula():
    hits, n, z = 1539, 1911, 1.959963984540054
    p = hits / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    found = wilson(hits, n)
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half))


def test_wilson_stays_inside_zero_and_one():
    assert wilson(0, 10).low == pytest.approx(0, abs=1e-12)
    assert wilson(10, 10).high == pytest.approx(1)


def test_mcnemar_is_a_sign_test_of_the_flips():
    # 1 lost, 5 gained: two-sided binomial(6, 1/2) tail is 2 * (1 + 6) / 64.
    first = [True] * 3 + [True] + [False] * 5 + [False] * 2
    second = [True] * 3 + [False] + [True] * 5 + [False] * 2
    found = mcnemar(first, second)
    assert (found.gained, found.lost) == (5, 1)
    assert found.p_value == pytest.approx(14 / 64)


def test_no_flip_is_no_evidence():
    assert mcnemar([True, False], [True, False]).p_value == 1.0


def test_samples_must_pair_up():
    with pytest.raises(ValueError):
        mcnemar([True], [True, False])
