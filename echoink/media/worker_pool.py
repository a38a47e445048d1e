"""Runs work on other people's files in processes that may crash: a decoder's crash costs an item, not the run."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TypeVar

from echoink.common.errors import UserError

MAX_PROCESSES = 8

Item, Result = TypeVar("Item"), TypeVar("Result")


@dataclass(frozen=True)
class Died:
    """What stands in the place of a result whose process died."""

    signal: str
    """Such as SIGSEGV."""


class _Process:
    """One process that works on one item after another."""

    def __init__(self, work: Callable):
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 lives as long as the process
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._said,
            )
        self.connection = Connection(ours.detach())
        self.connection.send(work)

    def send(self, item: Item) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # `result` reports it
            self.connection.send(item)

    def result(self) -> Result | Died:
        try:
            result = self.connection.recv()
        except (EOFError, ConnectionResetError):
            status = self.process.wait()
            if status >= 0:
                self._said.seek(0)
                said = self._said.read().decode(errors="replace")[-1000:]
                raise RuntimeError(f"a process of {__name__} left with {status}: {said}") from None
            if -status == signal.SIGKILL:  # no crash of a decoder sends it
                raise UserError(
                    "a process that reads files was killed: the machine may be out of memory",
                    "free some, and start again",
                ) from None
            return Died(signal.Signals(-status).name)
        if isinstance(result, Exception):
            raise result
        return result

    def close(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.wait()
        self._said.close()


def isolated(work: Callable[[Item], Result], items: Iterable[Item], processes: int) -> Iterator[Result | Died]:
    """Yield `work(item)` for each item, in order; several run at once, each in a process that does nothing else.

    Args:
        work: a function of a module, or a `partial` of one; its argument and result are pickled.
        processes: how many at once; at most `MAX_PROCESSES`.

    Raises:
        Exception: what `work` raises.
        UserError: a process was killed from outside, such as when memory runs out.
    """
    idle = deque([None] * max(1, min(processes, MAX_PROCESSES)))  # a process starts when it is needed
    busy: deque[_Process] = deque()
    try:
        for item in items:
            if not idle:
                yield _collect(busy, idle)
            busy.append(idle.popleft() or _Process(work))
            busy[-1].send(item)
        while busy:
            yield _collect(busy, idle)
    finally:
        for process in filter(None, (*busy, *idle)):
            process.close()


def _collect(busy: deque, idle: deque) -> Result | Died:
    process = busy[0]
    result = process.result()
    busy.popleft()
    if isinstance(result, Died):
        process.close()
    idle.append(None if isinstance(result, Died) else process)
    return result


def _serve(descriptor: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):  # the parent process decides when the work ends
        signal.signal(number, signal.SIG_IGN)
    with Connection(descriptor) as connection, suppress(EOFError, BrokenPipeError, ConnectionResetError):
        work = connection.recv()
        while True:
            item = connection.recv()
            try:
                result = work(item)
            except Exception as error:  # any error is raised again in the parent process
                result = error
            connection.send(result)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
