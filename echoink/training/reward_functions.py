"""The rewards of a run: each a name, a function of completions and the samples they answer, and its weight λ.

A new reward is one more `Reward` here. Its name is its column in `completions/`, `traces.jsonl` and MLflow's traces,
and `reward/<name>` in `metrics.jsonl` and MLflow. What needs the model itself is in `integration_reward.py`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from echoink.config.schema import RewardConfig
from echoink.data.samples import Sample
from echoink.rewards.accuracy import accuracy_reward
from echoink.rewards.custom import CustomReward
from echoink.rewards.format import format_reward
from echoink.rewards.types import Match

RewardFunction = Callable[[Sequence[str], Sequence[Sample]], list[float]]
"""R completions and their R samples → R rewards."""


class Reward(NamedTuple):
    """One term λ_k R_k of the total reward (Eq. 5)."""

    name: str
    function: RewardFunction
    weight: float
    """λ_k."""


def accuracy_of(match: Match) -> RewardFunction:
    """R_accuracy (Eq. 3), answers read as `match` says."""
    return lambda texts, samples: [
        accuracy_reward(text, s.problem_type, s.options, s.solution, match)
        for text, s in zip(texts, samples, strict=True)
    ]


def of_config(config: RewardConfig, thinks: bool, custom: CustomReward | None = None) -> list[Reward]:
    """The rewards of a configuration: accuracy, format and, where there is one, the user's own.

    Args:
        config: the weights, and how an answer is read.
        thinks: whether the prompt asks for <think>.
        custom: the function of `reward.file`.
    """
    rewards = [
        Reward("accuracy", accuracy_of(config.match), config.lambda_acc),
        Reward("format", lambda texts, _: [format_reward(text, thinks) for text in texts], config.lambda_fmt),
    ]
    if custom is not None:
        rewards.append(Reward("custom", lambda texts, samples: list(map(custom, texts, samples)), config.lambda_file))
    return rewards
