"""How many optimizer steps a run has."""

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
