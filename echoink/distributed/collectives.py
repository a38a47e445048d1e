"""What the processes of a run do together: one works for all, all fail if one fails, all stop at the same place.

With one process none of this costs anything. (`watchdog` reports where processes hang.)
"""

from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate.utils import broadcast_object_list, gather_object

from echoink.common import signals
from echoink.distributed.process_group import processes

Result = TypeVar("Result")


class Lost(RuntimeError):
    """Another process has ended or does not answer."""


def several() -> bool:
    """Whether the run has more than one process."""
    return processes().num_processes > 1


def on_main_process(work: Callable[[], Result]) -> Result:
    """Run `work` in the first process; return its result in all processes.

    Raises:
        Exception: the one that `work` raised, in all processes.
        Lost: another process has ended.
    """
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
    """Run `work` in every process; if it fails in one process, this raises in all.

    Raises:
        Exception: the one that `work` raised in this process.
        RuntimeError: `work` failed in another process only; names that process and its error.
        Lost: another process has ended.
    """
    if not several():
        work()
        return
    failed = None
    try:
        work()
    except Exception as error:
        failed = error
    failures = _exchange(
        gather_object, [failed and f"{type(failed).__name__}: {next(iter(str(failed).splitlines()), '')}"]
    )
    if failed is not None:
        raise failed
    if any(failures):
        number = next(number for number, text in enumerate(failures) if text)
        raise RuntimeError(f"process {number}: {failures[number]}")


def share(work: Callable[[int, int], Result]) -> list[Result]:
    """Run `work` on a share in every process; return all results, in process order, in all of them.

    Args:
        work: gets the number of this process and the number of processes.

    Raises:
        Exception: see `each`.
    """
    state, found = processes(), []
    each(lambda: found.append(work(state.process_index, state.num_processes)))
    return _exchange(gather_object, found) if several() else found


def _exchange(operation: Callable, *arguments):
    try:
        return operation(*arguments)
    except RuntimeError as error:
        raise Lost(f"another process has ended: {next(iter(str(error).splitlines()), '')}") from error


def heed() -> None:
    """Stop if any process got a signal: with several processes a signal is only noted, see `signals.only_note`.

    A single process is interrupted at once; if Python dropped that exception, it is raised again here.

    Raises:
        KeyboardInterrupt: on Ctrl-C.
        signals.Preempted: on SIGTERM or SIGUSR1.
        Lost: another process has ended.
    """
    if not several():
        signals.raise_missed()
        return
    state = processes()
    asked = torch.tensor(signals.asked(), device=state.device)
    _exchange(torch.distributed.all_reduce, asked, torch.distributed.ReduceOp.MAX)
    if asked:
        signals.leave(int(asked))
