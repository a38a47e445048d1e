"""How many processors this process may use."""

import os


def available() -> int:
    """The processors that a scheduler such as SLURM has left to this process, which may be fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
