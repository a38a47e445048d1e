"""Evaluation: the reward's own parser on one sampled draw per sample (and a greedy one), with intervals.

Sampled accuracy is what training optimizes: the same sampling, one draw, its noise keyed by (seed, sample), so base and
trained model answer the same samples with the same noise. Greedy accuracy takes the likeliest token each time. Both
draws share one prefill.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import Qwen2_5OmniThinkerForConditionalGeneration

from echoink import rollout
from echoink.processing import PromptInputs, PromptProcessor
from echoink.rewards import Match, accuracy_reward, format_reward, parse_answer, parse_letters
from echoink.samples import Sample
from echoink.statistics import Paired, mcnemar, wilson

SAMPLED, GREEDY = "sampled", "greedy"


def draw_names(samples: int, greedy: bool) -> list[str]:
    """The draws of an evaluation: "sampled", "sampled-2", …, "greedy". The first does not depend on how many follow."""
    return [SAMPLED, *(f"{SAMPLED}-{number}" for number in range(2, samples + 1)), *([GREEDY] if greedy else [])]


@dataclass(frozen=True)
class Prediction:
    """One answer to one sample: a line of predictions.jsonl."""

    phase: str
    variant: str
    id: str
    draw: str
    prompt: str
    """Digest of the prompt's tokens."""
    completion: str
    answer: str | None
    """Content of the answer block; None where it cannot be parsed."""
    letters: str
    gold: str
    correct: bool
    format: bool
    tokens: int
    truncated: bool
    fields: dict[str, str]


def evaluate(
    model: Qwen2_5OmniThinkerForConditionalGeneration,
    processor: PromptProcessor,
    samples: Sequence[Sample],
    sampling: rollout.Sampling,
    end_ids: Sequence[int],
    match: Match,
    seed: int,
    phase: str,
    batch_prompts: int,
    bf16: bool = False,
    draws: Sequence[str] = (SAMPLED, GREEDY),
    progress: Callable[[Iterable], Iterable] = iter,
) -> Iterator[Prediction]:
    """Answer every sample once per draw, in order; predictions come as they are made.

    Args:
        model: the thinker.
        processor: turns a sample into model inputs.
        samples: what to answer.
        sampling: as in training.
        end_ids: tokens that end a completion.
        match: how an answer is read.
        seed: of the sampled draw.
        phase: `base`, `final` or `step`.
        batch_prompts: prompts decoded together.
        bf16: autocast to bfloat16, as in training.
        draws: see `draw_names`.
        progress: wraps the iteration over batches.
    """
    temperatures = [0.0 if draw == GREEDY else sampling.temperature for draw in draws]
    batches = [samples[start : start + batch_prompts] for start in range(0, len(samples), batch_prompts)]
    for batch in progress(batches):
        prompts = [processor(sample) for sample in batch]
        noise = torch.stack(
            [rollout.uniforms(seed, 0, sample.id, len(draws), sampling.max_new_tokens) for sample in batch]
        )
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            completions = rollout.generate(
                model, prompts, noise, temperatures, sampling, end_ids, processor.processor.tokenizer.pad_token_id
            )
        texts = processor.processor.batch_decode(completions, skip_special_tokens=True)
        for row, (text, tokens) in enumerate(zip(texts, completions, strict=True)):
            sample, prompt = batch[row // len(draws)], prompts[row // len(draws)]
            yield _prediction(phase, draws[row % len(draws)], sample, prompt, text, tokens, match, end_ids)


def _prediction(
    phase: str,
    draw: str,
    sample: Sample,
    prompt: PromptInputs,
    text: str,
    tokens: list[int],
    match: Match,
    end_ids: Sequence[int],
) -> Prediction:
    answer = parse_answer(text)
    return Prediction(
        phase=phase,
        variant="full",
        id=sample.id,
        draw=draw,
        prompt=hashlib.sha256(str(prompt.input_ids.tolist()).encode()).hexdigest()[:12],
        completion=text,
        answer=answer,
        letters=", ".join(sorted(parse_letters(answer or "", sample.options, match))),
        gold=", ".join(sorted(sample.gold)),
        correct=bool(accuracy_reward(text, sample.options, sample.gold, match)),
        format=bool(format_reward(text)),
        tokens=len(tokens),
        truncated=tokens[-1] not in end_ids,
        fields=sample.fields,
    )


def summarize(predictions: Sequence[Prediction]) -> dict:
    """The numbers of one phase.

    `accuracy`, `interval` (95 %, Wilson), `format`, `accuracy_where_formatted`, `parse_failures`, `truncated` and
    `mean_tokens` are of the sampled draw; `greedy_accuracy` and `greedy_interval` of the greedy one; `by` has the
    sampled accuracy with n and interval for every value of every field that takes 2 to 20 values (such as `kind`).
    With several sampled draws, `samples` has their number k, the mean accuracy, the accuracy of the majority's letters
    (ties go to the earlier draw) and pass@k, the share of samples that any draw got right.
    """
    sampled = [p for p in predictions if p.draw == SAMPLED]
    greedy = [p for p in predictions if p.draw == GREEDY]
    formatted = [p for p in sampled if p.format]
    summary = {
        **_accuracy(sampled),
        "format": _share(p.format for p in sampled),
        "accuracy_where_formatted": _share(p.correct for p in formatted) if formatted else None,
        "parse_failures": _share(not p.letters for p in sampled),
        "truncated": _share(p.truncated for p in sampled),
        "mean_tokens": sum(p.tokens for p in sampled) / len(sampled),
        "greedy_accuracy": _share(p.correct for p in greedy) if greedy else None,
        "greedy_interval": _accuracy(greedy)["interval"] if greedy else None,
        "samples": _several([p for p in predictions if p.draw != GREEDY]),
        "by": {},
    }
    for name in sorted({name for p in sampled for name in p.fields}):
        groups: dict[str, list[Prediction]] = {}
        for p in sampled:
            groups.setdefault(p.fields.get(name, ""), []).append(p)
        if 1 < len(groups) <= 20:
            summary["by"][name] = {value: _accuracy(group) for value, group in sorted(groups.items())}
    return summary


def _several(predictions: Sequence[Prediction]) -> dict | None:
    draws: dict[str, list[Prediction]] = {}
    for p in predictions:
        draws.setdefault(p.id, []).append(p)
    k = max(len(group) for group in draws.values())
    if k == 1:
        return None
    # most_common keeps the order of first appearance among equals
    majority = [Counter(p.letters for p in group if p.letters).most_common(1) for group in draws.values()]
    hits = (bool(top) and top[0][0] == group[0].gold for top, group in zip(majority, draws.values(), strict=True))
    return {
        "k": k,
        "mean": _share(p.correct for p in predictions),
        "majority": _share(hits),
        "pass": _share(any(p.correct for p in group) for group in draws.values()),
    }


def _accuracy(predictions: Sequence[Prediction]) -> dict:
    hits, n = sum(p.correct for p in predictions), len(predictions)
    interval = wilson(hits, n)
    return {"accuracy": hits / n, "n": n, "interval": [interval.low, interval.high]}


def _share(flags: Iterable[bool]) -> float:
    flags = list(flags)
    return sum(flags) / len(flags)


def compare(base: Sequence[Prediction], final: Sequence[Prediction], draw: str) -> Paired:
    """The same samples answered by two checkpoints, one draw each: exact McNemar."""
    first = {p.id: p.correct for p in base if p.draw == draw}
    second = {p.id: p.correct for p in final if p.draw == draw}
    ids = [id for id in first if id in second]
    return mcnemar([first[id] for id in ids], [second[id] for id in ids])
