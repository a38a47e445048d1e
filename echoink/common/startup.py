"""Starting a process: the large libraries are a second or more each."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def imports() -> Iterator[None]:
    """Import large libraries in here: Python's garbage collector leaves what they make alone.

    While modules are imported it looks through hundreds of thousands of objects again and again and frees nothing, and
    at the end of the process once more. Without it a run starts and ends in a quarter less time.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
