"""Keys that act only together with another one: given without it, they would be a setting that changes nothing."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import fields

from echoink.common.errors import UserError
from echoink.config.schema import Adapter, Advantage, Config, Protocol, RolloutEngine, Source, Task, flatten
from echoink.rewards.types import Rule


def _by_groups(config: Config) -> bool:
    return config.task is not Task.sft and config.grpo.advantage is Advantage.group


_ACTS_ONLY: tuple[tuple[str, Callable[[Config], bool], str], ...] = (
    ("reward.lambda_acc reward.lambda_fmt", _by_groups, "rewards act with task=train grpo.advantage=group"),
    ("reward.lambda_file", lambda c: bool(c.reward.file), "reward.file=mine.py names what it weighs"),
    ("reward.on_error reward.max_seconds", lambda c: bool(c.reward.file or c.reward.files), "reward.file=mine.py"),
    ("reward.integration", lambda c: bool(c.reward.lambda_int), "reward=integration gives it its weight"),
    (
        "reward.integration_scale",
        lambda c: bool(c.reward.lambda_int) and c.reward.integration is Rule.counterfactual,
        "reward=integration reward.integration=counterfactual",
    ),
    (
        "grpo.group_size grpo.beta grpo.updates_per_rollout grpo.loss grpo.advantage",
        lambda c: c.task is not Task.sft,
        "task=sft learns responses that are given: no groups and no KL",
    ),
    ("grpo.scale", _by_groups, "it divides advantages with task=train grpo.advantage=group"),
    (
        "grpo.clip",
        lambda c: c.task is not Task.sft and c.grpo.updates_per_rollout > 1,
        "the ratio of the first update of a rollout is 1: grpo.updates_per_rollout=2",
    ),
    ("eval.base", lambda c: c.task is not Task.compare, "task=compare asks both models: task=eval asks one"),
    (
        "eval.greedy",
        lambda c: c.eval.protocol is Protocol.matched,
        "eval.protocol=matched; the public protocols say themselves who is asked greedily",
    ),
    (
        "reward.match prompt.options",
        lambda c: c.trains or c.eval.protocol is Protocol.matched,
        "eval.protocol=matched; the public protocols read and show options in their own way",
    ),
    ("sft.responses", lambda c: c.task is Task.sft, "task=sft"),
    ("dataset.shortcut_share", lambda c: c.dataset.shortcut is not None, "dataset=shortcut"),
    ("dataset.kinds", lambda c: c.dataset.source is Source.synthetic, "only the synthetic set is made by kinds"),
    ("trainer.epochs", lambda c: c.trainer.steps is None, "trainer.steps=null lets the epochs decide"),
    ("eval.dev_samples", lambda c: bool(c.eval.every), "eval.every=20 asks the development split"),
    (
        "adapter.rank adapter.alpha adapter.dropout adapter.targets",
        lambda c: c.adapter.kind is not Adapter.none,
        "adapter=lora takes one",
    ),
)
"""Keys, when they act, and what to add."""


_OF_TRAINING = ("grpo.", "reward.lambda_", "dataset.curriculum", "eval.every", "eval.watched", "eval.dev_samples")
_OF_TRAINING += ("tracking.traces_", "model.freeze")
_OF_EVALUATIONS_TOO = ("processes", "sharding", "patience", "bf16")
"""Of the group `trainer`."""


def of_training_alone(given: Collection[str], config: Config) -> list[str]:
    """Which of the given keys are read by training alone, where nothing is trained: such as those of a training's
    command line that is used again with task=eval.
    """
    if config.trains:
        return []
    trainer = [f"trainer.{each.name}" for each in fields(config.trainer) if each.name not in _OF_EVALUATIONS_TOO]
    found = {key for key in given if key in trainer or key.startswith(_OF_TRAINING)}
    if config.generation.engine is RolloutEngine.vllm and not config.uses_vllm:  # eval.engine=vllm is for evaluations
        found |= {"generation.engine"} if {"generation", "generation.engine"} & set(given) else set()
    return sorted(found)


def refuse_without_effect(given: Collection[str], jobs: Sequence[Config]) -> None:
    """Refuse keys of the command line that act in no job; in some jobs of a grid they may be without effect. Those of
    training alone may stand in the command line of an evaluation, but a sweep over one would be equal evaluations.

    Raises:
        UserError: naming the key and what it needs.
    """
    for keys, acts, hint in _ACTS_ONLY:
        for key in keys.split():
            if key in given and not any(map(acts, jobs)):
                raise UserError(f"{key} has no effect here", hint)
    for key in set.intersection(*(set(of_training_alone(given, job)) for job in jobs)):
        if len({str(flatten(job)[key]) for job in jobs}) > 1:
            raise UserError(f"{key} has no effect here, and the jobs differ in it", "only training reads it")
