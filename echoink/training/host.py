"""The base class of `EchoInkTrainer`: TRL's and transformers' trainer with our order of prompts, timer and log.

The algorithm is in `trainer`. This module runs it inside `transformers.Trainer`: construction, the prompts that the
data loader reads, the work around an update, and the unfinished rollout that a checkpoint holds.
"""

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from peft import PeftConfig
from torch import Tensor
from torch.utils.data import Sampler
from transformers import PreTrainedModel, PrinterCallback
from trl import GRPOConfig
from trl.models import prepare_deepspeed
from trl.trainer.utils import add_fused_lm_head, split_tensor_dict

from echoink.common import signals
from echoink.config.schema import Correction, GrpoConfig
from echoink.data.ablations import SENSES, has_both, without
from echoink.data.prefetch import Prefetcher
from echoink.data.processor import PromptProcessor
from echoink.data.sampler import GroupSampler
from echoink.data.samples import Sample
from echoink.distributed import collectives, sharding
from echoink.models.encoders import same_towers
from echoink.models.rounding import round_frozen, unround_what_learns
from echoink.rewards.terms import Reward
from echoink.rollout.decoder import Decoder
from echoink.rollout.sampling import uniforms
from echoink.rollout.types import Rollout
from echoink.rollout.vllm_engine import Engine
from echoink.training import rng_state
from echoink.training.integration_reward import IntegrationReward
from echoink.training.resumable_trainer import ResumableTrainer
from echoink.training.step_timer import StepTimer


@dataclass(frozen=True)
class Policy:
    """The policy, its reference, and the engine that samples from it."""

    model: PreTrainedModel
    """pi_theta, from `loading.load_model`."""
    reference: PreTrainedModel | None
    """The frozen pi_ref, from `loading.load_reference`; None if `args.beta` is 0 or there is an adapter."""
    processor: PromptProcessor
    """Turns a sample into model inputs."""
    adapter: PeftConfig | None = None
    """What is trained instead of the model's weights; the model with the adapter switched off is the reference."""
    engine: Engine | None = None
    """Generates the rollouts instead of our decoder."""
    correction: Correction = Correction.none
    """Corrects the loss for engine log-probabilities that differ from the model's."""


@dataclass(frozen=True)
class Scoring:
    """What a completion is rewarded for."""

    terms: Sequence[Reward]
    """The terms of the total reward; one of them is called `accuracy`."""
    integration: IntegrationReward | None = None
    """A reward, or a weight of groups, that needs the model itself; None for none."""


def _add_no_hooks(model: PreTrainedModel) -> None:
    """Keep transformers from hooking all embeddings, so that their outputs require gradients, with checkpointing.

    Only reentrant checkpointing needs that. In a frozen tower it would keep the activations of every copy of a medium,
    and hooks would pile up: each time checkpointing is turned on they are added, and turning it off leaves them.
    """
    model.disable_input_require_grads()
    model.enable_input_require_grads = lambda: None


def _never(**_) -> list[float]:
    raise AssertionError("TRL requires a reward function; `EchoInkTrainer._compute_rewards` calls ours")


class TRLHost(ResumableTrainer):
    """TRL's GRPO trainer for prompts with a picture and a sound.

    Args:
        policy: the model that learns, its reference and its engine.
        samples: the training set, with unique ids.
        scoring: the rewards.
        args: TRL's configuration, see `trl_config.arguments`.
        settings: the variant of GRPO; the shared prefix, modality dropout.
        curriculum: values of the samples' field `need`, in the order in which an epoch goes through them; empty
            for no such order.
        callbacks: callbacks of transformers.
        on_rollout: the first process calls it with the rows of every rollout, those of all processes. A row has `step`,
            `id`, `g`, `text`, `tokens`, `media`, the rewards by name, their `total`, and `advantage`.
    """

    GENERATES = True
    """Whether the policy samples the completions; if not, tokens per second are not logged."""

    def __init__(
        self,
        policy: Policy,
        samples: Sequence[Sample],
        scoring: Scoring,
        args: GRPOConfig,
        settings: GrpoConfig,
        *,
        curriculum: Sequence[str] = (),
        callbacks: list | None = None,
        on_rollout: Callable[[list[dict]], None] | None = None,
    ):
        # What the run passes in.
        model, reference, processor = policy.model, policy.reference, policy.processor
        self._prompt_processor, self._prefetcher = processor, Prefetcher(processor)
        self._upcoming: list[str] = []  # sample ids that the data loader has read since the last rollout
        self._samples = {sample.id: sample for sample in samples}
        self._on_rollout = on_rollout
        self.rollout: Rollout | None = None  # the rollout whose micro-batches are buffered
        self._rewards, self._integration, self._settings = list(scoring.terms), scoring.integration, settings
        if self._integration and self._integration.pays:
            self._rewards.append(Reward("integration", self._integration_reward, self._integration.weight))
        self._engine = policy.engine
        self._pushed: int | None = None  # the step whose weights the engine has
        self._correction, self._largest_ratio = policy.correction, args.vllm_importance_sampling_clip_max
        # Sums over the tokens of each micro-batch of all processes, see `EchoInkTrainer._compute_loss`.
        self._token_sums: list[list[float]] = []
        self._engine_notes: list[Tensor] = []
        self._random_state = rng_state.state()  # as of the end of the last whole step
        self._reference_sees_the_same = reference is None or same_towers(model.model, reference.model)
        # TRL cannot load a reference from a full Omni configuration. So the trainer is built without a KL term; the KL
        # term and our reference are set afterwards.
        without_reference = copy.copy(args)
        without_reference.beta = 0.0
        super().__init__(
            model=model,
            reward_funcs=[_never],
            args=without_reference,
            train_dataset=Dataset.from_dict({"prompt": list(self._samples)}),
            processing_class=processor.processor,
            callbacks=callbacks,
            peft_config=policy.adapter,
        )
        # TRL's own objects exist now; some are replaced by ours.
        if not (self.args.gradient_checkpointing_kwargs or {}).get("use_reentrant"):
            _add_no_hooks(model)
        self.args.beta = self.beta = args.beta
        self.remove_callback(PrinterCallback)
        self.data_collator = self._read  # gets the batches that the data loader reads one step ahead
        self.timer = StepTimer(self.accelerator.device)
        self._order = self._sampler([curriculum.index(s.fields["need"]) for s in samples] if curriculum else None)
        self._set_dtypes(policy, args.bf16)
        # With an adapter the model is its own reference, the adapter switched off.
        self.ref_model = self._prepared(reference) if self.beta and policy.adapter is None else None
        # A tower that no prompt of a step needs gets a gradient of zero instead of none, however the model is sharded.
        for each in filter(None, (model, reference)):
            each.model.run_all_towers = True
        self._decoder: Decoder | None = None  # made for the first rollout; all later ones reuse its captured steps

    def _set_dtypes(self, policy: Policy, bf16: bool) -> None:
        if policy.adapter is not None:
            unround_what_learns(self.model)
        # Autocast would round these weights at every use. They are frozen and not saved, so they are rounded once.
        frozen = policy.reference if policy.adapter is None else self.model
        if bf16 and frozen is not None:
            round_frozen(frozen, torch.bfloat16)

    def _sampler(self, stages: Sequence[int] | None) -> GroupSampler:
        # TRL's sampler drops the last, partial block of prompts; ours fills it (562 steps of the paper, not 561).
        return GroupSampler(
            prompts=len(self._samples),
            group_size=self.num_generations,
            block=self.args.generation_batch_size // self.num_generations,
            repeats=self.num_iterations * self.args.steps_per_generation,
            seed=self.args.seed,
            stages=stages,
        )

    def _prepared(self, reference: PreTrainedModel) -> torch.nn.Module:
        add_fused_lm_head(reference, temperature=self.temperature)
        if sharding.is_sharded(reference):
            return reference
        if self.is_deepspeed_enabled:
            return prepare_deepspeed(reference, self.accelerator)
        return self.accelerator.prepare_model(reference, evaluation_mode=True)

    # --- prompts ---

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler[int]:
        return self._order

    def _run_epoch(self, *args, epoch: int, **kwargs) -> None:
        self._order.set_epoch(epoch)  # transformers omits this if the data loader skips trained batches
        super()._run_epoch(*args, epoch=epoch, **kwargs)

    def _prepare_inputs(self, generation_batch: list[dict]) -> dict[str, Tensor]:
        # This is TRL's method without the shuffle, which would scatter a group over micro-batches. One rollout serves
        # `rollouts_every` micro-batches; between rollouts the next micro-batch comes from the buffer.
        rollouts_every = self.args.steps_per_generation * self.num_iterations
        if self._step % rollouts_every == 0 or self._buffered_inputs is None:
            scored = self._generate_and_score_completions(generation_batch)
            self._buffered_inputs = split_tensor_dict(scored, self.args.steps_per_generation)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _read(self, rows: list[dict]) -> list[dict]:
        # The data loader is one step ahead: the prompts that it reads now are for the next rollout.
        self._upcoming += [row["prompt"] for row in rows]
        return rows

    def _prefetch(self) -> None:
        """Let threads prepare the next rollout's prompts, after this rollout: its token decoding needs the GIL too."""
        now = set(self.rollout.ids)  # the data loader reads a rollout's rows again for each of its updates
        self._prefetcher.ask([self._samples[id] for id in self._upcoming if id not in now])
        self._upcoming.clear()

    def _shown(self, sample: Sample) -> Sample:
        """The sample as this step uses it; modality dropout may remove one sense of a sample that has both."""
        if not self._settings.modality_dropout or not has_both(sample):
            return sample
        number = self.state.global_step // self.num_iterations  # the rollout's number, the same for all of its updates
        coin = uniforms(self.args.seed, number, f"dropout {sample.id}", group_size=1, length=2).flatten().tolist()
        return without(sample, SENSES[int(2 * coin[1])]) if coin[0] < self._settings.modality_dropout else sample

    # --- the update, and the log of a step ---

    def training_step(self, model, inputs, num_items_in_batch=None) -> Tensor:
        collectives.heed()
        self.timer.begin()
        with self.timer.section("time/update"):
            loss = super().training_step(model, inputs, num_items_in_batch)
            self._prefetch()
        return loss

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm)
        sound = torch.isfinite(torch.as_tensor([float(norm), float(self._tr_loss)])).all()
        if self.accelerator.reduce(sound.float().to(self.accelerator.device), reduction="mean") < 1:
            # Skip the step: nothing of it reaches a weight or a moment of the optimizer.
            self.optimizer.zero_grad(set_to_none=True)  # an optimizer does not change weights without a gradient
        # transformers calls this right before it updates the weights, and `log` right after. A signal waits in between:
        # `log` calls `release`.
        signals.hold()
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" not in logs:  # the closing summary of transformers.Trainer
            return
        self._note_means()
        if not math.isfinite(logs["loss"]) or not math.isfinite(logs["grad_norm"]):
            logs["skipped"] = 1
            self._tr_loss.zero_()  # transformers resets it by subtracting it from itself: nan stays nan
        logs.update(self.timer.end())
        # Tokens per second of all processes together, from the mean length over all of them.
        lengths = self._metrics["train"].get("completion/mean_length")
        if self.GENERATES and lengths and logs.get("time/rollout"):
            tokens = sum(lengths) / len(lengths) * self.args.generation_batch_size
            logs["perf/completion_tokens_per_second"] = tokens / logs["time/rollout"]
        super().log(logs, start_time)
        self._random_state = rng_state.state()
        signals.release()

    def _note(self, name: str, value: Tensor | float) -> None:
        """Add a value to this step's metrics; its name begins with one of `metrics.GROUPS`, else it is not logged."""
        self._metrics["train"][name].append(float(value))

    def _integration_reward(self, texts: list[str], samples: Sequence[Sample]) -> list[float]:
        """R_int of this rollout's rows, [R]."""
        raise NotImplementedError

    def _note_means(self) -> None:
        """Add to this step's metrics the means over the tokens of its micro-batches."""
        raise NotImplementedError

    # --- what a checkpoint holds of a rollout whose updates are not finished ---

    def rollout_state(self) -> dict[str, Any]:
        """See `ResumableTrainer`."""
        # After a rollout's last update there is nothing to keep.
        if self._buffered_inputs is None or not self.state.global_step % self.num_iterations:
            return {}
        features = self.rollout.features
        return {"micro_batches": self._buffered_inputs, "prompts": self.rollout.ids, "features": features}

    def take_rollout(self, kept: dict[str, Any]) -> None:
        """See `ResumableTrainer`."""
        self._buffered_inputs = kept["micro_batches"]
        samples = [self._shown(self._samples[id]) for id in kept["prompts"]]
        index = torch.cat([batch["prompt_index"] for batch in self._buffered_inputs]).tolist()
        completions = [
            ids[mask.bool()].tolist()
            for batch in self._buffered_inputs
            for ids, mask in zip(batch["completion_ids"], batch["completion_mask"], strict=True)
        ]
        self.rollout = Rollout(
            samples, self._prefetcher.take(samples), kept["features"], prompt_index=index, completions=completions
        )

    def close(self) -> None:
        """End the threads that prepare prompts."""
        self._prefetcher.close()

    @contextmanager
    def apart(self):
        """Work done inside counts in no step's time, and the random state is restored afterwards."""
        before = rng_state.state()
        with self.timer.paused():
            yield
        rng_state.restore(before)
