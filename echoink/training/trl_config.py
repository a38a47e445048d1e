"""Builds TRL's configuration from ours."""

import torch
from trl import GRPOConfig

from echoink.config.schema import GenerationConfig, GrpoConfig, Loss, Schedule, Sharding, TrainerConfig
from echoink.distributed import sharding
from echoink.distributed.process_group import processes


def arguments(
    config: TrainerConfig, grpo: GrpoConfig, generation: GenerationConfig, seed: int, steps: int, folder: str
) -> GRPOConfig:
    """The configuration with `gradient_checkpointing` decided, so not None; processes divide `prompts_per_step`."""
    # transformers' "constant" has no warm-up
    schedule = "constant_with_warmup" if config.schedule is Schedule.constant else config.schedule.name
    at_once = config.micro_batch_prompts * processes().num_processes  # a divisor of prompts_per_step, see `validate.py`
    zero = {Sharding.zero2: 2, Sharding.zero3: 3}.get(config.sharding)
    # For CISPO TRL's `epsilon_high` is the bound of the ratio itself, not what is added to 1.
    bound = 1 + grpo.clip if grpo.loss is Loss.cispo else None
    made = GRPOConfig(
        output_dir=folder,
        per_device_train_batch_size=config.micro_batch_prompts * grpo.group_size,
        gradient_accumulation_steps=config.prompts_per_step // at_once,
        max_steps=steps,
        learning_rate=config.learning_rate,
        lr_scheduler_type=schedule,
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        # Without `fused` PyTorch would update sharded weights one after the other, by a loop in Python.
        optim="adamw_torch_fused" if config.sharding is Sharding.fsdp2 else "adamw_torch",
        bf16=config.bf16,
        gradient_checkpointing=bool(config.gradient_checkpointing),
        seed=seed,
        num_generations=grpo.group_size,
        num_iterations=grpo.updates_per_rollout,
        beta=grpo.beta,
        use_bias_correction_kl=False,  # TRL's default weights the KL term by rho; Eq. 2 does not
        epsilon=grpo.clip,
        epsilon_high=bound,
        loss_type=grpo.loss.name,
        scale_rewards=grpo.scale.name,
        temperature=generation.temperature,
        top_p=generation.top_p,
        top_k=generation.top_k,
        max_completion_length=generation.max_new_tokens,
        vllm_importance_sampling_clip_max=generation.vllm.correction_max,
        shuffle_dataset=False,
        remove_unused_columns=False,
        use_cpu=not torch.accelerator.is_available() and not zero,
        deepspeed=zero and sharding.deepspeed(zero, config.bf16),
        accelerator_config={"use_configured_state": bool(zero and sharding.meet_on_cpu())},
        dataloader_pin_memory=torch.accelerator.is_available(),
        save_strategy="steps",  # after each step `callbacks.Keeper` does what is due
        save_only_model=True,  # transformers saves nothing, see _save_checkpoint
        save_steps=1,
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        log_level_replica="error",
    )
    # A process uses one GPU. If it sees several, transformers would multiply the batch by their number and wrap the
    # model in DataParallel, which would split a group.
    made._n_gpu = min(made.n_gpu, 1)
    return made
