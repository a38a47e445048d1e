"""Intervals and tests against published or hand-computed values."""

from math import comb

import numpy as np
import pytest

from echoink.common.clusters import count
from echoink.common.statistics import (
    Interval,
    _clustered,
    above_chance,
    holm,
    mcnemar,
    mean_interval,
    more_often,
    over_seeds,
    paired,
    tango,
    wilson,
)
from experiments.shortcut import ratio


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


def test_mcnemar_by_hand():
    # 1 lost, 5 gained: z = 4 / sqrt(6)
    first = [True] * 3 + [True] + [False] * 5 + [False] * 2
    second = [True] * 3 + [False] + [True] * 5 + [False] * 2
    found = paired(list(map(float, first)), list(map(float, second)), list("abcdefghijk"))
    assert (found.test, found.gained, found.lost, found.clusters) == ("McNemar", 5, 1, 11)
    assert found.p_value == pytest.approx(0.1025, abs=1e-4) == mcnemar(5, 1)
    assert found.difference == pytest.approx(4 / 11) and found.interval[0] < 4 / 11 < found.interval[1]


def test_no_flip_is_no_evidence():
    assert paired([1, 0], [1, 0], ["a", "b"]).p_value == 1.0
    assert paired([0.5, 0.25], [0.5, 0.25], ["a", "b"]).p_value == 1.0


def test_a_unanimous_gain_is_evidence_and_one_cluster_is_none():
    unanimous = paired([0.5] * 20, [1.0] * 20, [str(place) for place in range(20)])
    assert unanimous.p_value < 0.001 and 0 < unanimous.interval[0] < 0.5 < unanimous.interval[1]
    one = paired([0.5] * 20, [1.0] * 20, ["one"] * 20)
    assert one.p_value == 1.0 and one.interval == (-1.0, 1.0)
    # Four recordings before one picture: crossed clusters, of which the rarer kind is one.
    crossed = paired([0.0] * 4, [1.0, 1.0, 0.0, 0.0], [(f"sound {place}", "sight") for place in range(4)])
    assert crossed.p_value == 1.0 and crossed.interval == (-1.0, 1.0)


def test_an_interval_of_few_clusters_stays_between_minus_one_and_one():
    found = paired([0.0] * 6, [1.0, 1.0, 1.0, 1.0, 0.0, 0.0], ["a", "a", "b", "b", "c", "c"])
    assert found.test == "clustered t" and found.clusters == 3
    assert -1 <= found.interval[0] < 0 and found.interval[1] == 1.0 and found.p_value > 0.05


def test_samples_must_pair_up():
    with pytest.raises(ValueError):
        paired([True], [True, False], ["a"])


def test_the_interval_of_a_mean_is_near_the_normal_one_for_many_clusters_of_one():
    values = np.random.default_rng(0).random(400)
    found = mean_interval(values, [str(place) for place in range(400)])
    half = 1.96 * values.std(ddof=1) / 20
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.003)


def test_a_share_of_samples_with_media_of_their_own_has_wilsons_interval():
    values = [1.0] * 8 + [0.0] * 2
    assert mean_interval(values, list("abcdefghij")) == wilson(8, 10)


def test_samples_that_share_media_count_together():
    """Ten copies of each of 40 values tell no more than the 40 do."""
    values = np.random.default_rng(1).random(40)
    once = mean_interval(values, [str(place) for place in range(40)])
    copies = mean_interval(np.repeat(values, 10), [str(place) for place in range(40) for _ in range(10)])
    apart = mean_interval(np.repeat(values, 10), [str(place) for place in range(400)])
    assert (copies.low, copies.high) == pytest.approx((once.low, once.high), abs=0.01)
    assert apart.high - apart.low < 0.5 * (once.high - once.low)


@pytest.mark.parametrize(("seed", "is_sum"), [(3, False), (5, True)], ids=["the larger one", "their sum"])
def test_crossed_clusters_add_their_variances_less_that_of_both(seed, is_sum):
    """By the definition, term by term: sums over pairs of samples that share a recording, or a picture."""
    rng = np.random.default_rng(seed)
    heard, seen, values = rng.integers(8, size=60), rng.integers(9, size=60), rng.random(60)
    values += rng.random(8)[heard] + rng.random(9)[seen]
    found = _clustered(values, [(f"a{a}", f"b{b}") for a, b in zip(heard, seen, strict=True)])
    left = values - values.mean()

    def variance(*by) -> float:
        together = np.all([each[:, None] == each[None] for each in by], 0)
        k = len(set(zip(*by, strict=True)))
        return k / (k - 1) * float(left @ together @ left) / 60**2

    one, other, both = variance(heard), variance(seen), variance(heard, seen)
    assert (one + other - both > max(one, other)) == is_sum
    assert found.error**2 == pytest.approx(one + other - both if is_sum else max(one, other))
    assert (found.mean, found.clusters) == (pytest.approx(values.mean()), 8)
    assert count([("a", "x"), ("b", "x"), ("b", "y")]) == 2 and count(["a", "b", "b"]) == 2


def test_crossed_media_get_intervals_that_hold_and_tests_that_do_not_cry_wolf():
    """Each recording and each picture has a difficulty, and an effect of its own that is 0 on average."""
    rng, holds, wilsons, cries, mcnemars = np.random.default_rng(0), 0, 0, 0, 0
    for _ in range(200):
        heard, seen = rng.integers(15, size=120), rng.integers(15, size=120)
        by = [(f"a{a}", f"b{b}") for a, b in zip(heard, seen, strict=True)]
        base, effect = (rng.normal(size=15)[heard] + rng.normal(size=15)[seen] for _ in range(2))
        right = (rng.random(120) < 1 / (1 + np.exp(-base))).astype(float)
        one, two = ((rng.random(120) < 1 / (1 + np.exp(-(base + s * effect)))).astype(float) for s in (-1, 1))
        found, plain = mean_interval(right, by), wilson(int(right.sum()), 120)
        holds += found.low <= 0.5 <= found.high
        wilsons += plain.low <= 0.5 <= plain.high
        cries += paired(one, two, by).p_value < 0.05
        mcnemars += mcnemar(int((two > one).sum()), int((two < one).sum())) < 0.05
    assert holds >= 180 > wilsons + 15
    assert cries <= 18 < mcnemars - 15


def test_no_interval_has_the_width_zero():
    alike = mean_interval([1.0] * 10, list("aabbccddee"))
    assert alike.low < wilson(5, 5).low and alike.high == 1, "five clusters, and t in the place of the normal"
    assert mean_interval([1.0, 1.0], ["a", "a"]) == Interval(0.0, 1.0), "one cluster says nothing of others"
    assert tango(0, 0, 12).low == pytest.approx(-tango(0, 0, 12).high) and tango(0, 0, 12).high > 0.2
    shared = paired([0.0] * 24, [1.0] * 24, [str(place // 2) for place in range(24)])
    assert shared.interval[0] == pytest.approx(1 - 2 * (1 - 0.025 ** (1 / 12))) and shared.interval[1] == 1
    assert shared.p_value == pytest.approx(2 * 0.5**12), "a sign test of twelve clusters"


def test_tangos_interval_solves_its_equation():
    """At both ends the score of the constrained likelihood is the quantile, here found by a grid."""
    gained, lost, n, z = 9, 1, 50, 1.959963984540054
    for delta in tango(gained, lost, n):
        shares = np.linspace(max(0, -delta), (1 - delta) / 2, 200_001)[1:-1]
        likelihood = gained * np.log(shares + delta) + lost * np.log(shares)
        likelihood += (n - gained - lost) * np.log(1 - 2 * shares - delta)
        share = shares[likelihood.argmax()]
        variance = n * (2 * share + delta * (1 - delta))
        assert abs(gained - lost - n * delta) / variance**0.5 == pytest.approx(z, abs=1e-3)


def test_interval_and_p_never_disagree():
    rng = np.random.default_rng(4)
    for n, size, draws in ((12, 1, 1), (12, 2, 1), (50, 5, 1), (40, 1, 4), (6, 3, 1), (8, 8, 1)):
        for _ in range(200):
            one, two = (rng.binomial(draws, rate, n) / draws for rate in (0.6, rng.choice((0.6, 0.9, 1.0))))
            found = paired(list(one), list(two), [str(place // size) for place in range(n)])
            outside = not found.interval[0] <= 0 <= found.interval[1]
            assert outside == (found.p_value < 0.05) and found.interval[0] < found.interval[1]


def test_several_draws_are_compared_over_clusters():
    rng = np.random.default_rng(2)
    first, clusters = rng.integers(0, 5, 200) / 4, [str(place) for place in range(200)]
    clear = paired(list(first), list(np.minimum(first + 0.25, 1)), clusters)
    assert clear.test == "clustered t" and clear.p_value < 0.001 and clear.interval[0] > 0
    assert paired(list(first), list(rng.permutation(first)), clusters).p_value > 0.05


def test_with_shared_media_fewer_nulls_are_rejected_than_by_mcnemar():
    """Checkpoints that differ from medium to medium and not on average: McNemar's test takes each sample for news."""
    rng, ours, plain = np.random.default_rng(5), 0, 0
    clusters = [str(place // 5) for place in range(200)]
    for _ in range(1000):
        effect = np.repeat(rng.normal(size=40), 5)
        one, two = ((rng.random(200) < 1 / (1 + np.exp(side * effect))).astype(float) for side in (-1, 1))
        ours += paired(list(one), list(two), clusters).p_value < 0.05
        plain += mcnemar(int((two > one).sum()), int((two < one).sum())) < 0.05
    assert ours / 1000 < 0.07 and plain / 1000 > 0.1


def test_the_ratio_of_two_means_counts_both_errors():
    gains, gap = [0.50, 0.45, 0.40, 0.42, 0.48], [0.55, 0.50, 0.60, 0.52, 0.58]
    low, high = ratio(gains, gap)
    share = np.mean(gains) / np.mean(gap)
    held = over_seeds([gain / np.mean(gap) for gain in gains]).interval
    assert low < share < high and high - low > held[1] - held[0]
    # Fieller: at each end gains - end * gap has a t of exactly the quantile
    for end in (low, high):
        found = over_seeds([gain - end * one for gain, one in zip(gains, gap, strict=True)])
        assert found.p_value == pytest.approx(0.05, abs=1e-6)
    assert ratio([0.1, 0.2], [0.1, -0.1]) is None and ratio([0.1], [0.2]) is None


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


def test_an_interval_holds_its_mean_also_where_all_values_are_alike():
    """Rounding left the lower end a hair above 0, and a figure could not be drawn."""
    for value in (0.0, 1.0):
        for clusters in ("aabb", "aabbcc", "aaaabbcccd", "aabbccddeeffg"):
            found = mean_interval([value] * len(clusters), list(clusters))
            assert found.low <= value <= found.high and found.high - found.low > 0.1


def test_shares_of_few_clusters_count_as_no_more_samples_than_there_are():
    """The error over clusters, 1/8, is that of 15 samples; there are 8. 8 (1.96 / 3.182)² = 3.035."""
    found = mean_interval([1.0, 0.0] * 3 + [1.0, 1.0], list("aabbccdd"))
    assert (found.low, found.high) == pytest.approx((0.1866, 0.9237), abs=1e-3)


def test_clusters_that_are_all_alike_count_as_one_sample_each():
    """Five clusters, t of 4 degrees (2.776): 5 (1.96 / 2.776)^2 = 2.492 samples, and n / (n + z^2) = 2.492 / 6.334."""
    assert mean_interval([1.0] * 10, list("aabbccddee")).low == pytest.approx(0.3935, abs=1e-3)


def test_the_rounding_of_equal_differences_is_no_spread():
    first = [0.1, 0.3, 0.5, 0.7, 0.2, 0.6]
    second = [x + 0.1 for x in first]
    assert len({b - a for a, b in zip(first, second, strict=True)}) > 1, "wants differences that rounding makes unequal"
    found = paired(first, second, list("abcdef"))
    # u = 1 - 0.025 ** (1/6) = 0.4593: 0.1 - 1.1 u and 0.1 + 0.9 u; 2 * 1.1 ** -6 = 1.129
    assert found.interval == pytest.approx((-0.4052, 0.5134), abs=1e-3) and found.p_value == 1
