"""What the processes of one run do together: one works for all, all or none, leave at the same place, say where they
are when they hang. With one process nothing of it costs anything.
"""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import torch
from accelerate.utils import broadcast_object_list, gather_object

from echoink import signals
from echoink.models import processes

Result = TypeVar("Result")

HANGS = 75
"""Exit status of a process that gives up waiting for the others."""


class Lost(RuntimeError):
    """Another process has gone, or does not answer."""


def several() -> bool:
    """Whether the run has more than one process."""
    return processes().num_processes > 1


def first(work: Callable[[], Result]) -> Result:
    """What `work` returns, or raises, in the first process: in all of them."""
    if not several():
        return work()
    found: list = [None, None]
    if processes().is_main_process:
        try:
            found[0] = work()
        except Exception as error:
            found[1] = error
    _exchange(broadcast_object_list, found)
    if found[1] is not None:
        found[1].of_the_first = not processes().is_main_process
        raise found[1]
    return found[0]


def each(work: Callable[[], None]) -> None:
    """Do it in every process; where it fails in one it fails in all.

    Raises:
        Exception: this process's, or a RuntimeError that names the process and its error.
    """
    if not several():
        work()
        return
    failed = None
    try:
        work()
    except Exception as error:
        failed = error
    told = _exchange(gather_object, [failed and f"{type(failed).__name__}: {next(iter(str(failed).splitlines()), '')}"])
    if failed is not None:
        raise failed
    if any(told):
        number = next(number for number, text in enumerate(told) if text)
        raise RuntimeError(f"process {number}: {told[number]}")


def _exchange(operation: Callable, *arguments):
    try:
        return operation(*arguments)
    except RuntimeError as error:
        raise Lost(f"another process has gone: {next(iter(str(error).splitlines()), '')}") from error


def heed() -> None:
    """Leave where any process was asked to: with several processes a signal is only noted, see `signals.share`."""
    if not several():
        return
    state = processes()
    asked = torch.tensor(signals.asked(), device=state.device)
    _exchange(torch.distributed.all_reduce, asked, torch.distributed.ReduceOp.MAX)
    if asked:
        signals.leave(int(asked))


_place, _since = "the start", time.monotonic()


def at(place: str) -> None:
    """Say what this process begins now; see `Watchdog`."""
    global _place, _since
    _place, _since = place, time.monotonic()


class Watchdog:
    """Ends a process that has not come on for too long, saying what it was at; the launcher then ends the others.

    A context manager. A collective operation whose partner is gone or at another one waits for ever, or until a timeout
    that names no step and no sample.

    Args:
        seconds: without a word from `at` before it bites; where there is one process it never does.
    """

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        at("the start")
        if several():
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
