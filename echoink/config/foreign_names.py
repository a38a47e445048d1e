"""Names of our keys in other trainers (TRL, transformers, verl, ms-swift), for hints on an unknown key."""

_HERE = {
    "adapter=lora": "lora use_lora use_peft peft lora_enable train_type",
    "adapter=qlora": "load_in_4bit qlora quantization bits use_4bit",
    "adapter.rank": "r lora_r lora_rank",
    "adapter.alpha": "lora_alpha",
    "adapter.targets": "lora_target_modules target_modules",
    "dataset=rows dataset.path=<folder>": "data_path dataset_name train_file train_files dataset_path jsonl_path",
    "eval.every": "eval_steps test_freq evaluation_strategy eval_strategy",
    "generation.max_new_tokens": "max_completion_length max_response_length response_length max_tokens",
    "generation=vllm": "use_vllm vllm vllm_mode rollout_backend",
    "grpo.beta": "kl_coef kl_loss_coef kl kl_beta init_kl_coef",
    "grpo.clip": "epsilon clip_ratio cliprange eps_clip",
    "grpo.group_size": "num_generations num_return_sequences group n rollout_n n_samples_per_prompt",
    "grpo.loss": "loss_type",
    "grpo.scale": "scale_rewards norm_adv_by_std_in_grpo",
    "grpo.updates_per_rollout": "num_iterations ppo_epochs mu",
    "hydra.run.dir=<folder>": "output_dir out_dir save_dir logging_dir run_dir",
    "model.attention": "attn_implementation flash_attn",
    "model.dtype, and trainer.bf16 for autocast": "torch_dtype precision mixed_precision fp16",
    "model.max_prompt_tokens": "max_prompt_length max_length max_seq_length cutoff_len",
    "model=<file of conf/model> model.path=<folder or hub id>": "model_name_or_path model_name model_id pretrained",
    "prompt.system": "system_prompt",
    "reward.file=mine.py": "reward_funcs reward_func reward_fn custom_reward_function reward_function",
    "reward.files": "reward_weights",
    "checkpoint=<run or step>, or resume=auto for the same run": "resume_from_checkpoint load_checkpoint",
    "tracking=mlflow or tracking=off": "report_to wandb logger logging tensorboard use_wandb",
    "trainer.epochs with trainer.steps=null": "num_train_epochs num_epochs total_epochs",
    "trainer.learning_rate": "lr actor_lr",
    "trainer.micro_batch_prompts, in prompts": "per_device_train_batch_size micro_batch_size batch_size",
    "trainer.prompts_per_step, in prompts over all processes": "gradient_accumulation_steps train_batch_size "
    "global_batch_size",
    "trainer.save_every": "save_steps save_freq save_strategy",
    "trainer.keep_checkpoints": "save_total_limit",
    "trainer.schedule": "lr_scheduler_type lr_scheduler",
    "trainer.steps": "max_steps total_steps total_training_steps",
    "trainer.warmup_steps": "warmup_ratio lr_warmup_steps",
    "trainer=ddp, fsdp2, zero2 or zero3": "deepspeed fsdp strategy distributed zero_stage",
}
"""What to write here, and its names elsewhere."""

HERE = {name: here for here, names in _HERE.items() for name in names.split()}
"""What to write here, by the name elsewhere."""
