"""Loads a user's own reward from a Python file: `reward.file=mine.py`.

    def reward(completion: str, sample) -> float:
        return 1.0 if len(completion) < 400 else 0.0

`sample` is a `samples.Sample`. The file is the user's code and runs with the user's rights; the command line or the
user's own configuration names it, never a dataset or a checkpoint.
"""

import hashlib
import importlib.util
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from echoink.common.console import say
from echoink.common.errors import UserError
from echoink.common.signals import Preempted
from echoink.rewards.types import OnError

if TYPE_CHECKING:
    from echoink.data.samples import Sample

CustomReward = Callable[[str, "Sample"], float]


def load(path: str, example: "Sample", on_error: OnError = OnError.stop, max_seconds: float = 10) -> CustomReward:
    """The function `reward` of a Python file, tried once on the right answer to a sample.

    Args:
        path: the file.
        example: the sample to try it on.
        on_error: what happens if it raises, takes too long, or does not return a finite number; with `zero` there is
            one warning for each type of error.
        max_seconds: limit for one completion; Python code is interrupted, a call into C that does not return is not.

    Raises:
        UserError: there is no such file or function, it cannot be imported, or it fails on the example.
    """
    function, origin = _imported(path)
    said: set[str] = set()

    def checked(completion: str, sample: "Sample") -> float:
        try:
            with _at_most(max_seconds):
                return _number(function(completion, sample))
        except Preempted:  # a signal is no fault of the reward
            raise
        except (Exception, SystemExit) as error:
            lines = [at.lineno for at in traceback.extract_tb(error.__traceback__) if at.filename == origin]
            place = f"{path}, line {lines[-1]}" if lines else path
            problem = f"the reward {place} failed on sample {sample.id}: {type(error).__name__}: {error}"
            hint = f"the completion was {completion[:200]!r}"
            if tried:
                raise UserError(problem, f"{hint}: a right answer, on which it must work") from error
            if on_error is OnError.stop:
                raise UserError(problem, f"{hint}; reward.on_error=zero goes on") from error
            if type(error).__name__ not in said:
                said.add(type(error).__name__)
                say("warning", f"{problem}; it counts as 0, and so will further errors of this type ({hint})")
            return 0.0

    tried = True
    checked(f"<think>because</think><answer>{example.solution}</answer>", example)
    tried = False
    return checked


def _imported(path: str) -> tuple[Callable, str]:
    """The function `reward` of a Python file, and the file's name in a traceback."""
    file = Path(path)
    if not file.is_file():
        raise UserError(
            f"the reward {path}: no such file", "it is a Python file that defines reward(completion, sample)"
        )
    digest = hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:12]  # several files, several modules
    spec = importlib.util.spec_from_file_location(f"echoink_reward_{digest}", file)
    module = importlib.util.module_from_spec(spec) if spec and spec.loader else None
    if module is None:
        raise UserError(f"the reward {path} is not a Python file", "its name must end in .py")
    sys.modules[spec.name] = module  # dataclasses look up their module
    folder = str(file.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # modules beside the file can be imported, but do not hide ours
    try:
        spec.loader.exec_module(module)
    except Preempted:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"the reward {path} cannot be imported: {type(error).__name__}: {error}") from error
    function = getattr(module, "reward", None)
    if not callable(function):
        raise UserError(f"the reward {path} defines no function reward", "write def reward(completion, sample): …")
    return function, spec.origin


def _number(value: object) -> float:
    if not isinstance(value, Real | np.number | np.bool_):
        raise TypeError(f"it gave {str(value)[:100]!r}, a {type(value).__name__}, not a number")
    with np.errstate(over="ignore"):
        fits = np.isfinite(np.float32(value))  # rewards are added and compared in float32
    if not fits:
        raise ValueError(f"it gave {value}")
    return float(value)


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raise `TimeoutError` in a block that takes longer; only in the main thread, where a timer can interrupt."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def late(*_):
        raise TimeoutError(f"it took longer than reward.max_seconds={seconds:g}")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
