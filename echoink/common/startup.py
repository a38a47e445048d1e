"""Starting a process: the large libraries are a second or more each, and read their settings when they are imported."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

SPIN = "1000"
"""Turns that a thread of OpenMP waits for the others of a product before it sleeps; GNU's library takes 300,000."""


@contextmanager
def imports() -> Iterator[None]:
    """Import large libraries in here.

    Python's garbage collector leaves what they make alone: while modules are imported it looks through hundreds of
    thousands of objects again and again and frees nothing, and at the end of the process once more.

    PyTorch's threads sleep soon where they wait for one another. Else they hold the processors that another program on
    the machine, or the thread they wait for, needs (experiments/cpu_step.md). No number depends on it.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN)
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
