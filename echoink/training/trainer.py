"""GRPO on questions about pictures and sounds: a thin subclass of TRL 1.16's `GRPOTrainer`.

The paper's algorithm (Section 3.2) and where each line happens:

    for each step
        draw prompts q                                     GroupSampler: seeded by (seed, epoch), whole groups
        sample o_1 … o_G from pi_theta(· | q)              _sample_completions → rollout.generate
        R_k(o_i)                                           _compute_rewards → echoink/rewards, Eq. 3 and 4
        r_i = Σ_k λ_k R_k(o_i)                             grpo.total_reward, Eq. 5
        A_i = (r_i - mean r) / (std r + 1e-4)              _advantages → grpo.advantages, Eq. 1
        log pi_theta(o_it), log pi_ref(o_it)               _log_probabilities → models.logprobs
        L = -1/G Σ_i 1/|o_i| Σ_t [min(rho A_i, clip(rho) A_i) - beta KL_it]     _compute_loss → grpo.objective, Eq. 2
        update theta                                       transformers.Trainer

TRL supports pictures but no sound. It processes, encodes, prefills and back-propagates every prompt G times, and
scatters a group over micro-batches. The overrides here fix this: each prompt is processed once, encoded once if the
towers are frozen (`encoders`), prefilled once (`rollout`) and computed once in the loss (`shared_prefix`); a group
stays whole; picture and sound reach both rollout and loss.

A group is silent if its advantages are all 0 (`grpo.silent_rows`). At beta = 0 it adds nothing to the loss, and with
`grpo.shared_prefix` it is not computed (but see `logprobs.without_silent_groups`). `grpo/entropy` is the mean over the
groups that are not silent, also where all are computed.

Unlike the paper's public code, the loss gives the tokens their M-RoPE positions, as the rollout does.

Shapes: B prompts, G group, R = B·G rows, P prompt tokens, C completion tokens.
"""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext

import torch
from accelerate.utils import gather_object
from torch import Tensor
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import pad

from echoink.config.schema import Advantage, Loss, Scale
from echoink.data.samples import Sample
from echoink.distributed import collectives, watchdog
from echoink.evaluation import reflection
from echoink.models.encoders import encode_media, towers_learn
from echoink.models.logprobs import (
    has_dropout,
    packed_logprobs,
    plain_row_logprobs,
    without_dropout,
    without_silent_groups,
)
from echoink.rewards.types import ANSWERS_AGAIN
from echoink.rollout import parity
from echoink.rollout.generate import decoder_for, generate
from echoink.rollout.sampling import Sampling, seed_of, uniforms
from echoink.rollout.types import Rollout
from echoink.training import engine_metrics, grpo
from echoink.training.host import TRLHost


class EchoInkTrainer(TRLHost):
    """GRPO for prompts with a picture and a sound: a rollout, its rewards and advantages, the loss.

    The arguments are those of `TRLHost`, which runs this class inside `transformers.Trainer`.
    """

    # --- rollout, rewards, advantages, log-probabilities: in the order of the paper ---

    def _generate_and_score_completions(self, inputs: list[dict]) -> dict[str, Tensor]:
        # TRL requires a column called "prompt"; ours holds sample ids.
        self.rollout = rollout = self._sample_completions([row["prompt"] for row in inputs])
        texts = self.processing_class.batch_decode(rollout.completions, skip_special_tokens=True)
        with self.timer.section("time/reward"):
            rewards = self._compute_rewards(rollout, texts)
        weights = torch.tensor([reward.weight for reward in self._rewards], device=rewards.device)
        total = grpo.total_reward(rewards, weights)
        advantages = self._advantages(rewards, total, len(texts))
        batch = self._as_tensors(rollout) | {"advantages": advantages}
        with torch.no_grad(), disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            # log π_old is needed only if the rollout has several updates. With one update π_old is π_θ itself, and
            # `_compute_loss` uses its own log-probabilities for ρ and for the correction of an engine's rollout; but an
            # engine has no dropout, so with dropout its correction needs a pass without.
            by_engine = rollout.engine_logps is not None
            if self.num_iterations > 1 or (by_engine and has_dropout(self.model)):
                with without_dropout(self.model):  # as in the rollout
                    old = self._log_probabilities(self.model, batch)[0]
                if self.num_iterations > 1:
                    batch["old_per_token_logps"] = old
                if by_engine:
                    mask = batch["completion_mask"].bool()
                    batch["importance_sampling_ratio"] = self._engine_ratio(old, batch, mask)
            if self.beta:
                batch["ref_per_token_logps"] = self._reference_log_probabilities(batch)
        self._log_rollout(rollout, rewards, total, texts=texts, advantages=advantages)
        return batch

    def _sample_completions(self, row_ids: list[str]) -> Rollout:
        """Process, encode and prefill each prompt once; sample its G completions with our decoder or an engine."""
        # One row per completion: each id occurs G times in sequence.
        ids, group = list(dict.fromkeys(row_ids)), self.num_generations
        watchdog.at(f"step {self.state.global_step + 1}, rollout of {', '.join(ids)}")
        prompt_index = [ids.index(id) for id in row_ids]
        assert prompt_index == [index for index in range(len(ids)) for _ in range(group)], "a group was split"
        with self.timer.section("time/media"):
            samples = [self._shown(self._samples[id]) for id in ids]
            prompts = self._prefetcher.take(samples)
        sampling = Sampling(
            self.temperature,
            self.top_p,
            self.top_k,
            max_new_tokens=self.max_completion_length,
            end_ids=tuple(self.eos_token_ids),
        )
        seed, step = self.args.seed, self.state.global_step
        noise = torch.stack([uniforms(seed, step, id, group_size=group, length=sampling.max_new_tokens) for id in ids])
        with self.timer.section("time/rollout"), self.unsharded() as model, self.accelerator.autocast():
            # Media are encoded here if our decoder or the integration reward needs them, or if the loss can reuse them.
            features = engine_logps = None
            if self._engine is None or (self._integration and self._integration.rule in ANSWERS_AGAIN):
                self._decoder = self._decoder or decoder_for(model)
            if self._engine is None or self._integration or not towers_learn(model.model):
                with torch.no_grad():
                    features = encode_media(model.model, prompts)
            if self._engine:
                # Until this push the engine has the weights of the last rollout.
                if self._pushed != step:
                    with self.timer.section("time/push"):
                        self._engine.push(model)
                    if self._pushed is None:  # once in a run; if the comparison fails in one process, all end
                        collectives.each(lambda: parity.compare_prompt(model, self._engine, prompts, ids))
                    self._pushed = step
                completions, engine_logps = self._engine.generate(
                    prompts, [seed_of(seed, step, id) for id in ids], group
                )
            else:
                temperatures = [sampling.temperature] * group
                completions = generate(
                    model,
                    prompts,
                    noise,
                    temperatures=temperatures,
                    sampling=sampling,
                    features=features,
                    decoder=self._decoder,
                )
            if self._integration:
                with self.timer.section("time/integration"):
                    self._integration.take(samples, prompts, features)
                    self._integration.answer_again(model, noise, sampling, self._decoder)
            # The loss reuses the features of frozen towers; towers that learn encode again in the loss, with gradients.
            features = None if towers_learn(model.model) else features
        return Rollout(
            samples, prompts, features, prompt_index=prompt_index, completions=completions, engine_logps=engine_logps
        )

    def _compute_rewards(self, rollout: Rollout, texts: list[str]) -> Tensor:
        """R_k(o_i) of the rows of all processes, [R, K]."""
        samples = [rollout.samples[index] for index in rollout.prompt_index]
        columns = [reward.function(texts, samples) for reward in self._rewards]
        return self.accelerator.gather(torch.tensor(columns, dtype=torch.float32, device=self.accelerator.device).T)

    def _integration_reward(self, texts: list[str], samples: Sequence[Sample]) -> list[float]:
        """R_int of this rollout's rows, [R]. It depends on the model too, not on the texts alone."""
        with self.timer.section("time/integration"), self.unsharded() as model, self.accelerator.autocast():
            return self._integration.reward(model, self.rollout, texts, samples).tolist()

    def _advantages(self, rewards: Tensor, total: Tensor, rows: int) -> Tensor:
        """A_i of this process's rows, [R], from the rewards of all processes; the mean rewards become metrics."""
        group, scale = self.num_generations, self._settings.scale
        names = [reward.name for reward in self._rewards]
        no_spread = grpo.standard_deviation(total, group, Scale.group) == 0  # whatever `grpo.scale` is
        for name, column in zip(names, rewards.T, strict=True):
            self._note(f"reward/{name}", column.mean())
        self._note("reward/total", total.mean())
        self._note("grpo/zero_std_ratio", no_spread.float().mean())
        own = slice(self.accelerator.process_index * rows, (self.accelerator.process_index + 1) * rows)
        accuracy = rewards[own, names.index("accuracy")]
        if self._settings.advantage is Advantage.rejection:
            return grpo.rejection(accuracy)
        advantages = grpo.advantages(total, group, scale)[own]
        if self._integration and not self._integration.pays:  # the rule weighs groups instead of rewarding rows
            advantages = advantages * (1 + self._integration.weight * self._integration.needs_both(accuracy, group))
        return advantages

    def _as_tensors(self, rollout: Rollout) -> dict[str, Tensor]:
        """The rows as tensors under TRL's names; a checkpoint in the middle of a rollout holds them."""
        device, pad_id = self.accelerator.device, self._tokenizer.pad_token_id

        def padded(rows: Iterable[Sequence], value: float, side: str = "right") -> Tensor:
            return pad([torch.as_tensor(row) for row in rows], padding_value=value, padding_side=side).to(device)

        # Prompts are padded on the left and completions on the right, so a completion directly follows its prompt.
        prompts = [rollout.prompts[index].input_ids for index in rollout.prompt_index]
        batch = {
            "prompt_ids": padded(prompts, pad_id, "left"),
            "prompt_mask": padded([[1] * len(ids) for ids in prompts], 0, "left"),
            "completion_ids": padded(rollout.completions, pad_id),
            "completion_mask": padded([[1] * length for length in rollout.lengths], 0),
            "prompt_index": torch.tensor(rollout.prompt_index, device=device),
        }
        batch["num_items_in_batch"] = self.accelerator.gather(batch["completion_mask"].sum()).sum()
        if rollout.engine_logps is not None:
            batch["sampling_per_token_logps"] = padded(rollout.engine_logps, 0.0)
        return batch

    def _reference_log_probabilities(self, batch: dict[str, Tensor]) -> Tensor:
        """log π_ref [R, C]."""
        if self.ref_model is not None:
            return self._log_probabilities(self.ref_model, batch)[0]
        with self.accelerator.unwrap_model(self.model).disable_adapter():
            return self._log_probabilities(self.model, batch)[0]

    def _log_rollout(
        self, rollout: Rollout, rewards: Tensor, total: Tensor, *, texts: list[str], advantages: Tensor
    ) -> None:
        """Note the rollout's metrics; in the first process, pass the rows of all processes to `on_rollout`."""
        device = self.accelerator.device
        ends = [*self.eos_token_ids, self._tokenizer.pad_token_id]
        lengths = self.accelerator.gather(torch.tensor(rollout.lengths, device=device))
        cut = self.accelerator.gather(torch.tensor([o[-1] not in ends for o in rollout.completions], device=device))
        self._note("completion/mean_length", lengths.float().mean())
        self._note("completion/clipped_ratio", cut.float().mean())
        if self._integration:
            notes = gather_object([self._integration.notes])  # a process without prompts for the rule has none
            for name in sorted({name for found in notes for name in found}):
                means = [found[name] for found in notes if name in found]
                self._note(name, sum(value * count for value, count in means) / sum(count for _, count in means))
        # `rewards` has the rows of all processes; those of this one begin at `first`.
        first = self.accelerator.process_index * len(texts)
        rows = [
            {
                "step": self.state.global_step + 1,
                "id": sample.id,
                "g": row % self.num_generations,
                "text": texts[row],
                "tokens": rollout.lengths[row],
                "media": sample.places,
                **dict(zip((r.name for r in self._rewards), rewards[first + row].tolist(), strict=True)),
                "total": round(total[first + row].item(), 6),
                "advantage": advantages[row].item(),
            }
            for row, sample in enumerate(rollout.samples[index] for index in rollout.prompt_index)
        ]
        rows = gather_object(rows)
        options = [self._samples[row["id"]].options for row in rows]
        for name, rate in reflection.rates([row["text"] for row in rows], options).items():
            self._note(f"reflection/{name}", rate)
        if self._on_rollout is not None and self.accelerator.is_main_process:
            self._on_rollout(rows)

    # --- loss ---

    def _compute_loss(self, model, inputs: dict[str, Tensor]) -> Tensor:
        prompt_index = inputs["prompt_index"].tolist()
        ids = dict.fromkeys(self.rollout.ids[index] for index in prompt_index)
        watchdog.at(f"step {self.state.global_step + 1}, update on {', '.join(ids)}")
        # Masks [R, C]. `mask`: all completion tokens. `learning`: those of groups that are not silent. `known`: those
        # whose log-probabilities are needed. `computed`: those that the model computes, which are `known` and a token
        # more where a parameter would otherwise get no gradient.
        mask = known = computed = inputs["completion_mask"].bool()
        advantages, old = inputs["advantages"], inputs.get("old_per_token_logps")
        silent, loss = grpo.silent_rows(advantages, self.num_generations), self._settings.loss
        learning = mask & ~silent.unsqueeze(1)
        if self._settings.shared_prefix and self.beta == 0:
            # Without a KL term, a group whose advantages are all 0 is left out of the loss.
            known = learning
            computed = without_silent_groups(self.rollout.prompts, prompt_index, mask, silent)
            if old is not None:  # makes the ratio 1 where nothing is computed
                old = old.masked_fill(silent.unsqueeze(1), 0)
        logps, entropies = self._log_probabilities(model, inputs, computed)
        # With one update per rollout, the correction is computed only here, from the loss's own log-probabilities.
        weights = inputs.get("importance_sampling_ratio")
        if weights is None and "sampling_per_token_logps" in inputs:
            weights = self._engine_ratio(logps.detach(), inputs, known)
        accumulation = self.current_gradient_accumulation_steps
        found = grpo.objective(
            logps,
            logps.detach() if old is None else old,
            advantages,
            mask,
            settings=grpo.ObjectiveSettings(loss, self._settings.clip, self.beta, self.max_completion_length),
            tokens=self._tokens_of_step(inputs),
            reference=inputs.get("ref_per_token_logps"),
            weights=weights,
        )
        with torch.no_grad():
            divergence = logps.new_zeros(()) if found.kl is None else (found.kl * mask).sum()
            entropy = logps.new_zeros(()) if entropies is None else (entropies * learning).sum()
            self._note_sums(divergence, mask.sum(), entropy, learning.sum())
        # DAPO and CISPO have divided by the tokens of the whole step, the others by a count of their micro-batch.
        return found.loss if loss in (Loss.dapo, Loss.cispo) else found.loss / accumulation

    def _tokens_of_step(self, inputs: dict[str, Tensor]) -> Tensor:
        """What DAPO, CISPO and supervised learning divide by: completion tokens per optimizer step and process."""
        # The gradient is averaged over processes, so the divisor is too. A step takes a part of the rollout's tokens.
        tokens = inputs["num_items_in_batch"].clamp(min=1.0) / self.accelerator.num_processes
        return tokens * self.current_gradient_accumulation_steps / self.args.steps_per_generation

    def _note_sums(self, *sums: Tensor) -> None:
        """Keep sums over tokens: divergence, tokens, entropy, tokens of groups that learn; see `_note_means`."""
        self._token_sums.append(self.accelerator.reduce(torch.stack(sums).detach(), reduction="sum").tolist())

    def _log_probabilities(
        self, model, inputs: dict[str, Tensor], computed: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities and entropies [R, C] of completion tokens; the entropies are None if the head has none.

        Args:
            model: policy or reference, wrapped.
            inputs: the rows, see `_as_tensors`.
            computed: [R, C], True on the tokens to compute; None: all tokens of the completions.
        """
        training = torch.is_grad_enabled()
        rows = len(inputs["completion_ids"])
        # The loss gets one micro-batch; without gradients, a whole rollout is computed in parts of that size.
        size = rows if training else self.args.per_device_train_batch_size  # whole groups
        computed = inputs["completion_mask"].bool() if computed is None else computed
        prompts, prompt_index, found = self.rollout.prompts, inputs["prompt_index"].tolist(), []
        # The reference uses the features of frozen towers too, if its own towers have the same weights.
        same = model is not self.ref_model or self._reference_sees_the_same
        features = self.rollout.features if same else None
        timed = nullcontext() if training else self.timer.section("time/logprob")
        with timed, self.accelerator.autocast():
            for start in range(0, rows, size):
                part = slice(start, start + size)
                ids = inputs["completion_ids"][part]
                if self._settings.shared_prefix:
                    of_part = packed_logprobs(
                        model, prompts, features, prompt_index[part], completion_ids=ids, scored=computed[part]
                    )
                else:
                    tokens = torch.cat([inputs["prompt_ids"][part], ids], 1)
                    mask = torch.cat([inputs["prompt_mask"][part], inputs["completion_mask"][part]], 1)
                    of_part = plain_row_logprobs(
                        model, prompts, prompt_index[part], tokens, attention_mask=mask, completion_width=ids.shape[1]
                    )
                found.append(of_part)
        logps, entropies = zip(*found, strict=True)
        return torch.cat(logps), None if entropies[0] is None else torch.cat(entropies)

    def _engine_ratio(self, logps: Tensor, inputs: dict[str, Tensor], mask: Tensor) -> Tensor:
        """Weights of the token losses for an engine's rollout, see `grpo.engine_ratio`; also notes their metrics."""
        engine = inputs["sampling_per_token_logps"]
        weights = grpo.engine_ratio(logps, engine, mask, how=self._correction, largest=self._largest_ratio)
        noted = engine_metrics.notes(logps, engine, mask, weights)
        self._engine_notes.append(self.accelerator.gather(noted).view(-1, len(noted)))
        return weights

    def _note_means(self) -> None:
        """Note means over the step's tokens; they do not depend on how the step is split into micro-batches."""
        divergence, tokens, entropy, learning = (sum(column) for column in zip(*self._token_sums, strict=True))
        if self.beta:
            self._note("grpo/kl", divergence / tokens)
        if learning:  # there are none if all groups are silent
            self._note("grpo/entropy", entropy / learning)
        self._token_sums.clear()
        if self._engine_notes:
            for name, value in engine_metrics.metrics(torch.cat(self._engine_notes)).items():
                self._note(name, value)
            self._engine_notes.clear()
