"""Imports large libraries: each takes a second or more, and reads its settings when it is imported."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

SPIN = "1000"
"""How often a waiting OpenMP thread spins before it sleeps. GNU's default is 300,000."""


@contextmanager
def imports() -> Iterator[None]:
    """Import large libraries inside this block.

    The garbage collector is off meanwhile and later skips the libraries' objects: it would scan hundreds of thousands
    of them again and again, and once more at the end of the process, and free nothing.

    PyTorch's threads sleep soon when they wait for one another. If they spun, they would occupy processors that another
    program, or the thread they wait for, needs (experiments/cpu_step.md). Results do not depend on it.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN)
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
