"""Saves a trainer's state in a checkpoint and restores it, however the model is sharded among the processes."""

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import TrainerState, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from trl import GRPOTrainer
from trl.models import unwrap_model_for_generation

from echoink.common.errors import UserError
from echoink.distributed import collectives, sharded_checkpoint, sharding, watchdog
from echoink.models.registry import family_of
from echoink.run_folder import resume
from echoink.run_folder.checkpoint import drop_universal, manifest, of_process, step_of
from echoink.training import rng_state


class ResumableTrainer(GRPOTrainer):
    """TRL's trainer with our checkpoints: `callbacks.Keeper` decides when, `checkpoint.save` writes them atomically.

    Attributes:
        _random_state: the random state at the end of the last complete step.
    """

    _random_state: dict[str, Any]

    def rollout_state(self) -> dict[str, Any]:
        """What the next step needs of the current rollout; empty if that step makes a rollout of its own."""
        raise NotImplementedError

    def take_rollout(self, kept: dict[str, Any]) -> None:
        """Continue in the middle of the rollout that `rollout_state` returned."""
        raise NotImplementedError

    @contextmanager
    def unsharded(self):
        """Inside, this process holds all weights of the model, so computing waits for no other process.

        Yields:
            The model, not wrapped; with an adapter, its base model with the adapter's layers inside.
        """
        with (
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            ) as model,
            sharding.unsharded(model),
        ):
            yield model.get_base_model() if isinstance(model, PeftModel) else model

    def go_on(self, checkpoint: Path | None) -> None:
        """Train to the end, from a checkpoint of this run if there is one.

        Raises:
            UserError: the checkpoint is of a later step than the run's last, or does not fit this trainer, see
                `_check_kind` and `_rollout_of`.
        """
        if checkpoint is None:
            self.train()
            return
        watchdog.at(f"reading {checkpoint}")
        self.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        resume.refuse_fewer_steps(checkpoint, self.state.global_step, self.args.max_steps)
        self._check_kind(checkpoint)
        self._rollout_of(checkpoint)
        if self.state.global_step < self.args.max_steps:
            if self._reads_universal(checkpoint):
                watchdog.at(f"the shards of {checkpoint} for another number of processes")
                collectives.on_main_process(lambda: sharded_checkpoint.make_universal(checkpoint))
                watchdog.at(f"reading the shards of {checkpoint}")
                self.accelerator.state.deepspeed_plugin.deepspeed_config["checkpoint"] = {"load_universal": True}
            self.train(resume_from_checkpoint=str(checkpoint))
        else:  # transformers would train one more step
            self._load_from_checkpoint(str(checkpoint))
            self.state.max_steps = self.args.max_steps  # the run may have been shortened to this step
            self.callback_handler.on_train_begin(self.args, self.state, self.control)

    def _save_checkpoint(self, model, trial) -> None:
        pass  # transformers does not write checkpoints atomically; callbacks.Keeper writes ours

    @property
    def _divides_what_learns(self) -> bool:
        """Whether the weights that learn are sharded. An adapter never is, even if the model around it is."""
        return sharding.is_sharded(self.model_wrapped) and not isinstance(self.model, PeftModel)

    def save_weights(self, folder: Path, weights: dict[str, Tensor]) -> None:
        """Write one model folder; all processes must call it. `weights` come from `checkpoint_weights()`."""
        model = self.accelerator.unwrap_model(self.model)
        if self.args.should_save:
            model.generation_config.eos_token_id = self.eos_token_ids  # transformers keeps only the tokenizer's
            self.processing_class.save_pretrained(folder)
        if self._divides_what_learns:
            sharded_checkpoint.save_weights(model, folder)
        elif self.args.should_save:
            model.save_pretrained(folder, state_dict=weights)

    def save_state_beside(self, folder: Path) -> None:
        """Write the state that training resumes from, as of the end of the last complete step."""
        own = of_process(self.args.process_index)
        if self._divides_what_learns:
            sharded_checkpoint.save_optimizer(self.model_wrapped, self.optimizer.optimizer, folder)
            if self.args.should_save:
                torch.save(self.lr_scheduler.state_dict(), folder / "scheduler.pt")
        else:
            self._save_optimizer_and_scheduler(str(folder))
        if self.args.should_save:
            self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
        torch.save(self._random_state, folder / own("rng_state.pth"))
        torch.save(self.rollout_state(), folder / own("rollout.pt"))

    def checkpoint_weights(self) -> dict[str, Tensor]:
        """Names and weights of this process for a checkpoint. All processes must call it.

        Under FSDP2 each process gets its own shards; under ZeRO-3 the first process gets all weights and the others get
        none; otherwise each gets all of them, and the first one writes them.
        """
        if sharding.is_sharded(self.model_wrapped):
            weights = self.model_wrapped.state_dict()
            return {name: w.to_local() if isinstance(w, DTensor) else w for name, w in weights.items()}
        return self.accelerator.get_state_dict(self.model_wrapped) or {}

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        model = self.model if model is None else model
        if isinstance(model, PeftModel):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        if sharding.is_sharded(model) and sharded_checkpoint.holds_weights(Path(resume_from_checkpoint)):
            sharded_checkpoint.load_weights(model, Path(resume_from_checkpoint))
            return
        # transformers looks for the names that the weights have in the model, but the file has the published names:
        # it would find none and keep the current weights.
        plan = None
        if sharding.is_sharded(model):
            units = dict(family_of(model).SHARDED_UNITS)
            plan = replace(sharding.fsdp2(self.args.world_size, self.args.bf16), fsdp_plan=units)
        kept = type(model).from_pretrained(resume_from_checkpoint, dtype=model.dtype, distributed_config=plan)
        with sharding.gathered(kept):
            model.load_state_dict(kept.state_dict())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        folder, asked = Path(checkpoint), self._rates()
        if self._divides_what_learns or (folder / sharded_checkpoint.OPTIMIZER).is_dir():
            if (folder / sharded_checkpoint.OPTIMIZER).is_dir():
                sharded_checkpoint.load_optimizer(self.model_wrapped, self.optimizer.optimizer, folder)
            else:
                sharded_checkpoint.load_shards(self.optimizer.optimizer, folder / "optimizer.pt")
            self.lr_scheduler.load_state_dict(torch.load(folder / "scheduler.pt", weights_only=True))
        else:
            super()._load_optimizer_and_scheduler(checkpoint)
        if self._reads_universal(folder):
            inner = self.optimizer.optimizer.optimizer
            collectives.each(
                lambda: sharded_checkpoint.part_groups(inner, (self.args.weight_decay, 0.0))
            )  # after this all processes have read
            collectives.on_main_process(lambda: drop_universal(folder))
        if not self.is_deepspeed_enabled:
            self._set_rates(asked)  # `resume_allow` may let them differ; `resume.begin` refuses that with DeepSpeed
        self._step = self.state.global_step * self.args.gradient_accumulation_steps
        if kept := self._rollout_of(folder):
            self.take_rollout(kept)

    def _rates(self) -> list[tuple[float, float]]:
        """The learning rate before the schedule and the weight decay of each group of parameters."""
        return [(group.get("initial_lr"), group["weight_decay"]) for group in self.optimizer.param_groups]

    def _set_rates(self, rates: list[tuple[float, float]]) -> None:
        """Continue with these learning rates and weight decays from the schedule's current step."""
        schedule = self.lr_scheduler
        schedule.base_lrs = [rate for rate, _ in rates]
        groups = zip(self.optimizer.param_groups, rates, schedule.lr_lambdas, strict=True)
        for group, (rate, decay), factor in groups:
            group |= {"initial_lr": rate, "lr": rate * factor(schedule.last_epoch), "weight_decay": decay}
        schedule._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def _rollout_of(self, checkpoint: Path) -> dict[str, Any]:
        """The unfinished rollout in a checkpoint; empty if there is none.

        Raises:
            UserError: it was made with another number of processes or micro-batches.
        """
        file, before = self._own_file(checkpoint, "rollout.pt"), _processes_of(checkpoint)
        kept = torch.load(file, map_location=self.accelerator.device, weights_only=True)
        if kept and (len(kept["micro_batches"]) != self.args.steps_per_generation or before != self.args.world_size):
            raise UserError(
                f"{checkpoint} is in the middle of a rollout of {len(kept['micro_batches'])} micro-batches on each of "
                f"{before} processes",
                "resume it with the same trainer.micro_batch_prompts and trainer.processes",
            )
        return kept

    def _check_kind(self, checkpoint: Path) -> None:
        """Refuse a checkpoint whose optimizer state this trainer cannot read.

        Raises:
            UserError: DeepSpeed wrote the state and is not used now, or the other way round.
        """
        theirs = any(checkpoint.glob("global_step*"))
        if theirs != self.is_deepspeed_enabled:
            raise UserError(
                f"{checkpoint} has the optimizer's state {'as' if theirs else 'not as'} DeepSpeed writes it",
                f"go on with the same trainer.sharding, or start another run from its weights, checkpoint={checkpoint}",
            )

    def _reads_universal(self, checkpoint: Path) -> bool:
        """Whether another number of processes wrote the checkpoint's DeepSpeed shards."""
        return self.is_deepspeed_enabled and _processes_of(checkpoint) != self.args.world_size

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        folder, name = Path(checkpoint), of_process(self.args.process_index)("rng_state.pth")
        if self.args.process_index and not (folder / name).is_file():
            # A process that the run did not have before: it draws neither as the first one nor as it did in step 0.
            set_seed((self.args.seed + 1_000_003 * step_of(folder) + self.args.process_index) % 2**32)
            self._random_state = rng_state.state()
            return
        self._random_state = torch.load(folder / name, weights_only=True)
        rng_state.restore(self._random_state)

    def _own_file(self, folder: Path, name: str) -> Path:
        """This process's file; the first process's if this one's does not exist."""
        own = folder / of_process(self.args.process_index)(name)
        return own if own.is_file() else folder / name


def _processes_of(checkpoint: Path) -> int:
    """How many processes wrote a checkpoint; 1 if its manifest does not say."""
    return manifest(checkpoint).get("processes", 1)
