"""Clusters of samples that share media and so are not independent; samples of one cluster share its name."""

from collections.abc import Sequence

Clusters = str | tuple[str, ...]
"""The clusters that a sample is in: one name, or a tuple with a name for each way of clustering, such as its recording
and its picture. There are two ways if a recording goes with several pictures and a picture with several recordings. All
samples have the same number of names.
"""


def names(cluster: Clusters) -> tuple[str, ...]:
    """The names of a sample's clusters: one, or several if clusters are crossed."""
    return (cluster,) if isinstance(cluster, str) else cluster


def count(clusters: Sequence[Clusters]) -> int:
    """How many clusters there are; if crossed, the smallest of the counts."""
    return min(len(set(of)) for of in zip(*map(names, clusters), strict=True))
