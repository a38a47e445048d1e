"""Evaluation: answers every sample by sampled draws, a greedy one or both, read by the reward's own parser.

Sampled accuracy is what training optimizes. The sampling is the same, and the noise of a draw is keyed by (seed, split,
sample), so base and trained model answer the same samples with the same noise. Greedy accuracy takes the likeliest
token each time. All draws share one prefill.

Protocols (`eval.protocol`): `matched` gives base and trained model the same prompt, draws and parser. The two others
follow the paper's public code, for comparison with its numbers: the base is not asked to reason, options follow the
question without a heading, and answers are read as `Match.first_letter` says:

    release   base without reasoning, sampled    trained with reasoning, sampled     the script of 8 May 2025
    may19     base without reasoning, greedy     trained with reasoning, sampled     the script of 19 May 2025
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import zip_longest

import torch
from torch import Tensor
from transformers import PreTrainedModel

from echoink.common.clusters import Clusters
from echoink.config.schema import EvalConfig, Protocol, Variant
from echoink.data.prefetch import Prefetcher
from echoink.data.processor import PromptProcessor
from echoink.data.samples import Sample
from echoink.evaluation.prediction import BASE, GREEDY, SAMPLED, Prediction, draw_names, judged
from echoink.models.family import PromptInputs
from echoink.rewards.terms import ExtraReward
from echoink.rewards.types import Match
from echoink.rollout.decoder import Decoder
from echoink.rollout.generate import decoder_for, generate
from echoink.rollout.sampling import Sampling, seed_of, uniforms
from echoink.rollout.vllm_engine import Engine


@dataclass(frozen=True)
class EvaluationSetup:
    """How samples are prompted and their answers judged."""

    processor: PromptProcessor
    """Turns a sample into model inputs."""
    sampling: Sampling
    match: Match
    seed: int
    """Seed of the sampled draws."""
    batch_prompts: int
    """Number of prompts decoded together."""
    bf16: bool = False
    """Autocast to bfloat16, as in training."""
    split: str = "valid"
    """The samples' split. Two splits may use the same ids; their noise differs."""
    draws: Sequence[str] = (SAMPLED, GREEDY)
    """See `draw_names`."""
    extra_rewards: Sequence[ExtraReward] = ()
    """The rewards other than accuracy and format."""


def of_phase(setup: EvaluationSetup, config: EvalConfig, phase: str) -> EvaluationSetup:
    """The setup of a phase, with the prompt, draws and parser of `config.protocol` (see the module's docstring).

    Args:
        setup: training's prompt and parser.
        config: the group `eval`.
        phase: `base`, or anything else for a trained model.
    """
    if config.protocol is Protocol.matched:
        return replace(setup, draws=tuple(draw_names(config.samples, config.greedy)))
    prompt = replace(config.direct if phase == BASE else setup.processor.prompt, options="{options}")
    greedy = config.protocol is Protocol.may19 and phase == BASE
    draws = (GREEDY,) if greedy else tuple(draw_names(config.samples, False))
    processor = replace(setup.processor, prompt=prompt)
    return replace(setup, processor=processor, draws=draws, match=config.protocol.reads(setup.match))


def evaluate(
    model: PreTrainedModel,
    samples: Sequence[Sample],
    setup: EvaluationSetup,
    phase: str,
    *,
    clusters: Mapping[str, Clusters] | None = None,
    variant: Variant = Variant.full,
    first_draw: int = 0,
    engine: Engine | None = None,
) -> Iterator[Prediction]:
    """Answer every sample once per draw, in order; predictions are generated lazily, batch by batch.

    Args:
        model: the policy, not wrapped.
        samples: what to answer.
        setup: prompt, sampling, draws and parser.
        phase: `base`, `final` or `step-N`.
        clusters: by id; samples that share media share a name. None: no samples share media.
        variant: the variant that the samples are, see `ablations`.
        first_draw: number of the first draw, from 0; the draw with a number always has the same noise.
        engine: answers instead of the model; it has the model's weights.
    """
    processor, draws, size = setup.processor, setup.draws, setup.batch_prompts
    batches = [samples[start : start + size] for start in range(0, len(samples), size)]
    decoder = decoder_for(model)
    with closing(Prefetcher(processor)) as prefetcher:
        for batch, after in zip_longest(batches, batches[1:], fillvalue=()):
            prompts = prefetcher.take(batch)
            prefetcher.ask(after)  # its videos are decoded while this batch is answered
            if engine is not None:
                completions = _by_engine(engine, prompts, batch, setup=setup, first_draw=first_draw)
            else:
                completions = _by_model(model, prompts, batch, setup=setup, first_draw=first_draw, decoder=decoder)
            texts = processor.processor.batch_decode(completions, skip_special_tokens=True)
            for row, (text, tokens) in enumerate(zip(texts, completions, strict=True)):
                sample, prompt = batch[row // len(draws)], prompts[row // len(draws)]
                yield Prediction(
                    phase=phase,
                    variant=variant.name,
                    id=sample.id,
                    draw=draws[row % len(draws)],
                    prompt=hashlib.sha256(str(prompt.input_ids.tolist()).encode()).hexdigest()[:12],
                    problem=sample.problem,
                    options=sample.options,
                    problem_type=sample.problem_type.value,
                    data_type=sample.data_type.value,
                    completion=text,
                    gold=sample.solution,
                    tokens=len(tokens),
                    truncated=tokens[-1] not in setup.sampling.end_ids,
                    cluster=(clusters or {}).get(sample.id, sample.id),
                    fields=sample.fields,
                    media=sample.places,
                    **judged(
                        text, sample, setup.match, thinks=processor.prompt.thinks, extra_rewards=setup.extra_rewards
                    ),
                )


def _by_model(
    model: PreTrainedModel,
    prompts: Sequence[PromptInputs],
    samples: Sequence[Sample],
    setup: EvaluationSetup,
    first_draw: int,
    decoder: Decoder,
) -> list[list[int]]:
    sampling, draws = setup.sampling, setup.draws
    temperatures = [0.0 if draw == GREEDY else sampling.temperature for draw in draws]
    # Noise belongs to a sample and a draw, not to a batch: an answer does not depend on the rest of its batch.
    noise = torch.stack([noise_of(setup, sample, first_draw + len(draws))[first_draw:] for sample in samples])
    with torch.autocast(model.device.type, torch.bfloat16, enabled=setup.bf16):
        return generate(model, prompts, noise, temperatures=temperatures, sampling=sampling, decoder=decoder)


def _by_engine(
    engine: Engine, prompts: Sequence[PromptInputs], samples: Sequence[Sample], setup: EvaluationSetup, first_draw: int
) -> list[list[int]]:
    """An engine's completions in the order of `generate`. The engine draws its own noise, seeded by the same key."""
    seeds = [seed_of(setup.seed, first_draw, f"eval {setup.split} {sample.id}") for sample in samples]
    # An engine takes one temperature for all rows: sampled and greedy draws are two calls, merged afterwards.
    sampled = sum(draw != GREEDY for draw in setup.draws)
    rows = iter(engine.generate(prompts, seeds, sampled, rests=False)[0] if sampled else ())
    greedy = iter(engine.generate(prompts, seeds, 1, greedy=True, rests=False)[0] if GREEDY in setup.draws else ())
    return [next(greedy if draw == GREEDY else rows) for _ in samples for draw in setup.draws]


def noise_of(setup: EvaluationSetup, sample: Sample, draws: int) -> Tensor:
    """A sample's noise for a number of draws, [draws, C]. It differs from the noise of training and of other splits."""
    return uniforms(
        setup.seed, 0, f"eval {setup.split} {sample.id}", group_size=draws, length=setup.sampling.max_new_tokens
    )
