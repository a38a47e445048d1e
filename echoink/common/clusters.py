"""Which samples are not independent, because they share media: a name, or names, that they share."""

from collections.abc import Sequence

Clusters = str | tuple[str, ...]
"""The clusters that a sample is in: one name, or a tuple with a name for each way of clustering, such as its recording
and its picture. There are two ways where recordings go with several pictures, which go with several recordings. All
samples have the same number of names.
"""


def names(cluster: Clusters) -> tuple[str, ...]:
    """One, or several of a crossed one."""
    return (cluster,) if isinstance(cluster, str) else cluster


def count(clusters: Sequence[Clusters]) -> int:
    """How many there are; if crossed, the smaller of the counts."""
    return min(len(set(of)) for of in zip(*map(names, clusters), strict=True))
