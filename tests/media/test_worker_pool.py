import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest

from echoink.common.errors import UserError
from echoink.media.worker_pool import Died, isolated


def tenfold(number: int, deadly: int = -1) -> tuple[int, int]:
    if number == deadly:
        os.kill(os.getpid(), signal.SIGSEGV)
    return 10 * number, os.getpid()


def fails(number: int) -> int:
    raise ValueError(number)


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("processes", [1, 2, 5])
def test_results_come_in_order_and_a_crash_costs_its_item_only(processes):
    found = list(isolated(partial(tenfold, deadly=2), range(6), processes))
    assert found[2] == Died("SIGSEGV")
    assert [result[0] for result in found[:2] + found[3:]] == [0, 10, 30, 40, 50]
    used = {result[1] for result in found[:2] + found[3:]}
    assert os.getpid() not in used and len(used) <= processes + 1
    assert not any(map(alive, used))


def killed(number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_is_no_fault_of_its_item():
    with pytest.raises(UserError, match="may be out of memory"):
        list(isolated(killed, [1], 1))


def says_and_leaves(number: int) -> None:
    sys.stderr.write("the reason")
    sys.stderr.flush()
    os._exit(number)


def test_a_process_that_fails_says_why():
    with pytest.raises(RuntimeError, match="left with 4: the reason"):
        list(isolated(says_and_leaves, [4], 1))


def test_every_item_may_crash_and_none_may_be_there():
    assert list(isolated(partial(tenfold, deadly=7), [7, 7, 7], 2)) == [Died("SIGSEGV")] * 3
    assert list(isolated(tenfold, [], 2)) == []


def test_whoever_stops_listening_leaves_no_process():
    results = isolated(tenfold, range(100), 2)
    _, process = next(results)
    assert alive(process)
    results.close()
    assert not alive(process)


def leaves(number: int) -> int:
    os._exit(number)


def test_what_the_work_raises_is_raised_and_a_process_that_leaves_is_no_crash_of_the_item():
    with pytest.raises(ValueError, match="^7$"):
        list(isolated(fails, [7], 1))
    with pytest.raises(RuntimeError, match="left with 3"):
        list(isolated(leaves, [3], 1))


def test_processes_end_with_the_one_that_asked_even_when_it_is_killed(tmp_path):
    code = (
        "import sys, time; from echoink.media.worker_pool import isolated\n"
        "from tests.media.test_worker_pool import tenfold\n"
        "print(next(isolated(tenfold, [1, 2], 1))[1], flush=True)\n"
        "results = isolated(tenfold, range(9), 1); print(next(results)[1], flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as asking:
        lines = [int(asking.stdout.readline()) for _ in range(2)]
        assert alive(lines[1])
        asking.kill()
    end = time.monotonic() + 10
    while alive(lines[1]) and time.monotonic() < end:
        time.sleep(0.05)
    assert not alive(lines[1])
