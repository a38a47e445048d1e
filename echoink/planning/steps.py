"""How many optimizer steps a run has, and how far they come through a curriculum."""

from collections import Counter
from collections.abc import Sequence

from echoink.common.errors import UserError
from echoink.config.schema import TrainerConfig


def training_steps(config: TrainerConfig, updates_per_rollout: int, prompts: int) -> int:
    """Optimizer steps of a run: as configured, or `epochs` over the prompts, the last step of each filled up.

    Raises:
        UserError: there are fewer prompts than a step takes, or no step after the warm-up.
    """
    if prompts < config.prompts_per_step:
        raise UserError(
            f"{prompts} training samples are fewer than trainer.prompts_per_step={config.prompts_per_step}",
            "add samples or take fewer per step",
        )
    per_epoch = -(-prompts // config.prompts_per_step) * updates_per_rollout
    steps = config.steps or max(1, round(per_epoch * config.epochs))
    if config.warmup_steps >= steps:
        raise UserError(
            f"trainer.warmup_steps={config.warmup_steps} of {steps:,} steps: the learning rate would never be reached",
            "take fewer",
        )
    return steps


def of_curriculum(curriculum: Sequence[str], needs: Sequence[str], prompts: int) -> dict[str, tuple[int, int]]:
    """For each stage of a curriculum, in order: how many of its samples a run comes to, and how many there are.

    Args:
        curriculum: values of `need`.
        needs: of each training sample.
        prompts: how many the run asks.
    """
    found, there, left = {}, Counter(needs), prompts
    for need in curriculum:
        found[need] = min(left, there[need]), there[need]
        left -= found[need][0]
    return found
