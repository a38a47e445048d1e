"""Keys that act only together with another setting; without it they would change nothing."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import fields

from echoink.common.errors import UserError
from echoink.config.schema import Adapter, Advantage, Config, Correction, Protocol, RolloutEngine, Source, Task, flatten
from echoink.rewards.types import Rule


def _by_groups(config: Config) -> bool:
    return config.task is not Task.sft and config.grpo.advantage is Advantage.group


_ACTS_ONLY: tuple[tuple[str, Callable[[Config], bool], str], ...] = (
    ("reward.lambda_acc reward.lambda_fmt", _by_groups, "rewards act only with task=train grpo.advantage=group"),
    ("reward.lambda_file", lambda c: bool(c.reward.file), "reward.file=mine.py names the reward that it weights"),
    (
        "reward.lambda_file",
        lambda c: _by_groups(c) or not c.trains,
        "rewards act only with task=train grpo.advantage=group; reward.file alone is reported",
    ),
    (
        "model.path",
        lambda c: not c.checkpoint or not c.trains,  # a training's command line may be used again with task=eval
        "checkpoint=… gives the weights: leave model.path out, or add checkpoint=null",
    ),
    (
        "generation.vllm.python generation.vllm.sleep",
        lambda c: c.uses_vllm or c.generation.engine is RolloutEngine.vllm,
        "generation=vllm, or eval.engine=vllm",
    ),
    (
        "generation.vllm.correction generation.vllm.correction_max generation.vllm.alarm",
        lambda c: c.generation.engine is RolloutEngine.vllm,
        "generation=vllm: it is about rollouts by vLLM",
    ),
    (
        "generation.vllm.correction_max",
        lambda c: c.generation.vllm.correction is not Correction.none,
        "nothing is corrected with generation.vllm.correction=none",
    ),
    (
        "eval.direct.system eval.direct.template eval.direct.options",
        lambda c: c.eval.protocol is not Protocol.matched,
        "eval.protocol=may19 or another public protocol asks the base so",
    ),
    ("dataset.shortcut dataset.shortcut_share", lambda c: c.dataset.source is Source.synthetic, "dataset=shortcut"),
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
        "task=sft learns given responses: no groups, no KL term",
    ),
    ("grpo.scale", _by_groups, "it divides advantages with task=train grpo.advantage=group"),
    (
        "grpo.clip",
        lambda c: c.task is not Task.sft and c.grpo.updates_per_rollout > 1,
        "the ratio of the first update of a rollout is 1: grpo.updates_per_rollout=2",
    ),
    ("eval.base", lambda c: c.task is not Task.compare, "task=compare asks both models; task=eval asks one"),
    (
        "eval.greedy",
        lambda c: c.eval.protocol is Protocol.matched,
        "eval.protocol=matched; the public protocols fix which model decodes greedily",
    ),
    (
        "reward.match prompt.options",
        lambda c: c.trains or c.eval.protocol is Protocol.matched,
        "eval.protocol=matched; the public protocols read and show options in their own way",
    ),
    ("sft.responses", lambda c: c.task is Task.sft, "task=sft"),
    ("dataset.shortcut_share", lambda c: c.dataset.shortcut is not None, "dataset=shortcut"),
    ("dataset.kinds", lambda c: c.dataset.source is Source.synthetic, "only the synthetic set is made of chosen kinds"),
    ("trainer.epochs", lambda c: c.trainer.steps is None, "trainer.steps=null lets the epochs decide"),
    ("eval.dev_samples", lambda c: bool(c.eval.every), "eval.every=20 evaluates the development split"),
    (
        "adapter.rank adapter.alpha adapter.dropout adapter.targets",
        lambda c: c.adapter.kind is not Adapter.none,
        "adapter=lora uses it",
    ),
)
"""Keys, when they act, and what to add."""


_OF_TRAINING = ("grpo.", "dataset.curriculum", "eval.every", "eval.watched", "eval.dev_samples")
_OF_TRAINING += ("tracking.traces_", "model.freeze")
# An evaluation reports the package's other rewards too, if their weights are not 0.
_OF_TRAINING += tuple(f"reward.lambda_{name}" for name in ("acc", "fmt", "int", "file"))
_OF_EVALUATIONS_TOO = ("processes", "sharding", "patience", "bf16")
"""Keys of the group `trainer` that evaluations read too."""


def idle_in_evaluations(given: Collection[str], config: Config) -> list[str]:
    """The given keys without effect in a task that does not train: those that only training reads, and `model.path`
    where a checkpoint gives the weights. None for a task that trains.

    There are such keys where the command line of a training is used again with task=eval.
    """
    if config.trains:
        return []
    trainer = [f"trainer.{each.name}" for each in fields(config.trainer) if each.name not in _OF_EVALUATIONS_TOO]
    found = {key for key in given if key in trainer or key.startswith(_OF_TRAINING)}
    if config.generation.engine is RolloutEngine.vllm and not config.uses_vllm:  # eval.engine=vllm is for evaluations
        found |= {"generation.engine"} if {"generation", "generation.engine"} & set(given) else set()
        found |= {key for key in given if key.startswith("generation.vllm.")}
    if config.checkpoint and config.task is not Task.compare:
        found |= {"model.path"} & set(given)
    return sorted(found)


def refuse_without_effect(given: Collection[str], jobs: Sequence[Config]) -> None:
    """Refuse command-line keys that act in no job; in some jobs of a grid they may have no effect.

    An evaluation may be given keys that only training reads, but not sweep over one: its jobs would be equal.

    Raises:
        UserError: naming the key and what it needs.
    """
    for keys, acts, hint in _ACTS_ONLY:
        for key in keys.split():
            if key in given and not any(map(acts, jobs)):
                raise UserError(f"{key} has no effect here", hint)
    for key in set.intersection(*(set(idle_in_evaluations(given, job)) for job in jobs)):
        if len({str(flatten(job)[key]) for job in jobs}) > 1:
            raise UserError(f"{key} has no effect here, and the jobs differ in it", "they would be equal")
