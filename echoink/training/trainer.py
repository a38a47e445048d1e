"""GRPO on questions about pictures and sounds: a thin subclass of TRL 1.16's `GRPOTrainer`.

The paper's algorithm (Section 3.2) and where each line happens:

    for each step
        draw prompts q                                     GroupSampler: seeded by (seed, epoch), whole groups
        sample o_1 … o_G from pi_theta(· | q)              _generate_single_turn → rollout.generate
        r_i = lambda_acc R_acc(o_i) + lambda_fmt R_fmt(o_i)     rewards.py, weighted by TRL (_calculate_rewards)
        A_i = (r_i - mean r) / (std r + 1e-4)              TRL (_generate_and_score_completions), Eq. 1
        log pi_theta(o_it), log pi_ref(o_it)               _get_per_token_logps_and_entropies → shared_prefix
        KL_it = exp(d) - d - 1,  d = log pi_ref - log pi_theta  TRL (_compute_loss)
        L = -1/G Σ_i 1/|o_i| Σ_t [min(rho A_i, clip(rho) A_i) - beta KL_it]     TRL (_compute_loss), Eq. 2
        update theta                                       transformers.Trainer

TRL knows pictures but no sound, processes, encodes, prefills and back-propagates every prompt G times and scatters a
group over micro-batches. What is overridden here mends that: each prompt is processed once, encoded once where the
towers are frozen (`encoding`), prefilled once (`rollout`) and computed once in the loss (`shared_prefix`); a group
stays whole; picture and sound reach the rollout and the loss alike. At beta = 0 groups whose rewards are all equal are
left out of the loss, which does not change it; the entropy is then that of the other groups. (A micro-batch of such
groups alone still computes one prompt with one token, for a gradient of zero.)

Departures from the paper's public code: M-RoPE positions in the loss, d is not clamped to ±10.

Shapes: B prompts, G group, R = B·G rows, P prompt tokens, C completion tokens.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from peft import PeftConfig
from torch import Tensor
from torch.utils.data import Sampler
from transformers import PrinterCallback, Qwen2_5OmniThinkerForConditionalGeneration
from trl import GRPOConfig
from trl.models import prepare_deepspeed
from trl.trainer.utils import add_fused_lm_head, split_tensor_dict

from echoink.common import signals
from echoink.config.schema import Advantage, Correction
from echoink.data.ablations import SENSES, has_both, without
from echoink.data.prefetch import Ahead
from echoink.data.processor import PromptInputs, PromptProcessor
from echoink.data.sampler import GroupSampler
from echoink.data.samples import Sample
from echoink.distributed import collectives, sharding, watchdog
from echoink.evaluation import reflection
from echoink.models import logprobs
from echoink.models.encoders import Features, encode_media, same_towers, towers_learn
from echoink.models.logprobs import score, without_silent_groups
from echoink.rewards.accuracy import accuracy_reward
from echoink.rewards.format import format_reward
from echoink.rewards.types import Match, Rule
from echoink.rollout.generate import generate
from echoink.rollout.sampling import Sampling, seed_of, uniforms
from echoink.rollout.vllm_engine import Engine
from echoink.training import importance_sampling, rng_state
from echoink.training.integration_reward import Fusion
from echoink.training.resumable_trainer import Resumable


class EchoInkTrainer(Resumable):
    """TRL's GRPO for prompts with a picture and a sound.

    Args:
        model: the policy, from `models.load_model` as the reference is.
        reference: the frozen pi_ref; None where `args.beta` is 0 or with an adapter.
        processor: turns a sample into model inputs.
        samples: the training set; their ids are unique.
        match: how an answer is read.
        reward_weights: lambda_acc, lambda_fmt.
        args: TRL's configuration.
        shared_prefix: compute each group's prompt once in the loss; False computes plain rows, as TRL does.
        adapter: a PEFT adapter to train in the place of the weights; without it switched on the model is the reference.
        advantage: see `Advantage`.
        own_reward: a user's reward of a completion and its sample, weighted by `own_weight`.
        rule: of integration, weighted by `rule_weight`; `scale` is its s. See `integration`.
        modality_dropout: probability that a prompt with both senses loses one of them in a rollout.
        curriculum: needs (field `need` of the samples) in the order in which an epoch goes through them.
        engine: generates the rollouts in the place of our decoder, see `engine`.
        corrects: the loss for what the engine's log-probabilities differ from the model's.
        on_rollout: called with the rows of every rollout: `step`, `id`, `g`, `text`, `tokens`, rewards, `advantage`.
    """

    def __init__(
        self,
        model: Qwen2_5OmniThinkerForConditionalGeneration,
        reference: Qwen2_5OmniThinkerForConditionalGeneration | None,
        processor: PromptProcessor,
        samples: Sequence[Sample],
        match: Match,
        reward_weights: tuple[float, float],
        args: GRPOConfig,
        callbacks: list | None = None,
        on_rollout: Callable[[list[dict]], None] | None = None,
        shared_prefix: bool = True,
        adapter: PeftConfig | None = None,
        own_reward: Callable[[str, Sample], float] | None = None,
        own_weight: float = 1.0,
        advantage: Advantage = Advantage.group,
        rule: Rule = Rule.counterfactual,
        rule_weight: float = 0.0,
        scale: float = 0.1,
        modality_dropout: float = 0.0,
        curriculum: Sequence[str] = (),
        engine: Engine | None = None,
        corrects: Correction = Correction.none,
    ):
        self._prompt_processor, self._ahead = processor, Ahead(processor)
        self._upcoming: list[str] = []  # what the data loader has read since the last rollout
        self._samples = {sample.id: sample for sample in samples}
        self._on_rollout = on_rollout
        self._prompts: list[PromptInputs] = []  # the unique prompts of the buffered rollout, and their ids
        self._prompt_ids: list[str] = []
        self._asked: list[Sample] = []  # as they were asked: with modality dropout perhaps without a sense
        self._lengths: list[int] = []  # tokens of its completions
        self._owner: list[int] = []  # for each active row the index of its prompt
        self._features: list[Features] | None = None  # of the unique prompts, where the towers are frozen
        self._scored: Tensor | None = None  # [R, C], the tokens that the loss computes, where it does not need all
        self._counted: Tensor | None = None  # [R, C], those of groups with a signal
        self._token_counts: list[list[int]] = []  # of each micro-batch of the step, over all processes: all, counted
        self._shared_prefix = shared_prefix
        self._rule_weight = rule_weight
        self._dropout = modality_dropout
        self._stages = [curriculum.index(sample.fields["need"]) for sample in samples] if curriculum else None
        self._engine = engine
        self._pushed: int | None = None  # the step whose weights the engine has
        self._correction, self._most = corrects, args.vllm_importance_sampling_clip_max
        self._weighed: dict[str, Tensor] | None = None  # inputs of the loss that wait for its log-probabilities
        self._compared: list[Tensor] = []  # of each micro-batch of the step, with the engine's
        self._rejects = advantage is Advantage.rejection
        self._seconds: dict[str, float] = defaultdict(float)
        self._step_started: float | None = None
        self._random_state = rng_state.state()  # as of the end of the last whole step
        self._skipped = False
        self._order: GroupSampler | None = None

        def accuracy(prompts: list[str], completions: list[str], **_) -> list[float]:
            asked = (self._samples[prompt] for prompt in prompts)
            pairs = zip(completions, asked, strict=True)
            return [accuracy_reward(text, s.problem_type, s.options, s.solution, match) for text, s in pairs]

        def format(completions: list[str], **_) -> list[float]:
            return [format_reward(text, processor.prompt.thinks) for text in completions]

        def custom(prompts: list[str], completions: list[str], **_) -> list[float]:
            return [own_reward(text, self._samples[id]) for id, text in zip(prompts, completions, strict=True)]

        def integration(prompts: list[str], completions: list[str], completion_ids: list[list[int]], **_):
            right = torch.tensor(accuracy(prompts, completions), device=self.accelerator.device)
            with self._timed("time/integration"), self.whole() as thinker, self.accelerator.autocast():
                return self._fusion.reward(thinker, right, completion_ids, self._owner).tolist()

        self._accuracy = accuracy
        self._fusion = None
        if rule_weight:
            self._fusion = Fusion(rule, scale, processor, accuracy, args.per_device_train_batch_size)
        pays = self._fusion is not None and self._fusion.pays
        self._reference_sees_the_same = reference is None or same_towers(model.model, reference.model)
        # TRL would load its own reference and cannot, from a full Omni configuration: it gets ours after its __init__.
        beta, args.beta = args.beta, 0.0
        args.reward_weights = [*reward_weights, *([own_weight] if own_reward else []), *([rule_weight] if pays else [])]
        super().__init__(
            model=model,
            reward_funcs=[accuracy, format, *([custom] if own_reward else []), *([integration] if pays else [])],
            args=args,
            train_dataset=Dataset.from_dict({"prompt": list(self._samples)}),
            processing_class=processor.processor,
            callbacks=callbacks,
            peft_config=adapter,
        )
        self.remove_callback(PrinterCallback)
        self.data_collator = self._read  # of batches that the data loader reads one step ahead
        # Now TRL does what follows such a rollout, and starts no engine of its own. With one update it is spared a pass
        # over the rollout, see `correction`.
        self.use_vllm = engine is not None
        self._weighs_late = self.use_vllm and args.num_iterations == 1
        self.vllm_importance_sampling_correction = self.use_vllm and not self._weighs_late
        args.beta = self.beta = beta
        # With an adapter TRL switches it off for the reference.
        self.ref_model = self._prepared(reference) if beta and adapter is None else None
        # A tower that no prompt of a step needs gets a gradient of zero, not none, in whatever way it is divided.
        for thinker in filter(None, (model, reference)):
            thinker.model.alike = True

    def _prepared(self, reference: Qwen2_5OmniThinkerForConditionalGeneration) -> torch.nn.Module:
        add_fused_lm_head(reference, temperature=self.temperature)
        if sharding.is_divided(reference):
            return reference
        if self.is_deepspeed_enabled:
            return prepare_deepspeed(reference, self.accelerator)
        return self.accelerator.prepare_model(reference, evaluation_mode=True)

    # --- prompts ---

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler[int]:
        self._order = GroupSampler(
            prompts=len(self.train_dataset if dataset is None else dataset),
            group_size=self.num_generations,
            block=self.args.generation_batch_size // self.num_generations,
            repeats=self.num_iterations * self.args.steps_per_generation,
            seed=self.args.seed,
            stages=self._stages,
        )
        return self._order

    def _run_epoch(self, *args, epoch: int, **kwargs) -> None:
        self._order.set_epoch(epoch)  # of a data loader that skips what was trained before, transformers forgets to
        super()._run_epoch(*args, epoch=epoch, **kwargs)

    def _prepare_inputs(self, generation_batch: list[dict]) -> dict[str, Tensor]:
        # TRL's own, without the shuffle that scatters a group over micro-batches.
        rollouts_every = self.args.steps_per_generation * self.num_iterations
        if self._step % rollouts_every == 0 or self._buffered_inputs is None:
            scored = self._generate_and_score_completions(generation_batch)
            self._buffered_inputs = split_tensor_dict(scored, self.args.steps_per_generation)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _read(self, rows: list[dict]) -> list[dict]:
        self._upcoming += [row["prompt"] for row in rows]
        return rows

    def _look_ahead(self) -> None:
        """Let threads make the next rollout's prompts; not before this one is done, whose decoding needs Python too."""
        now = set(self._prompt_ids)  # a rollout's rows are read again for each of its updates
        self._ahead.ask([self._samples[id] for id in self._upcoming if id not in now])
        self._upcoming.clear()

    def _tokenize_prompts(self, prompts: list[str]):
        # A prompt travels through TRL as its sample's id; here it becomes tokens and media, once per unique prompt.
        self._prompt_ids = list(dict.fromkeys(prompts))
        watchdog.at(f"step {self.state.global_step + 1}, rollout of {', '.join(self._prompt_ids)}")
        with self._timed("time/media"):
            self._asked = [self._shown(self._samples[id]) for id in self._prompt_ids]
            self._prompts = self._ahead.take(self._asked)
        self._owner = [self._prompt_ids.index(prompt) for prompt in prompts]
        return [self._prompts[index].input_ids.tolist() for index in self._owner], None, {}

    def _shown(self, sample: Sample) -> Sample:
        """The sample as this step asks it: with modality dropout perhaps without a sense."""
        if not self._dropout or not has_both(sample):
            return sample
        number = self.state.global_step // self.num_iterations  # of the rollout, also in the middle of its updates
        coin = uniforms(self.args.seed, number, f"dropout {sample.id}", 1, 2).flatten().tolist()
        return without(sample, SENSES[int(2 * coin[1])]) if coin[0] < self._dropout else sample

    # --- rollout, rewards, advantages ---

    def _generate_single_turn(
        self, prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        group, sampling = num_generations, self._sampling()
        unique = range(len(self._prompts))
        assert self._owner == [index for index in unique for _ in range(group)], "a group was split"
        seed, step, length = self.args.seed, self.state.global_step, sampling.max_new_tokens
        noise = torch.stack([uniforms(seed, step, id, group, length) for id in self._prompt_ids])
        with self._timed("time/rollout"), self.whole() as model, self.accelerator.autocast():
            features = logps = None
            if self._engine is None or self._fusion or not towers_learn(model.model):
                with torch.no_grad():
                    features = encode_media(model.model, self._prompts)
            if self._engine:
                completions, logps = self._generate_by_engine(model, group)
            else:
                completions = generate(
                    model,
                    self._prompts,
                    noise,
                    [sampling.temperature] * group,
                    sampling,
                    self.eos_token_ids,
                    self._tokenizer.pad_token_id,
                    features,
                )
            if self._fusion:
                with self._timed("time/integration"):
                    self._fusion.take(self._asked, self._prompts, features)
                    self._fusion.answer_again(
                        model, self._prompt_ids, noise, sampling, self.eos_token_ids, self._tokenizer.pad_token_id
                    )
            # Towers that do not learn see the same in the loss; those that do encode again there, with gradients.
            self._features = None if towers_learn(model.model) else features
        self._lengths = [len(completion) for completion in completions]
        self._look_ahead()
        return completions, logps

    def _generate_by_engine(self, model, group: int) -> tuple[list[list[int]], list[list[float]]]:
        step = self.state.global_step
        if self._pushed != step:
            with self._timed("time/push"):
                self._engine.push(model)
            self._pushed = step
        seeds = [seed_of(self.args.seed, step, id) for id in self._prompt_ids]
        return self._engine.generate(self._prompts, seeds, group)

    def _sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_p, self.top_k, self.max_completion_length)

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list) -> Tensor:
        with self._timed("time/reward"):
            return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)

    def _generate_and_score_completions(self, inputs: list[dict]) -> dict[str, Tensor]:
        scored = super()._generate_and_score_completions(inputs)
        if "importance_sampling_ratio" in scored and self._correction is Correction.none:
            scored["importance_sampling_ratio"].fill_(1)
            for kind in ("min", "mean", "max"):
                self._metrics["train"][f"{importance_sampling.NAMES['ratio']}/{kind}"][-1] = 1.0
        # The rows are split into micro-batches; each keeps the index of its prompt, whose media stay in _prompts.
        scored["prompt_index"] = torch.tensor(self._owner, device=self.accelerator.device)
        if self._fusion:
            if not self._fusion.pays:  # it weighs the groups instead
                own = [self._prompt_ids[index] for index in self._owner]
                texts = self._tokenizer.batch_decode(scored["completion_ids"], skip_special_tokens=True)
                right = torch.tensor(self._accuracy(own, texts), device=self.accelerator.device)
                weights = 1 + self._rule_weight * self._fusion.weights(right, self.num_generations)
                scored["advantages"] *= weights
                self._log_advantages(self.accelerator.gather(scored["advantages"]).tolist())
            notes = gather_object([self._fusion.notes])  # a process without such prompts has none
            for name in sorted({name for found in notes for name in found}):
                means = [found[name] for found in notes if name in found]
                mean = sum(value * count for value, count in means) / sum(count for _, count in means)
                self._metrics["train"][name].append(mean)
        if self._rejects:
            right = [float(reward == 1) for reward in self._logs["rewards"]["accuracy"]]
            self._log_advantages(right)
            own = slice(
                self.accelerator.process_index * len(inputs), (self.accelerator.process_index + 1) * len(inputs)
            )
            scored["advantages"] = torch.tensor(right, device=self.accelerator.device)[own]
        for name, rate in reflection.rates(list(self._logs["completion"])).items():
            self._metrics["train"][f"reflection/{name}"].append(rate)
        if self._on_rollout is not None:
            rows = self._rollout_rows()
            if self.accelerator.is_main_process:
                self._on_rollout(rows)
        return scored

    def _log_advantages(self, used: list[float]) -> None:
        """Put the advantages that are used in the place of those that TRL logged."""
        self._logs["advantages"].clear()
        self._logs["advantages"].extend(used)

    def _rollout_rows(self) -> list[dict]:
        names, log = self.reward_func_names, self._logs
        ids, texts, advantages = list(log["prompt"]), list(log["completion"]), list(log["advantages"])
        rewards = {name: list(log["rewards"][name]) for name in names}
        tokens = gather_object(self._lengths)
        return [
            {
                "step": self.state.global_step + 1,
                "id": ids[row],
                "g": row % self.num_generations,
                "text": texts[row],
                "tokens": tokens[row],
                **{name: rewards[name][row] for name in names},
                "advantage": advantages[row],
            }
            for row in range(len(ids))
        ]

    # --- loss ---

    def _compute_loss(self, model, inputs: dict[str, Tensor]) -> Tensor:
        self._owner = inputs["prompt_index"].tolist()
        ids = dict.fromkeys(self._prompt_ids[index] for index in self._owner)
        watchdog.at(f"step {self.state.global_step + 1}, update on {', '.join(ids)}")
        mask = counted = inputs["completion_mask"].bool()
        if self._shared_prefix and self.beta == 0:
            # Without a KL term a group whose rewards are all equal adds nothing to the loss, and is left out of it.
            grouped = inputs["advantages"].view(-1, self.num_generations)
            silent = grouped.amax(1) == grouped.amin(1)
            if self._rejects:  # there all right is not silent
                silent &= grouped.amax(1) == 0
            silent = silent.repeat_interleave(self.num_generations)
            inputs = {**inputs, "advantages": inputs["advantages"].masked_fill(silent, 0)}
            if (old := inputs.get("old_per_token_logps")) is not None:  # a ratio of 1 where nothing is computed
                inputs["old_per_token_logps"] = old.masked_fill(silent.unsqueeze(1), 0)
            counted = self._counted = mask & ~silent.unsqueeze(1)
            self._scored = without_silent_groups(self._prompts, self._owner, mask, silent)
        if self._weighs_late:
            self._weighed = inputs = dict(inputs)
            self.vllm_importance_sampling_correction = True
        try:
            loss = super()._compute_loss(model, inputs)
        finally:
            self._scored = self._counted = self._weighed = None
            self.vllm_importance_sampling_correction = self.use_vllm and not self._weighs_late
        tokens = torch.stack([mask.sum(), counted.sum()])
        self._token_counts.append(self.accelerator.reduce(tokens, reduction="sum").tolist())
        return loss

    def _get_per_token_logps_and_entropies(
        self,
        model,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **_,
    ) -> tuple[Tensor, Tensor | None, None]:
        """Log-probabilities and entropies [R, C] of the completions, with their prompts and media.

        Args:
            model: policy or reference, wrapped.
            input_ids: [R, P + C], prompts padded on the left, completions on the right.
            attention_mask: [R, P + C].
            logits_to_keep: C.
            batch_size: rows per forward, whole groups; all where None.
        """
        timed = self._timed("time/logprob") if not torch.is_grad_enabled() else self._timed("time/update")
        scored = attention_mask[:, -logits_to_keep:].bool() if self._scored is None else self._scored
        rows = len(input_ids)
        logps, entropies = [], []
        with timed, self.accelerator.autocast():
            for start in range(0, rows, batch_size or rows):
                part = slice(start, start + (batch_size or rows))
                owner = self._owner[part]
                if self._shared_prefix:
                    features = self._features if model is not self.ref_model or self._reference_sees_the_same else None
                    completions = input_ids[part, -logits_to_keep:]
                    found = score(model, self._prompts, features, owner, completions, scored[part])
                else:
                    found = logprobs.score_plain_rows(
                        model, self._prompts, owner, input_ids[part], attention_mask[part], logits_to_keep
                    )
                logps.append(found[0])
                entropies.append(found[1] if self._counted is None else found[1] * self._counted[part])
        logps = torch.cat(logps)
        if self._weighed is not None:
            self._weigh(logps.detach())
        return logps, torch.cat(entropies) if compute_entropy else None, None

    def _weigh(self, logps: Tensor) -> None:
        """Put the correction for an engine's rollout into the inputs of the loss that is being computed."""
        told = self._weighed["sampling_per_token_logps"]
        mask = self._weighed["completion_mask"].bool() if self._counted is None else self._counted
        weights = importance_sampling.ratio(logps, told, mask, self._correction, self._most)
        self._weighed["importance_sampling_ratio"] = weights
        noted = importance_sampling.notes(logps, told, mask, weights)
        self._compared.append(self.accelerator.gather(noted).view(-1, len(noted)))

    def _get_grad_norm(self, model, grad_norm=None):
        # transformers asks just before it updates: from here to the end of the step nothing may interrupt.
        signals.hold()
        norm = super()._get_grad_norm(model, grad_norm)
        sound = torch.isfinite(torch.as_tensor([float(norm), float(self._tr_loss)])).all()
        finite = self.accelerator.reduce(sound.float().to(self.accelerator.device), reduction="mean") == 1
        self._skipped = not bool(finite)
        if self._skipped:  # an optimizer leaves weights without a gradient alone
            self.optimizer.zero_grad(set_to_none=True)
        return norm

    # --- metrics ---

    def training_step(self, model, inputs, num_items_in_batch=None) -> Tensor:
        collectives.heed()
        before = sum(self._seconds.values())
        started = time.perf_counter()
        self._step_started = self._step_started or started
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._look_ahead()
        inside = sum(self._seconds.values()) - before
        self._seconds["time/update"] += time.perf_counter() - started - inside
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" not in logs:  # the closing summary of transformers.Trainer
            return
        tokens = self._metrics["train"]["completions/mean_length"]
        tokens = sum(tokens) / len(tokens) * self.args.generation_batch_size if tokens else 0.0
        now = time.perf_counter()
        self._average_over_tokens()
        if self._compared:
            for name, value in importance_sampling.metrics(torch.cat(self._compared)).items():
                self._metrics["train"][name].append(value)
            self._compared.clear()
        if self._skipped:
            logs["skipped"] = 1
            self._tr_loss.zero_()  # of which transformers subtracts itself: nan stays nan
        logs.update(self._seconds)
        logs["time/step"], self._step_started = now - self._step_started, now
        if self._seconds["time/rollout"]:
            logs["perf/completion_tokens_per_second"] = tokens / self._seconds["time/rollout"]
        self._seconds.clear()
        super().log(logs, start_time)
        self._random_state = rng_state.state()
        signals.release()

    def _average_over_tokens(self) -> None:
        # TRL averages over each micro-batch's tokens, then over micro-batches; over the step's tokens the mean does not
        # depend on the split. Of groups that were left out there is no entropy.
        for name, column in (("kl", 0), ("entropy", 1)):
            if means := self._metrics["train"].pop(name, None):
                total = sum(mean * tokens[0] for mean, tokens in zip(means, self._token_counts, strict=True))
                if count := sum(tokens[column] for tokens in self._token_counts):
                    self._metrics["train"][name] = [total / count]
        self._token_counts.clear()

    # --- what a checkpoint keeps of a rollout whose updates are not over ---

    def rollout_state(self) -> dict[str, Any]:
        """Nothing where the next step makes a rollout of its own."""
        if self._buffered_inputs is None or not self.state.global_step % self.num_iterations:
            return {}
        return {"micro_batches": self._buffered_inputs, "prompts": self._prompt_ids, "features": self._features}

    def take_rollout(self, kept: dict[str, Any]) -> None:
        """Go on in the middle of it."""
        self._buffered_inputs, self._prompt_ids, self._features = (
            kept[name] for name in ("micro_batches", "prompts", "features")
        )
        self._asked = [self._shown(self._samples[id]) for id in self._prompt_ids]
        self._prompts = self._ahead.take(self._asked)

    def close(self) -> None:
        """End the threads that look ahead."""
        self._ahead.close()

    @contextmanager
    def apart(self):
        """What happens here beside a step counts neither into its time nor into its random state."""
        started, random_before = time.perf_counter(), rng_state.state()
        yield
        rng_state.restore(random_before)
        if self._step_started is not None:
            self._step_started += time.perf_counter() - started

    @contextmanager
    def _timed(self, name: str):
        """What is timed within counts for itself."""
        started, before = time.perf_counter(), sum(self._seconds.values())
        try:
            yield
        finally:
            inside = sum(self._seconds.values()) - before
            self._seconds[name] += time.perf_counter() - started - inside
