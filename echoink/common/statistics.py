"""Intervals and tests for accuracies. Pure functions around scipy."""

import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binomtest, fisher_exact, norm, t, ttest_1samp

from echoink.common.clusters import Clusters, count, names

FEW_CLUSTERS = 30
"""With fewer clusters, intervals over them are reported as rough."""


class Interval(NamedTuple):
    """A two-sided 95 % confidence interval, such as of a proportion."""

    low: float
    high: float


def wilson(hits: int, n: int) -> Interval:
    """Wilson's score interval for `hits` of `n` (Wilson 1927).

    Example: 50 of 100 gives [0.404, 0.596].
    """
    found = binomtest(hits, n).proportion_ci(method="wilson")
    return Interval(float(found.low), float(found.high))


@dataclass(frozen=True)
class Paired:
    """Two checkpoints compared by their scores (of one answer, or means of several) on the same samples.

    The comparison is of these checkpoints, not of methods: another training seed gives another checkpoint.
    """

    test: str
    """`McNemar`, or `clustered t`."""
    difference: float
    """Second minus first mean score."""
    interval: tuple[float, float]
    """95 % interval of the difference: Tango's, or over clusters of samples that share media (see `paired`)."""
    gained: int
    """Samples with a higher second score."""
    lost: int
    """Samples with a higher first score."""
    p_value: float
    """Two-sided, for no difference."""
    clusters: int
    """How many clusters of samples that share media there are, see `clusters.count`."""


def mcnemar(gained: int, lost: int) -> float:
    """p of McNemar's test (1947), without continuity correction; `tango`'s interval at level 1 - p ends at 0."""
    return 2 * float(norm.sf(abs(gained - lost) / (gained + lost) ** 0.5)) if gained + lost else 1.0


@cache
def more_often(hits: int, others: int, n: int) -> float:
    """p of Fisher's exact test, one-sided: `hits` of n against `others` of n more, under equal rates (Fisher 1922).

    Example: 8 of 8 against 4 of 8 gives 0.038.
    """
    return float(fisher_exact([[hits, n - hits], [others, n - others]], alternative="greater").pvalue)


@cache
def above_chance(hits: int, n: int, chance: float) -> float:
    """p of the exact binomial test, one-sided: `hits` of n under the probability `chance`.

    Example: 5 of 8 at 0.25 gives 0.027.
    """
    return float(binomtest(hits, n, chance, alternative="greater").pvalue)


def tango(gained: int, lost: int, n: int) -> Interval:
    """Score interval of a difference of two paired proportions, (gained - lost) / n (Tango 1998).

    It contains 0 exactly when McNemar's test (`mcnemar`) does not reject at the same level, and has a width even if
    nothing or everything changed. Example: 9 gained and 1 lost of 50 gives [0.045, 0.293].
    """
    z = float(norm.ppf(0.975))
    difference = (gained - lost) / n

    def score(delta: float) -> float:
        # The maximum-likelihood share of losses under a difference of delta solves a quadratic equation.
        b = -gained - lost + (2 * n - gained + lost) * delta
        c = -lost * delta * (1 - delta)
        share = (max(0.0, b * b - 8 * n * c) ** 0.5 - b) / (4 * n)
        variance = n * (2 * share + delta * (1 - delta))
        return (gained - lost - n * delta) / max(variance, 1e-12) ** 0.5

    edge = 1 - 1e-9
    low = -1.0 if score(-edge) < z else brentq(lambda delta: score(delta) - z, -edge, difference - 1e-12)
    high = 1.0 if score(edge) > -z else brentq(lambda delta: score(delta) + z, difference + 1e-12, edge)
    return Interval(float(low), float(high))


@dataclass(frozen=True)
class _Clustered:
    """A mean over clusters, with its standard error by linearization (Cochran 1977, section 3.12)."""

    mean: float
    error: float
    clusters: int


def _clustered(values: Sequence[float], clusters: Sequence[Clusters]) -> _Clustered:
    """The mean over clusters. If these are crossed, such as recordings and pictures, the variances by one and by the
    other add up, minus that by both (Cameron, Gelbach and Miller 2011), to at least the larger one. The number of
    clusters is the smaller of the two.
    """
    crossed = [*zip(*map(names, clusters), strict=True)]
    found = [_one_way(values, of) for of in crossed]
    if len(found) == 1:
        return found[0]
    variance = 0.0
    for size in range(1, len(crossed) + 1):
        for chosen in itertools.combinations(range(len(crossed)), size):
            joint = (
                found[chosen[0]] if size == 1 else _one_way(values, [*zip(*(crossed[n] for n in chosen), strict=True)])
            )
            variance += (-1) ** (size + 1) * joint.error**2
    least = max(one.error**2 for one in found)
    return _Clustered(found[0].mean, max(variance, least) ** 0.5, min(one.clusters for one in found))


def _one_way(values: Sequence[float], clusters: Sequence[Hashable]) -> _Clustered:
    index = np.unique([str(one) for one in clusters], return_inverse=True)[1]
    totals, counts = np.bincount(index, weights=np.asarray(values, float)), np.bincount(index)
    k, mean = len(totals), float(totals.sum() / counts.sum())
    residuals = totals - mean * counts
    error = (k / (k - 1) * float(residuals @ residuals)) ** 0.5 / counts.sum() if k > 1 else 0.0
    return _Clustered(mean, 0.0 if error < 1e-9 else float(error), k)


def mean_interval(values: Sequence[float], clusters: Sequence[Clusters]) -> Interval:
    """Interval of the mean of values in [0, 1]; values of one cluster are not independent.

    Values of 0 and 1 with one cluster per sample get Wilson's interval. Otherwise it is Wilson's interval for as many
    independent samples as have the standard error over clusters, with Student's t in place of the normal (after Korn
    and Graubard 1998). If all values are equal, each cluster counts as one sample. One cluster says nothing about
    others: [0, 1].
    """
    n, shares = len(values), set(values) <= {0.0, 1.0}
    if count(clusters) == n and shares:
        return wilson(round(sum(values)), n)
    found = _clustered(values, clusters)
    if found.clusters == 1:
        return Interval(0.0, 1.0)
    z, wide = norm.ppf(0.975), t.ppf(0.975, found.clusters - 1)
    spread = found.mean * (1 - found.mean)
    samples = spread / found.error**2 if found.error else found.clusters
    samples = min(n, samples) if shares else samples  # graded scores may vary less than 0/1 scores
    samples *= (z / wide) ** 2
    centre, reach = found.mean + z**2 / (2 * samples), z * (spread / samples + (z / (2 * samples)) ** 2) ** 0.5
    low, high = ((centre + side * reach) / (1 + z**2 / samples) for side in (-1, 1))
    # It contains the mean, which rounding could leave outside if all values are 0 or all are 1.
    return Interval(max(0.0, min(float(low), found.mean)), min(1.0, max(float(high), found.mean)))


def paired(first: Sequence[float], second: Sequence[float], clusters: Sequence[Clusters]) -> Paired:
    """Compare two scores of each sample.

    Scores of 0 and 1 with one cluster per sample are compared by McNemar's test and Tango's interval. Means of several
    draws, graded scores and samples that share media are compared by Student's t over clusters (by `_all_alike` if
    these do not vary). Interval and p are of one procedure: the interval contains 0 exactly when p > 0.05.

    Args:
        first: scores in [0, 1], means over the draws of each sample.
        second: scores of the same samples.
        clusters: of each sample; samples that share media are not independent.
    """
    differences = [b - a for a, b in zip(first, second, strict=True)]
    n, gained, lost = len(differences), sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    found = _clustered(differences, clusters)
    if found.clusters == n and {*first, *second} <= {0.0, 1.0}:
        test, interval, p_value = "McNemar", tango(gained, lost, n), mcnemar(gained, lost)
    elif found.error and found.clusters > 1:  # crossed clusters may have only one of a kind
        reach = float(t.ppf(0.975, found.clusters - 1)) * found.error
        test, interval = "clustered t", (max(-1.0, found.mean - reach), min(1.0, found.mean + reach))
        p_value = 2 * float(t.sf(abs(found.mean) / found.error, found.clusters - 1))
    else:
        test, (interval, p_value) = "clustered t", _all_alike(found.mean, found.clusters)
    return Paired(test, found.mean, interval, gained=gained, lost=lost, p_value=p_value, clusters=found.clusters)


def _all_alike(difference: float, clusters: int) -> tuple[tuple[float, float], float]:
    """Interval and p if all K clusters have the same difference: other clusters may still have another one.

    At most a share u of all clusters does, (1 - u)^K = 0.025 (Clopper and Pearson 1934), with differences in [-1, 1];
    p is the level at which the interval would reach 0. One cluster: [-1, 1], p = 1.
    """
    if clusters == 1:
        return (-1.0, 1.0), 1.0
    others = 1 - 0.025 ** (1 / clusters)
    interval = difference - others * (1 + difference), difference + others * (1 - difference)
    return interval, min(1.0, 2 * (1 + abs(difference)) ** -clusters)


@dataclass(frozen=True)
class Seeds:
    """Statistics of one number per seed."""

    values: tuple[float, ...]
    mean: float
    interval: tuple[float, float] | None
    """95 %, Student's t over seeds; None for one seed or equal values. It is about the method, not a checkpoint."""
    p_value: float | None
    """Two-sided t test of a mean of 0; None where there is no interval."""


def over_seeds(values: Sequence[float]) -> Seeds:
    """Mean, t interval and t test of one number per seed.

    Example: 0.1, 0.2, 0.3 gives 0.2 [-0.048, 0.448], p = 0.074.
    """
    array = np.asarray(values, float)
    mean = float(array.mean())
    if len(array) == 1:
        return Seeds(tuple(values), mean, None, None)
    error = float(array.std(ddof=1)) / len(array) ** 0.5
    if error < 1e-9:  # seeds that agree by chance, or by construction, say nothing of their spread
        return Seeds(tuple(values), mean, None, None)
    found = ttest_1samp(array, 0)
    low, high = found.confidence_interval()
    return Seeds(tuple(values), mean, (float(low), float(high)), float(found.pvalue))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm 1979), in the given order.

    Example: 0.01, 0.04, 0.03 gives 0.03, 0.06, 0.06.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
