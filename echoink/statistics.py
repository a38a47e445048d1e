"""Intervals and tests for accuracies. Pure functions around scipy."""

from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import binomtest


@dataclass(frozen=True)
class Interval:
    """A two-sided confidence interval of a share, both ends in [0, 1]."""

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
    """Two answers to each of the same samples, compared."""

    gained: int
    """Samples that only the second got right."""
    lost: int
    """Samples that only the first got right."""
    p_value: float
    """Two-sided exact McNemar test of no difference; it compares these two checkpoints, not two methods."""


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> Paired:
    """Exact McNemar test: under no difference, gains among the samples that differ are a fair coin (McNemar 1947)."""
    pairs = list(zip(first, second, strict=True))
    gained = sum(not a and b for a, b in pairs)
    lost = sum(a and not b for a, b in pairs)
    return Paired(gained, lost, float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0)
