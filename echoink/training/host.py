"""The base of `EchoInkTrainer`: TRL's and transformers' trainer with our order of prompts, timer and log.

The algorithm is in `trainer`. This module runs it inside `transformers.Trainer`: construction, the prompts that the
data loader reads, the work around an update, and the rollout that a checkpoint keeps.
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
    """pi_theta, from `loading.load_model`, as the reference is."""
    reference: PreTrainedModel | None
    """The frozen pi_ref; None where `args.beta` is 0 or with an adapter."""
    processor: PromptProcessor
    """Turns a sample into model inputs."""
    adapter: PeftConfig | None = None
    """Trained instead of the weights; the model with the adapter switched off is the reference."""
    engine: Engine | None = None
    """Generates the rollouts instead of our decoder."""
    correction: Correction = Correction.none
    """Corrects the loss for engine log-probabilities that differ from the model's."""


@dataclass(frozen=True)
class Scoring:
    """What a completion is rewarded for."""

    terms: Sequence[Reward]
    """Of the total reward; one of them is called `accuracy`."""
    integration: IntegrationReward | None = None
    """A reward, or a weighting of groups, that needs the model itself."""


def _never(**_) -> list[float]:
    raise AssertionError("TRL wants a reward function; ours are called by `EchoInkTrainer._compute_rewards`")


class TRLHost(ResumableTrainer):
    """TRL's GRPO trainer for prompts with a picture and a sound.

    Args:
        policy: what learns.
        samples: the training set; their ids are unique.
        scoring: the rewards.
        args: TRL's configuration, see `trl_config.arguments`.
        settings: the variant of GRPO; the shared prefix, modality dropout.
        curriculum: needs (field `need` of the samples) in the order in which an epoch goes through them.
        callbacks: transformers'.
        on_rollout: called with the rows of every rollout: `step`, `id`, `g`, `text`, `tokens`,
            `media`, rewards, `advantage`.
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
        # What the run gives us.
        model, reference, processor = policy.model, policy.reference, policy.processor
        self._prompt_processor, self._prefetcher = processor, Prefetcher(processor)
        self._upcoming: list[str] = []  # sample ids that the data loader has read since the last rollout
        self._samples = {sample.id: sample for sample in samples}
        self._on_rollout = on_rollout
        self.rollout: Rollout | None = None  # the one whose micro-batches are buffered
        self._rewards, self._integration, self._settings = list(scoring.terms), scoring.integration, settings
        if self._integration and self._integration.pays:
            self._rewards.append(Reward("integration", self._integration_reward, self._integration.weight))
        self._engine = policy.engine
        self._pushed: int | None = None  # the step whose weights the engine has
        self._correction, self._largest_ratio = policy.correction, args.vllm_importance_sampling_clip_max
        # Sums of the step's micro-batches, over all processes, see `EchoInkTrainer._compute_loss`.
        self._token_sums: list[list[float]] = []
        self._engine_notes: list[Tensor] = []
        self._random_state = rng_state.state()  # as of the end of the last whole step
        self._reference_sees_the_same = reference is None or same_towers(model.model, reference.model)
        # TRL cannot load a reference from a full Omni configuration. So the trainer is built without a KL term and
        # gets ours afterwards.
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
        # From here on TRL's own objects are there, and some are replaced by ours.
        self.args.beta = self.beta = args.beta
        self.remove_callback(PrinterCallback)
        self.data_collator = self._read  # of batches that the data loader reads one step ahead
        self.timer = StepTimer(self.accelerator.device)
        self._order = self._sampler([curriculum.index(s.fields["need"]) for s in samples] if curriculum else None)
        self._set_dtypes(policy, args.bf16)
        # With an adapter the model is its own reference, the adapter switched off.
        self.ref_model = self._prepared(reference) if self.beta and policy.adapter is None else None
        # A tower that no prompt of a step needs gets a gradient of zero, not none, in whatever way it is divided.
        for each in filter(None, (model, reference)):
            each.model.run_all_towers = True
        self._decoder: Decoder | None = None  # made for the first rollout; what it captures serves all of them

    def _set_dtypes(self, policy: Policy, bf16: bool) -> None:
        if policy.adapter is not None:
            unround_what_learns(self.model)
        # Weights that autocast would round at every use are rounded once if they are frozen and not saved.
        frozen = policy.reference if policy.adapter is None else self.model
        if bf16 and frozen is not None:
            round_frozen(frozen, torch.bfloat16)

    def _sampler(self, stages: Sequence[int] | None) -> GroupSampler:
        # TRL's sampler drops the last, partial block of prompts; ours fills it (561 or 562 steps of the paper).
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
        self._order.set_epoch(epoch)  # transformers forgets this if the data loader skips trained batches
        super()._run_epoch(*args, epoch=epoch, **kwargs)

    def _prepare_inputs(self, generation_batch: list[dict]) -> dict[str, Tensor]:
        # TRL's own, without the shuffle that scatters a group over micro-batches.
        # One rollout serves this many micro-batch passes; between rollouts the buffer gives the next micro-batch.
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
        """Let threads make the next rollout's prompts once this rollout is done: its decoding needs the GIL too."""
        now = set(self.rollout.ids)  # a rollout's rows are read again for each of its updates
        self._prefetcher.ask([self._samples[id] for id in self._upcoming if id not in now])
        self._upcoming.clear()

    def _shown(self, sample: Sample) -> Sample:
        """The sample as this step uses it; modality dropout may have removed a sense."""
        if not self._settings.modality_dropout or not has_both(sample):
            return sample
        number = self.state.global_step // self.num_iterations  # of the rollout, also in the middle of its updates
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
            # The step is skipped: no number of it reaches a weight or a moment.
            self.optimizer.zero_grad(set_to_none=True)  # an optimizer leaves weights without a gradient alone
        # transformers updates next. From here until `log` releases the hold, no signal may interrupt.
        signals.hold()
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" not in logs:  # the closing summary of transformers.Trainer
            return
        self._note_means()
        if not math.isfinite(logs["loss"]) or not math.isfinite(logs["grad_norm"]):
            logs["skipped"] = 1
            self._tr_loss.zero_()  # transformers subtracts it from itself: nan stays nan
        logs.update(self.timer.end())
        # Tokens a second of the whole run, from the mean length over all processes.
        lengths = self._metrics["train"].get("completion/mean_length")
        if self.GENERATES and lengths and logs.get("time/rollout"):
            tokens = sum(lengths) / len(lengths) * self.args.generation_batch_size
            logs["perf/completion_tokens_per_second"] = tokens / logs["time/rollout"]
        super().log(logs, start_time)
        self._random_state = rng_state.state()
        signals.release()

    def _note(self, name: str, value: Tensor | float) -> None:
        """Keep a number for the log of this step."""
        self._metrics["train"][name].append(float(value))

    def _integration_reward(self, texts: list[str], samples: Sequence[Sample]) -> list[float]:
        """R_int of the rows of this rollout."""
        raise NotImplementedError

    def _note_means(self) -> None:
        """Note what the step's micro-batches added up."""
        raise NotImplementedError

    # --- what a checkpoint keeps of a rollout whose updates are not over ---

    def rollout_state(self) -> dict[str, Any]:
        """Nothing where the next step makes a rollout of its own."""
        # At the end of a rollout's last update there is nothing to keep.
        if self._buffered_inputs is None or not self.state.global_step % self.num_iterations:
            return {}
        features = self.rollout.features
        return {"micro_batches": self._buffered_inputs, "prompts": self.rollout.ids, "features": features}

    def take_rollout(self, kept: dict[str, Any]) -> None:
        """Go on in the middle of it."""
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
        """End the threads that look ahead."""
        self._prefetcher.close()

    @contextmanager
    def apart(self):
        """Run work between steps that changes neither the step's time nor its random state."""
        before = rng_state.state()
        with self.timer.paused():
            yield
        rng_state.restore(before)
