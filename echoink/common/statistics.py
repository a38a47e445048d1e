"""Intervals and tests for accuracies. Pure functions around scipy."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.stats import binomtest, bootstrap, fisher_exact, t

RESAMPLES = 9_999
"""Bootstrap samples; the smallest p-value that they can show is 2 / (RESAMPLES + 1)."""


@dataclass(frozen=True)
class Interval:
    """A two-sided confidence interval, such as of a share."""

    low: float
    high: float


def wilson(hits: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval for `hits` of `n` (Wilson 1927).

    Example: 50 of 100 gives [0.404, 0.596].
    """
    found = binomtest(hits, n).proportion_ci(confidence, method="wilson")
    return Interval(float(found.low), float(found.high))


@dataclass(frozen=True)
class Paired:
    """Two answers, or two means of several, to each of the same samples, compared.

    What is compared is these two checkpoints, not two methods: another seed of training gives another checkpoint.
    """

    test: str
    """`exact McNemar`, or `clustered bootstrap`."""
    difference: float
    """Of the mean scores, second - first."""
    interval: tuple[float, float]
    """95 % of the difference, by the bootstrap over clusters of samples that share media."""
    gained: int
    """Samples that the second got righter."""
    lost: int
    """Samples that the first got righter."""
    p_value: float
    """Two-sided, of no difference."""


def mcnemar(gained: int, lost: int) -> float:
    """p of the exact McNemar test: under no difference, gains among the samples that differ are a fair coin (1947)."""
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


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


def _by_cluster(values: Sequence[float], clusters: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of the values of each cluster."""
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    return np.bincount(index, weights=np.asarray(values, float)), np.bincount(index).astype(float)


def _bootstrap(values: Sequence[float], clusters: Sequence[str], confidence: float) -> tuple[Interval, np.ndarray]:
    totals, counts = _by_cluster(values, clusters)
    mean = totals.sum() / counts.sum()
    if len(totals) == 1:  # one cluster says nothing of others
        return Interval(-1.0, 1.0), np.zeros(RESAMPLES)
    if np.allclose(totals, mean * counts):
        return Interval(float(mean), float(mean)), np.full(RESAMPLES, mean)
    found = bootstrap(
        (totals, counts),
        lambda total, count, axis: total.sum(axis) / count.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=100,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    interval = found.confidence_interval
    return Interval(float(interval.low), float(interval.high)), found.bootstrap_distribution


def cluster_bootstrap(values: Sequence[float], clusters: Sequence[str], confidence: float = 0.95) -> Interval:
    """Percentile interval of the mean of values in [0, 1], resampling whole clusters (Davison and Hinkley 1997, section
    2.4).

    It is too narrow where clusters are few (below about 30). One cluster says nothing of others: [0, 1].
    """
    found = _bootstrap(values, clusters, confidence)[0]
    return Interval(max(0.0, found.low), min(1.0, found.high))


def paired(first: Sequence[float], second: Sequence[float], clusters: Sequence[str], draws: int = 1) -> Paired:
    """Compare two scores of each sample.

    Args:
        first: scores in [0, 1], means over the draws of each sample.
        second: of the same samples.
        clusters: of each sample; those that share media are resampled together.
        draws: draws per sample. With one draw and scores of 0 and 1 the test is the exact McNemar test, which takes
            samples for independent; where some share media the interval, which does not, is the one to look at.
    """
    differences = [b - a for a, b in zip(first, second, strict=True)]
    gained, lost = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    interval, distribution = _bootstrap(differences, clusters, 0.95)
    if draws == 1 and {*first, *second} <= {0.0, 1.0}:
        test, p_value = "exact McNemar", mcnemar(gained, lost)
    else:
        beyond = min((distribution <= 0).sum(), (distribution >= 0).sum())
        test, p_value = "clustered bootstrap", min(1.0, 2 * float(beyond + 1) / (len(distribution) + 1))
    difference = sum(differences) / len(differences)
    return Paired(test, difference, (interval.low, interval.high), gained, lost, p_value)


@dataclass(frozen=True)
class Seeds:
    """One number per seed, together."""

    values: tuple[float, ...]
    mean: float
    interval: tuple[float, float] | None
    """95 %, Student's t over seeds; None for one seed or equal values. It speaks of the method, not of a checkpoint."""
    p_value: float | None
    """Two-sided t test of a mean of 0; None where there is no interval."""


def over_seeds(values: Sequence[float], confidence: float = 0.95) -> Seeds:
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
    reach = float(t.ppf((1 + confidence) / 2, len(array) - 1)) * error
    p_value = 2 * float(t.sf(abs(mean) / error, len(array) - 1))
    return Seeds(tuple(values), mean, (mean - reach, mean + reach), p_value)


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
