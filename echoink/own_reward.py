"""A reward of the user's own, in a file of their own: `reward.file=mine.py`.

    def reward(completion: str, sample) -> float:
        return 1.0 if len(completion) < 400 else 0.0

`sample` is a `samples.Sample`. The file is the user's code and runs as such; it is named on the command line or in the
user's own configuration, never by a dataset or a checkpoint.
"""

import importlib.util
import math
import sys
from collections.abc import Callable
from pathlib import Path

from echoink.errors import UserError
from echoink.samples import Sample

OwnReward = Callable[[str, Sample], float]


def load(path: str, example: Sample) -> OwnReward:
    """The function `reward` of a Python file, tried once on the right answer to a sample.

    Raises:
        UserError: there is no such file or function, it cannot be imported, or it gives no finite number.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(
            f"reward.file={path}: no such file", "it is a Python file that defines reward(completion, sample)"
        )
    spec = importlib.util.spec_from_file_location("echoink_own_reward", file)
    module = importlib.util.module_from_spec(spec) if spec and spec.loader else None
    if module is None:
        raise UserError(f"reward.file={path} is no Python file", "its name must end in .py")
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"reward.file={path} cannot be imported: {type(error).__name__}: {error}") from error
    function = getattr(module, "reward", None)
    if not callable(function):
        raise UserError(f"reward.file={path} defines no function reward", "write def reward(completion, sample): …")

    def checked(completion: str, sample: Sample) -> float:
        try:
            value = float(function(completion, sample))
        except Exception as error:
            raise UserError(
                f"reward.file={path} failed on sample {sample.id}: {type(error).__name__}: {error}",
                f"the completion was {completion[:200]!r}",
            ) from error
        if not math.isfinite(value):
            raise UserError(f"reward.file={path} gave {value} for sample {sample.id}", f"for {completion[:200]!r}")
        return value

    checked(f"<think>because</think><answer>{example.solution}</answer>", example)
    return checked
