"""What the configuration sets in TRL, and what of TRL the trainer relies on."""

import inspect

import pytest

from echoink.training.host import TRLHost
from echoink.training.trainer import EchoInkTrainer
from echoink.training.trl_config import arguments
from tests.helpers.configs import config_of


def test_every_setting_reaches_trl():
    given = {
        "grpo.group_size=4": ("num_generations", 4),
        "grpo.beta=0.5": ("beta", 0.5),
        "grpo.loss=dr_grpo": ("loss_type", "dr_grpo"),
        "grpo.scale=none": ("scale_rewards", "none"),
        "grpo.clip=0.1": ("epsilon", 0.1),
        "grpo.updates_per_rollout=3": ("num_iterations", 3),
        "generation.temperature=0.7": ("temperature", 0.7),
        "generation.top_p=0.8": ("top_p", 0.8),
        "generation.top_k=7": ("top_k", 7),
        "generation.max_new_tokens=33": ("max_completion_length", 33),
        "trainer.learning_rate=1e-3": ("learning_rate", 1e-3),
        "trainer.schedule=constant": ("lr_scheduler_type", "constant_with_warmup"),
        "trainer.warmup_steps=5": ("warmup_steps", 5),
        "trainer.weight_decay=0.5": ("weight_decay", 0.5),
        "trainer.max_grad_norm=2": ("max_grad_norm", 2.0),
        "trainer.micro_batch_prompts=2": ("gradient_accumulation_steps", 4),
        "trainer.gradient_checkpointing=true": ("gradient_checkpointing", True),
        "seed=9": ("seed", 9),
    }
    config = config_of(*given)
    args = arguments(config.trainer, config.grpo, config.generation, seed=config.seed, steps=11, folder="x")
    assert {name: getattr(args, name) for name, _ in given.values()} == dict(given.values())
    assert args.max_steps == 11 and args.per_device_train_batch_size == 2 * 4


SIGNATURES = {
    "_get_train_sampler": "(self, dataset: datasets.arrow_dataset.Dataset | None = None)",
    "_prepare_inputs": "(self, generation_batch: dict",
    "_generate_and_score_completions": "(self, inputs: list[dict",
    "_compute_loss": "(self, model, inputs)",
    "training_step": "(self, model, inputs, num_items_in_batch)",
    "log": "(self, logs: dict[str, float], start_time: float | None = None)",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_what_is_overridden_in_trl_has_not_changed(name):
    from trl import GRPOTrainer

    assert name in {*vars(EchoInkTrainer), *vars(TRLHost)}
    assert str(inspect.signature(getattr(GRPOTrainer, name))).startswith(SIGNATURES[name])


def test_a_process_that_sees_several_gpus_uses_one(tmp_path, monkeypatch):
    """transformers would take all of them into DataParallel, and multiply the batch."""
    from functools import cached_property

    from transformers import TrainingArguments

    setup = TrainingArguments.__dict__["_setup_devices"].func

    def four(self):
        device = setup(self)
        self._n_gpu = 4
        return device

    stub = cached_property(four)
    stub.__set_name__(TrainingArguments, "_setup_devices")
    monkeypatch.setattr(TrainingArguments, "_setup_devices", stub)
    config = config_of()
    made = arguments(config.trainer, config.grpo, config.generation, seed=0, steps=3, folder=str(tmp_path))
    assert made.n_gpu == 1 and made.train_batch_size == made.per_device_train_batch_size


@pytest.mark.parametrize(("trainer", "optimizer"), [("single", "adamw_torch"), ("fsdp2", "adamw_torch_fused")])
def test_sharded_weights_are_not_updated_one_after_the_other(trainer, optimizer):
    """PyTorch joins the updates of plain tensors by itself; of sharded ones it does so only in the fused form."""
    config = config_of(f"trainer={trainer}", "trainer.processes=1")
    args = arguments(config.trainer, config.grpo, config.generation, seed=0, steps=1, folder="x")
    assert args.optim == optimizer
