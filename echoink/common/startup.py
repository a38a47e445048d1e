"""The beginning of a process: its streams, and imports of large libraries, which take a second or more each."""

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

SPIN = "1000"
"""How often a waiting OpenMP thread spins before it sleeps. GNU's default is 300,000."""


def take_any_text() -> None:
    """A character that the screen's encoding lacks becomes "?"; under LANG=en_US, a run would end at its first "λ"."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a test's or a notebook's may have none
            stream.reconfigure(errors="replace")


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
