"""Applies the rules of `rewards/integration.py` in a training step: it scores or answers changed prompts.

A changed prompt lacks a sense, has another sample's sound or sight (`twin`), or is the same again (`redraw`).

Shapes: B prompts, G group, R = B·G rows, M = 2 senses, C completion tokens.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from echoink.common import console
from echoink.common.clusters import Clusters
from echoink.common.errors import UserError
from echoink.config.schema import RewardConfig, Variant
from echoink.data.ablations import SENSES, SWAPS, has_both, make, without
from echoink.data.processor import PromptProcessor
from echoink.data.samples import Sample
from echoink.models.family import Features, PromptInputs
from echoink.models.logprobs import packed_logprobs, without_dropout
from echoink.rewards import integration
from echoink.rewards.accuracy import has_answer
from echoink.rewards.terms import accuracy_of
from echoink.rewards.types import ANSWERS_AGAIN, NEEDED, TWINS, Rule
from echoink.rollout.decoder import Decoder
from echoink.rollout.generate import generate
from echoink.rollout.sampling import Sampling
from echoink.rollout.types import Rollout


class IntegrationReward:
    """A rule and the rollout that it scores.

    Args:
        config: the group `reward`: the rule, its scale and weight, how answers are read.
        processor: turns a sample into model inputs.
        rows: most rows of one scoring pass.
        samples: the training set, from which the rule `twin` takes its donors.
        seed: seed for the choice of donors.
        clusters: cluster names by sample id; samples that share media share a name and are no donors for each other.

    Raises:
        UserError: the rule is `twin` or `redraw`, and no sample can be paid.

    Attributes:
        notes: metrics of the last rollout: `integration/gain`, the mean c_i of right completions; `integration/fires`,
            the share of groups that `need` weighs; or `integration/paid`, the share of right completions that `twin`
            or `redraw` pays. Each comes with the number of values that it is a mean of. Prompts that the rule cannot
            pay count only in `fires`; the other rules have no metric.
    """

    def __init__(
        self,
        config: RewardConfig,
        processor: PromptProcessor,
        rows: int,
        samples: Sequence[Sample] = (),
        seed: int = 0,
        clusters: Mapping[str, Clusters] | None = None,
    ):
        self.rule, self._scale, self.weight = config.integration, config.integration_scale, config.lambda_int
        self._processor, self._match, self._rows = processor, config.match, rows
        self._accuracy = accuracy_of(config.match)
        self.notes: dict[str, tuple[float, int]] = {}
        # For each sense, the samples with that sense changed, by id (`redraw` changes nothing).
        self._twins: list[dict[str, Sample]] = []
        if self.rule in TWINS:
            for variant in SWAPS:  # donors are of the same kind of question, whatever its need
                changed = make(samples, variant, seed, clusters) if self.rule is Rule.twin else samples
                self._twins.append({each.id: each for each in changed if each.fields.get("need") in NEEDED})
            payable = sum(map(self._payable, samples))
            console.say(self.rule.name, f"{payable:,} of {len(samples):,} training samples can be paid")
            if not payable:
                raise UserError(
                    f"reward.integration={self.rule.name}: no question whose need is known can be paid",
                    "samples need both senses and the field need (audio, image or both); twin also needs a donor "
                    "for each",
                )

    @property
    def pays(self) -> bool:
        """Whether the rule is a reward; `need` weighs advantages instead."""
        return self.rule is not Rule.need

    def take(self, samples: Sequence[Sample], prompts: Sequence[PromptInputs], features: Sequence[Features]) -> None:
        """Take the B prompts of a rollout, and change each sense of those that the rule applies to.

        Args:
            samples: the samples of the rollout, after modality dropout.
            prompts: the samples' model inputs.
            features: features of the prompts' media. Prompts without one sense reuse those of the other; `twin` and
                `redraw` encode all media again.
        """
        self.notes.clear()
        self._samples = list(samples)
        changes = self.rule in TWINS
        self._both = [i for i, sample in enumerate(samples) if (self._payable(sample) if changes else has_both(sample))]
        self._full = [prompts[index] for index in self._both], [features[index] for index in self._both]
        self._ablated = []
        if changes:  # a donor's medium is new: `generate` encodes all media of these prompts again
            for twins in self._twins:
                self._ablated.append(([self._processor(twins[samples[index].id]) for index in self._both], None))
            return
        for sense in SENSES:
            gone = ("audio",) if sense is Variant.no_audio else ("image", "video")
            made = [self._processor(without(samples[index], sense)) for index in self._both]
            kept = [{name: f for name, f in features[index].items() if name not in gone} for index in self._both]
            self._ablated.append((made, kept))

    def _payable(self, sample: Sample) -> bool:
        """Whether `twin` and `redraw` can pay for a prompt: its need is known, it has both senses, each with a twin."""
        return has_both(sample) and all(sample.id in twins for twins in self._twins)

    def answer_again(self, model, noise: Tensor, sampling: Sampling, decoder: Decoder | None = None) -> None:
        """Complete the changed prompts, if the rule needs it, with the noise of the full prompts.

        `redraw` shifts the noise by one completion in the group for the first sense, and by two for the second.

        Args:
            model: the policy, not wrapped.
            noise: the rollout's noise, [B, G, C].
            sampling: the rollout's settings.
            decoder: the decoder of the rollout; None makes one for each call of `generate`.
        """
        if self.rule not in ANSWERS_AGAIN:
            return
        group = noise.shape[1]
        # A prompt that the rule does not apply to counts as right without each sense: its completions are not paid.
        self._right_without = torch.ones(len(SENSES), len(self._samples) * group, device=model.device)
        rows = [index * group + g for index in self._both for g in range(group)]
        asked = [self._samples[index] for index in self._both for _ in range(group)]
        self._readable = torch.zeros_like(self._right_without, dtype=torch.bool)
        kept = zip(self._right_without, self._readable, self._ablated, strict=True)
        for sense, (right, readable, (prompts, features)) in enumerate(kept):
            if prompts:
                drawn = noise.roll(1 + sense, 1) if self.rule is Rule.redraw else noise
                temperatures = [sampling.temperature] * group
                completions = generate(
                    model,
                    prompts,
                    drawn[self._both],
                    temperatures=temperatures,
                    sampling=sampling,
                    features=features,
                    decoder=decoder,
                )
                texts = self._processor.processor.batch_decode(completions, skip_special_tokens=True)
                right[rows] = torch.tensor(self._accuracy(texts, asked), device=right.device)
                answers = [
                    has_answer(text, sample.problem_type, sample.options, self._match)
                    for text, sample in zip(texts, asked, strict=True)
                ]
                readable[rows] = torch.tensor(answers, device=right.device)

    def reward(self, model, rollout: Rollout, texts: Sequence[str], samples: Sequence[Sample]) -> Tensor:
        """R_int [R] of a rule that is a reward; 0 for prompts that the rule does not apply to.

        Args:
            model: the policy, not wrapped.
            rollout: the rollout whose prompts `take` got.
            texts: its R completions.
            samples: for each completion the sample that it answers.
        """
        device = next(model.parameters()).device
        right = torch.tensor(self._accuracy(texts, samples), device=device)
        completions, prompt_index = rollout.completions, list(rollout.prompt_index)
        senses = torch.tensor([float(index in self._both) for index in prompt_index], device=right.device)
        if self.rule is Rule.counterfactual:
            noted = self._gain(model, completions, prompt_index)
            paid = senses * integration.counterfactual(right, noted, self._scale)
        elif self.rule in TWINS:
            needs = [NEEDED.get(sample.fields.get("need"), (False, False)) for sample in samples]
            needed = torch.tensor(needs, device=device).T
            noted = paid = senses * integration.twin(right, self._right_without, self._readable, needed)
        else:
            group = prompt_index.count(prompt_index[0])
            return senses * integration.PAYS[self.rule](right, self._right_without, group)
        if (of := (senses > 0) & (right == 1)).any():
            name = "paid" if self.rule in TWINS else "gain"
            self.notes[f"integration/{name}"] = noted[of].mean().item(), int(of.sum())
        return paid

    def needs_both(self, right: Tensor, group: int) -> Tensor:
        """For each row [R], 1 if the rule `need` weighs its group, else 0.

        Args:
            right: R_acc of the completions, [R].
            group: G.
        """
        fires = integration.needs_both(right, self._right_without, group).float()
        self.notes["integration/fires"] = fires.mean().item(), len(fires)
        return fires.repeat_interleave(group)

    @torch.no_grad()
    def _gain(self, model, completions: Sequence[Sequence[int]], prompt_index: Sequence[int]) -> Tensor:
        """c_i [R], see `integration.gain`; 0 for prompts without both senses."""
        device = next(model.parameters()).device
        ids, mask = integration.padded(completions, device)
        gain = torch.zeros(len(ids), device=device)
        rows = [row for row, index in enumerate(prompt_index) if index in self._both]
        if not rows:
            return gain
        places = [self._both.index(prompt_index[row]) for row in rows]
        logps = []  # `model.forward` skips DeepSpeed's hooks, which wait for processes that may have nothing to score
        with without_dropout(model):  # each pass would drop other units
            for prompts, features in (self._full, *self._ablated):
                parts = []
                for start in range(0, len(rows), self._rows):
                    part = slice(start, start + self._rows)
                    found = packed_logprobs(
                        model.forward,
                        prompts,
                        features,
                        prompt_index=places[part],
                        completion_ids=ids[rows[part]],
                        scored=mask[rows[part]],
                    )
                    parts.append(found[0])
                logps.append(torch.cat(parts))
        gain[rows] = integration.gain(logps[0], torch.stack(logps[1:]), mask[rows])
        return gain
