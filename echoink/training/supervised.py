"""Supervised fine-tuning (task=sft): given responses instead of a rollout, their likelihood instead of Eq. 2.

    L = -1/N Σ_i Σ_t log pi_theta(y_it | q, y_i<t)       over the N tokens of all responses of an optimizer step

All else is as in `EchoInkTrainer`: prompts with picture and sound, one computation of a prompt for all its responses,
rewards (here of the given responses), log, checkpoints, exact resume, adapters, sharding. The temperature is 1.

Shapes: B prompts, G responses of each, R = B·G rows, C response tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from echoink.common.errors import UserError
from echoink.data.samples import Sample
from echoink.distributed import watchdog
from echoink.models.encoders import encode_media, towers_learn
from echoink.rollout.types import Rollout
from echoink.training.trainer import EchoInkTrainer


def check(samples: Sequence[Sample], tokenizer, longest: int) -> None:
    """Refuse responses of more than `longest` tokens, counted with the end token.

    Raises:
        UserError: there are some; the error names the sample with the longest.
    """
    counts = {sample.id: max(len(_tokens(tokenizer, text)) for text in sample.responses) for sample in samples}
    if over := {id: count for id, count in counts.items() if count > longest}:
        id = max(over, key=over.__getitem__)
        raise UserError(
            f"responses of {len(over):,} training samples have more than {longest} tokens; that of {id} has {over[id]}",
            f"generation.max_new_tokens={over[id]}",
        )


def _tokens(tokenizer, text: str) -> list[int]:
    return [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


class SupervisedTrainer(EchoInkTrainer):
    """Learns given responses, G per row and epoch.

    A row with fewer than G responses repeats some; the loss counts a repeated response once. A row with more than G
    gives the next ones in each epoch.
    """

    GENERATES = False

    def _sample_completions(self, row_ids: list[str]) -> Rollout:
        ids, group = list(dict.fromkeys(row_ids)), self.num_generations
        watchdog.at(f"step {self.state.global_step + 1}, responses of {', '.join(ids)}")
        with self.timer.section("time/media"):
            samples = [self._shown(self._samples[id]) for id in ids]
            prompts = self._prefetcher.take(samples)
        features = None
        with (
            self.timer.section("time/rollout"),
            self.unsharded() as model,
            self.accelerator.autocast(),
            torch.no_grad(),
        ):
            if not towers_learn(model.model):  # the loss reuses the features
                features = encode_media(model.model, prompts)
        completions = [_tokens(self._tokenizer, text) for sample in samples for text in self._responses(sample, group)]
        prompt_index = [ids.index(id) for id in row_ids]
        assert prompt_index == [index for index in range(len(ids)) for _ in range(group)], "a group was split"
        return Rollout(samples, prompts, features, prompt_index=prompt_index, completions=completions)

    def _responses(self, sample: Sample, group: int) -> list[str]:
        """G of a sample's responses, starting with this epoch's first one."""
        first = int(self.state.epoch or 0) * group
        return [sample.responses[(first + place) % len(sample.responses)] for place in range(group)]

    def _as_tensors(self, rollout: Rollout) -> dict[str, Tensor]:
        batch = super()._as_tensors(rollout)
        seen: set[tuple[int, tuple[int, ...]]] = set()
        for row, (index, tokens) in enumerate(zip(rollout.prompt_index, rollout.completions, strict=True)):
            if (key := (index, tuple(tokens))) in seen:
                batch["completion_mask"][row] = 0  # a repeat
            seen.add(key)
        batch["num_items_in_batch"] = self.accelerator.gather(batch["completion_mask"].sum()).sum()
        return batch

    def _compute_loss(self, model, inputs: dict[str, Tensor]) -> Tensor:
        mask = inputs["completion_mask"].bool()
        ids = dict.fromkeys(self.rollout.ids[index] for index in inputs["prompt_index"].tolist())
        watchdog.at(f"step {self.state.global_step + 1}, update on {', '.join(ids)}")
        logps, entropies = self._log_probabilities(model, inputs, mask)
        with torch.no_grad():
            entropy = logps.new_zeros(()) if entropies is None else (entropies * mask).sum()
            self._note_sums(logps.new_zeros(()), mask.sum(), entropy, mask.sum())
        return -(logps * mask).sum() / self._tokens_of_step(inputs)
