"""Ctrl-C, SIGTERM, SIGUSR1 and SIGUSR2 (what schedulers send before they take a machine away), and SIGHUP (the terminal
is gone).

The first signal raises `KeyboardInterrupt` or `Preempted` in the main thread: at once, or at the end of a block that
must not be left half done (`held`). The second ends the process at once.

With several processes a signal is only noted (`only_note`): all of them stop together, at the next
`collectives.heed`.
"""

import ctypes
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

PREEMPTED = 128 + signal.SIGTERM
"""Exit status after SIGTERM or SIGUSR1: 143."""

SAME = 1.0
"""A second signal within these seconds counts as the first: launchers signal a process and its group."""


class Preempted(SystemExit):
    """The process was asked to stop; it exits with status 143."""

    def __init__(self) -> None:
        super().__init__(PREEMPTED)


KINDS = (None, KeyboardInterrupt, Preempted)
"""What the index that `asked` returns stands for."""

_only_noted = False
_asked: tuple[float, type[BaseException]] | None = None
_raised = False
_holds = 0


def install() -> None:
    """Install the handlers, once, when a process's main thread starts."""
    signal.signal(signal.SIGINT, _handle)
    signal.signal(signal.SIGTERM, _handle)
    for name in ("SIGUSR1", "SIGUSR2", "SIGHUP"):
        # What is ignored stays so: nohup ignores SIGHUP.
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN:
            signal.signal(getattr(signal, name), _handle)


def only_note() -> None:
    """From now on a signal is only noted."""
    global _only_noted
    _only_noted = True


def asked() -> int:
    """What this process was asked for, as an index into `KINDS`."""
    return KINDS.index(_asked[1]) if _asked else 0


def leave(kind: int) -> None:
    """Raise what this process or another was asked for."""
    raise KINDS[kind]


def raise_missed() -> None:
    """Raise again what the handler raised and Python dropped: it drops every exception in `__del__` and in the callback
    of a weak reference. Code that still runs after a signal calls this.
    """
    if _asked and _holds == 0:
        _leave()


def hold() -> None:
    """Begin a block that must not be left half done."""
    global _holds
    _holds += _main()


def release() -> None:
    """End the block; a signal that came meanwhile is raised here."""
    global _holds
    _holds -= _main()
    if _holds == 0 and _asked and not _raised and not _only_noted:
        _leave()


@contextmanager
def held() -> Iterator[None]:
    """Delay a signal to the end of the block."""
    hold()
    try:
        yield
    finally:
        release()


def _handle(number: int, _frame) -> None:
    global _asked
    if number == getattr(signal, "SIGHUP", None):
        _leave_the_terminal()
    if _asked is None:
        _asked = time.monotonic(), KeyboardInterrupt if number == signal.SIGINT else Preempted
        if _holds == 0 and not _only_noted:
            _leave()
    elif time.monotonic() - _asked[0] > SAME:
        os._exit(130 if number == signal.SIGINT else PREEMPTED)


def _leave_the_terminal() -> None:
    """Write to nowhere what would go to a terminal: it may be gone, and then writing fails before anything is saved."""
    for descriptor in (1, 2):
        if stat.S_ISCHR(os.fstat(descriptor).st_mode):  # `isatty` is false for one that is gone
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)


def _leave() -> None:
    global _raised
    _raised = True
    raise _asked[1]


def _main() -> bool:
    """Whether this is the main thread, the only one that signals interrupt."""
    return threading.current_thread() is threading.main_thread()


def end_with_parent() -> None:
    """Called in a new process: it gets SIGTERM when the process that started it ends (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
