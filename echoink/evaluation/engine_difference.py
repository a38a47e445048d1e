"""Measures how far an engine's answers are from the model's own, if `eval.engine` lets it answer."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from echoink.common import console
from echoink.data.samples import Sample
from echoink.evaluation import evaluate
from echoink.evaluation.evaluate import EvaluationSetup
from echoink.evaluation.prediction import GREEDY
from echoink.rollout import parity
from echoink.rollout.vllm_engine import Engine

COMPARED = 16
"""This many samples are answered by the model too if an engine answers all of them."""


def push_and_compare(
    engine: Engine, model: PreTrainedModel, samples: Sequence[Sample], setup: EvaluationSetup, phase: str
) -> dict[str, float]:
    """Give an engine the model's weights, and measure on the first samples how well its answers match the model's.

    Returns:
        `alike`, the number of equal greedy answers; `of`, the number compared; `logp_difference_mean`, in nats per
        token.
    """
    engine.push(model)
    # Greedy, so that both can give the same text: an engine never draws the same samples.
    setup = replace(setup, draws=(GREEDY,))
    chosen = samples[:COMPARED]
    prompts = [setup.processor(sample) for sample in chosen]
    rows, logps = engine.generate(prompts, [0] * len(prompts), 1, greedy=True, rests=False)
    gaps = [
        parity.gaps(model, prompt, [row], logps=[of_row], temperature=setup.sampling.temperature, bf16=setup.bf16)
        for prompt, row, of_row in zip(prompts, rows, logps, strict=True)
    ]
    ours = evaluate.evaluate(model, chosen, setup, phase)
    texts = setup.processor.processor.batch_decode(rows, skip_special_tokens=True)
    alike = sum(answer.completion == text for answer, text in zip(ours, texts, strict=True))
    nats = torch.cat(gaps)
    console.say(
        phase,
        f"by vLLM {engine.version}: log-probabilities differ by {nats.mean():.1e} nats on average, "
        f"{nats.max():.1e} at most; greedy answers alike in {alike} of {len(chosen)}",
    )
    return {"alike": alike, "of": len(chosen), "logp_difference_mean": nats.mean().item()}
