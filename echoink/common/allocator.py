"""Tells the C library's allocator to keep freed memory."""

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
"""glibc's numbers for `mallopt`."""


def keep_freed() -> None:
    """Keep freed memory in the process. Does nothing where the C library is not glibc.

    A tensor on a CPU is an allocation like any other, and glibc maps each large one anew: the system clears it, page by
    page, at every layer of every step. Memory that is kept need not be cleared again (experiments/cpu_step.md).
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_TOP_PAD, 2**28)
