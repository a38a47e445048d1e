"""The rewards of a run, which `grpo.total_reward` adds up (Eq. 5): each has a name, a function and a weight λ.

A new reward needs three things: `echoink/rewards/brevity.py` with `reward(completion, sample) -> float`, the field
`lambda_brevity` in `RewardConfig`, and its value in `conf/reward/accuracy_format.yaml`. Its name is then used in
`metrics.jsonl` (`reward/brevity`), `completions/`, traces, evaluation, report and model card. A user's own reward needs
none of this: `reward.file`, `reward.files`. The reward that needs the model itself is in
`training/integration_reward.py`.
"""

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from echoink.rewards import custom
from echoink.rewards.accuracy import accuracy_reward
from echoink.rewards.format import format_reward
from echoink.rewards.types import Match, Rule

if TYPE_CHECKING:
    from echoink.config.schema import RewardConfig
    from echoink.data.samples import Sample

RewardFunction = Callable[[Sequence[str], Sequence["Sample"]], list[float]]
"""R completions and their R samples → R rewards."""

_APART = ("acc", "fmt", "int", "file")
"""Names in `lambda_<name>` for which there is no module `echoink/rewards/<name>.py` to import."""


class Reward(NamedTuple):
    """One term λ_k R_k of the total reward (Eq. 5)."""

    name: str
    function: RewardFunction
    weight: float
    """λ_k."""


class ExtraReward(NamedTuple):
    """A reward other than accuracy and format, which scores one completion at a time."""

    name: str
    score: Callable[[str, "Sample"], float]
    weight: float


def accuracy_of(match: Match) -> RewardFunction:
    """R_acc (Eq. 3) as a function of many completions; answers are read as `match` says."""
    return lambda texts, samples: [
        accuracy_reward(text, s.problem_type, s.options, solution=s.solution, match=match)
        for text, s in zip(texts, samples, strict=True)
    ]


def listed(config: Any) -> list[tuple[str, float]]:
    """The terms of the total reward, for display: ("λ_acc", 1.0), ("λ_int (twin)", 0.3), ("mine.py", 0.5).

    Args:
        config: the group `reward`: a `RewardConfig`, or the group in the config.yaml of a run, perhaps an older one.
    """
    weights = dict(config if isinstance(config, Mapping) else vars(config))
    found = [("λ_acc", weights["lambda_acc"]), ("λ_fmt", weights["lambda_fmt"])]
    if weights.get("lambda_int"):
        rule = weights["integration"]
        found.append((f"λ_int ({rule.name if isinstance(rule, Rule) else rule})", weights["lambda_int"]))
    others = {name.removeprefix("lambda_"): value for name, value in weights.items() if name.startswith("lambda_")}
    found += [(f"λ_{name}", value) for name, value in others.items() if name not in _APART and value]
    found += [(weights["file"], weights["lambda_file"])] if weights.get("file") else []
    return found + [(each.name or Path(each.path).stem, each.weight) for each in weights.get("files") or ()]


def extra_rewards(config: "RewardConfig", example: "Sample") -> list[ExtraReward]:
    """The rewards of a configuration other than accuracy and format: the package's by name, then the user's files.

    Args:
        config: the weights and files.
        example: a sample on which a user's reward is tried.

    Raises:
        UserError: see `custom.load`.
    """
    names = [field.name.removeprefix("lambda_") for field in dataclasses.fields(config)]
    weights = {name: weight for name in names if (weight := getattr(config, f"lambda_{name}", None)) is not None}
    found = [
        ExtraReward(name, importlib.import_module(f"echoink.rewards.{name}").reward, weight)
        for name, weight in weights.items()
        if name not in _APART and weight
    ]
    files = [(config.file, "custom", config.lambda_file)] if config.file else []
    files += [(each.path, each.metric_name, each.weight) for each in config.files]
    for path, name, weight in files:
        score = custom.load(path, example, config.on_error, config.max_seconds)
        found.append(ExtraReward(name, score, weight))
    return found


def make_rewards(config: "RewardConfig", thinks: bool, extra: Sequence[ExtraReward] = ()) -> list[Reward]:
    """The rewards that are functions of the text: accuracy, format and the others.

    Args:
        config: the weights, and how an answer is read.
        thinks: whether the prompt asks for <think>.
        extra: see `extra_rewards`.
    """
    return [
        Reward("accuracy", accuracy_of(config.match), config.lambda_acc),
        Reward("format", lambda texts, _: [format_reward(text, thinks) for text in texts], config.lambda_fmt),
        *(
            Reward(each.name, lambda texts, samples, score=each.score: list(map(score, texts, samples)), each.weight)
            for each in extra
        ),
    ]
