"""Starting a process: the large libraries are a second or more each, and read their settings when they are imported."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

SPIN = "1000"
"""How often a waiting OpenMP thread spins before it sleeps. GNU's default is 300,000."""


@contextmanager
def imports() -> Iterator[None]:
    """Import large libraries in here.

    The garbage collector is off meanwhile and never looks at what they made: it would go through hundreds of thousands
    of objects again and again and free nothing, and once more at the end of the process.

    PyTorch's threads sleep soon when they wait for one another. Spinning, they would hold processors that another
    program, or the thread they wait for, needs (experiments/cpu_step.md). No number depends on it.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN)
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
