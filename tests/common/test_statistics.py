"""Intervals and tests against published or hand-computed values."""

from math import comb

import numpy as np
import pytest

from echoink.common.statistics import (
    above_chance,
    cluster_bootstrap,
    holm,
    mcnemar,
    more_often,
    over_seeds,
    paired,
    wilson,
)


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
    found = paired(first, second, list("abcdefghijk"))
    assert (found.test, found.gained, found.lost) == ("exact McNemar", 5, 1)
    assert found.p_value == pytest.approx(14 / 64) == mcnemar(5, 1)
    assert found.difference == pytest.approx(4 / 11) and found.interval[0] < 4 / 11 < found.interval[1]


def test_no_flip_is_no_evidence():
    assert paired([1, 0], [1, 0], ["a", "b"]).p_value == 1.0
    assert paired([0.5, 0.25], [0.5, 0.25], ["a", "b"], draws=4).p_value == 1.0


def test_a_unanimous_gain_is_evidence_and_one_cluster_is_none():
    unanimous = paired([0.5] * 20, [1.0] * 20, [str(place) for place in range(20)], draws=2)
    assert unanimous.p_value < 0.001 and unanimous.interval == (0.5, 0.5)
    assert paired([0.5] * 20, [1.0] * 20, ["one"] * 20, draws=2).p_value == 1.0


def test_samples_must_pair_up():
    with pytest.raises(ValueError):
        paired([True], [True, False], ["a"])


def test_the_bootstrap_is_the_t_interval_for_many_clusters_of_one():
    values = np.random.default_rng(0).random(400)
    found = cluster_bootstrap(values, [str(place) for place in range(400)])
    half = 1.96 * values.std(ddof=1) / 20
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.003)


def test_samples_that_share_media_are_resampled_together():
    """Ten copies of each of 40 values tell no more than the 40 do."""
    values = np.random.default_rng(1).random(40)
    once = cluster_bootstrap(values, [str(place) for place in range(40)])
    copies = cluster_bootstrap(np.repeat(values, 10), [str(place) for place in range(40) for _ in range(10)])
    apart = cluster_bootstrap(np.repeat(values, 10), [str(place) for place in range(400)])
    assert (copies.low, copies.high) == pytest.approx((once.low, once.high), abs=0.01)
    assert apart.high - apart.low < 0.5 * (once.high - once.low)


def test_several_draws_are_compared_by_the_bootstrap():
    rng = np.random.default_rng(2)
    first, clusters = rng.integers(0, 5, 200) / 4, [str(place) for place in range(200)]
    clear = paired(first, np.minimum(first + 0.25, 1), clusters, draws=4)
    assert clear.test == "clustered bootstrap" and clear.p_value < 0.001 and clear.interval[0] > 0
    assert paired(first, rng.permutation(first), clusters, draws=4).p_value > 0.05


def test_over_seeds_by_hand():
    """Mean 0.2, deviation 0.1, t of 2 degrees 4.303: ± 4.303 · 0.1 / √3."""
    found = over_seeds([0.1, 0.2, 0.3])
    assert found.mean == pytest.approx(0.2) and found.interval == pytest.approx((-0.0484, 0.4484), abs=1e-4)
    assert found.p_value == pytest.approx(0.0742, abs=1e-4)
    single = over_seeds([0.4])
    assert (single.mean, single.interval, single.p_value) == (0.4, None, None)
    alike = over_seeds([0.05, 0.05, 0.85 - 0.8])
    assert (alike.interval, alike.p_value) == (None, None), "two equal values are no certainty"


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0]) and holm([]) == []


def test_the_t_interval_holds_what_it_promises():
    """95 % of 2,000 intervals over 3 seeds hold the true mean; a normal interval would hold 81 %."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        low, high = over_seeds(list(rng.normal(1.0, 2.0, 3))).interval
        hits += low <= 1.0 <= high
    assert 0.94 < hits / 2000 < 0.96


def test_one_sided_tests_by_hand():
    tail = comb(8, 8) * comb(8, 4) / comb(16, 12)  # nothing is more extreme
    assert more_often(8, 4, 8) == pytest.approx(tail) == pytest.approx(0.0385, abs=1e-4)
    assert more_often(4, 4, 8) > 0.5 and more_often(0, 8, 8) == 1
    by_hand = sum(comb(8, k) * 0.25**k * 0.75 ** (8 - k) for k in range(5, 9))
    assert above_chance(5, 8, 0.25) == pytest.approx(by_hand)
