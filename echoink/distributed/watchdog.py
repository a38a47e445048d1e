"""Ends a process that hangs or whose engine hangs, and reports its step and samples."""

import faulthandler
import os
import sys
import threading
import time
from contextlib import suppress

from echoink.distributed.collectives import several
from echoink.distributed.process_group import processes

HANGS = 75
"""Exit status of a process that gives up waiting for the others."""

_place, _since = "the start", time.monotonic()


def at(place: str) -> None:
    """Note what this process begins now; see `Watchdog`."""
    global _place, _since
    _place, _since = place, time.monotonic()


class Watchdog:
    """Ends a process that makes no progress for too long and says where it was; the launcher then ends the others.

    This is a context manager. A collective operation waits forever if another process has ended or is in a different
    operation, or until a timeout that names no step and no sample.

    Args:
        seconds: the time without a call of `at` after which it acts. It never acts in a single process without vLLM.
        watches_engine: whether the process waits for vLLM, which may hang too.
    """

    def __init__(self, seconds: float, watches_engine: bool = False):
        self._seconds, self._watches_engine = seconds, watches_engine
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        at("the start")
        if several() or self._watches_engine:
            self._thread.start()
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self._stop.set()
        if several() and isinstance(error, Exception):
            self._say("failed")

    def _watch(self) -> None:
        while not self._stop.wait(min(1.0, self._seconds / 4)):
            if time.monotonic() - _since > self._seconds:
                self._say(f"has waited for {self._seconds:g} s (trainer.patience)")
                with suppress(OSError, ValueError):
                    faulthandler.dump_traceback(file=sys.__stderr__)
                os._exit(HANGS)

    def _say(self, what: str) -> None:
        print(f"\nprocess {processes().process_index} {what} at {_place}", file=sys.stderr, flush=True)
