"""Evaluation: the reward's own parser on one sampled draw per sample (and a greedy one), with intervals.

Sampled accuracy is what training optimizes: the same sampling, one draw, its noise keyed by (seed, sample), so base and
trained model answer the same samples with the same noise. Greedy accuracy takes the likeliest token each time. All
draws share one prefill.

Protocols (`eval.protocol`): `matched` gives base and trained model the same prompt, draws and parser. The two others
are what the paper's public code shows, for comparison with its numbers; there the base is not asked to reason, options
follow the question without a heading, and an answer is read as `Match.first_letter`:

    release   base without reasoning, sampled    trained with reasoning, sampled     the script of 8 May 2025
    may19     base without reasoning, greedy     trained with reasoning, sampled     that of 19 May 2025
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import zip_longest
from math import comb

import torch
from transformers import Qwen2_5OmniThinkerForConditionalGeneration

from echoink import reflection, rollout
from echoink.ahead import Ahead
from echoink.config import Protocol, Variant
from echoink.processing import PromptInputs, PromptProcessor
from echoink.prompts import Prompt
from echoink.rewards import (
    GRADED,
    Match,
    ProblemType,
    accuracy_reward,
    format_reward,
    parse_answer,
    parse_letters,
    read_letters,
)
from echoink.samples import DataType, Sample
from echoink.statistics import Paired, cluster_bootstrap, paired, wilson

SAMPLED, GREEDY = "sampled", "greedy"
BASE, FINAL = "base", "final"


def draw_names(samples: int, greedy: bool) -> list[str]:
    """The draws of an evaluation: "sampled", "sampled-2", …, "greedy". The first does not depend on how many follow."""
    return [SAMPLED, *(f"{SAMPLED}-{number}" for number in range(2, samples + 1)), *([GREEDY] if greedy else [])]


@dataclass(frozen=True)
class Setting:
    """How a phase is evaluated."""

    prompt: Prompt
    draws: tuple[str, ...]
    """The first is the one whose accuracy is reported."""
    match: Match


def setting(
    protocol: Protocol, phase: str, prompt: Prompt, direct: Prompt, samples: int, greedy: bool, match: Match
) -> Setting:
    """How a protocol evaluates a phase.

    Args:
        protocol: see the module's docstring.
        phase: `base`, or anything else for a trained model.
        prompt: the one of training.
        direct: the one without reasoning.
        samples: sampled draws per sample.
        greedy: whether a greedy draw is added, where the protocol does not say.
        match: how an answer is read, where the protocol does not say.
    """
    if protocol is Protocol.matched:
        return Setting(prompt, tuple(draw_names(samples, greedy)), match)
    asked = replace(direct if phase == BASE else prompt, options="{options}")
    draws = (GREEDY,) if protocol is Protocol.may19 and phase == BASE else tuple(draw_names(samples, False))
    return Setting(asked, draws, Match.first_letter)


@dataclass(frozen=True)
class Prediction:
    """One answer to one sample: a line of predictions.jsonl, with all that another parser or reward needs."""

    phase: str
    variant: str
    id: str
    draw: str
    prompt: str
    """Digest of the prompt's tokens."""
    problem: str
    options: tuple[str, ...]
    problem_type: str
    data_type: str
    thinks: bool
    """Whether the prompt asked for a think block."""
    completion: str
    answer: str | None
    """Content of the answer block; None where it cannot be parsed."""
    letters: str
    """What was understood: the letters of a multiple-choice answer, else the answer; empty is a parse failure."""
    gold: str
    score: float
    """The accuracy reward, in [0, 1]."""
    correct: bool
    """Whether the score is 1."""
    format: bool
    custom: float | None
    """The reward of reward.file, where there is one."""
    tokens: int
    truncated: bool
    cluster: str
    """Samples that share media share it; the bootstrap resamples them together."""
    fields: dict[str, str]
    media: dict[str, str] = field(default_factory=dict)
    """Where its pictures, sounds and videos are."""


def of_row(row: dict) -> Prediction:
    """A line of predictions.jsonl."""
    return Prediction(**{**row, "options": tuple(row["options"])})


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
    clusters: Mapping[str, str] | None = None,
    own_reward: Callable[[str, Sample], float] | None = None,
    variant: Variant = Variant.full,
    first: int = 0,
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
        phase: `base`, `final` or `step-N`.
        batch_prompts: prompts decoded together.
        bf16: autocast to bfloat16, as in training.
        draws: see `draw_names`.
        clusters: by id, which samples share media; without it none do.
        own_reward: a user's.
        variant: what the samples are, see `variants`.
        first: the number, from 0, of the first draw: its noise is that of this draw among more.
    """
    temperatures = [0.0 if draw == GREEDY else sampling.temperature for draw in draws]
    batches = [samples[start : start + batch_prompts] for start in range(0, len(samples), batch_prompts)]
    ahead = Ahead(processor)
    for batch, following in zip_longest(batches, batches[1:], fillvalue=()):
        prompts = ahead.take(batch)
        ahead.ask(following)
        noise = torch.stack(
            [
                rollout.uniforms(seed, 0, sample.id, first + len(draws), sampling.max_new_tokens)[first:]
                for sample in batch
            ]
        )
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            completions = rollout.generate(
                model, prompts, noise, temperatures, sampling, end_ids, processor.processor.tokenizer.pad_token_id
            )
        texts = processor.processor.batch_decode(completions, skip_special_tokens=True)
        for row, (text, tokens) in enumerate(zip(texts, completions, strict=True)):
            sample, prompt = batch[row // len(draws)], prompts[row // len(draws)]
            yield Prediction(
                phase=phase,
                variant=variant.name,
                id=sample.id,
                draw=draws[row % len(draws)],
                prompt=_digest(prompt),
                problem=sample.problem,
                options=sample.options,
                problem_type=sample.problem_type.value,
                data_type=sample.data_type.value,
                completion=text,
                gold=sample.solution,
                tokens=len(tokens),
                truncated=tokens[-1] not in end_ids,
                cluster=(clusters or {}).get(sample.id, sample.id),
                fields=sample.fields,
                media=sample.places,
                **judged(text, sample, match, processor.prompt.thinks, own_reward),
            )


def judged(
    text: str,
    sample: Sample,
    match: Match,
    thinks: bool,
    own_reward: Callable[[str, Sample], float] | None = None,
) -> dict:
    """What the rewards say of a completion: the part of a `Prediction` that a parser or a reward decides."""
    answer = parse_answer(text)
    choice = sample.problem_type is ProblemType.multiple_choice
    score = accuracy_reward(text, sample.problem_type, sample.options, sample.solution, match)
    return {
        "thinks": thinks,
        "answer": answer,
        "letters": ", ".join(sorted(read_letters(text, sample.options, match))) if choice else answer or "",
        "score": score,
        "correct": score == 1,
        "format": bool(format_reward(text, thinks)),
        "custom": own_reward(text, sample) if own_reward else None,
    }


def rejudged(prediction: Prediction, match: Match, own_reward: Callable[[str, Sample], float] | None) -> Prediction:
    """A stored answer under another parser or reward; no model is needed."""
    sample = Sample(
        id=prediction.id,
        problem=prediction.problem,
        options=prediction.options,
        solution=prediction.gold,
        problem_type=ProblemType(prediction.problem_type),
        data_type=DataType(prediction.data_type),
        fields=prediction.fields,
    )
    return replace(prediction, **judged(prediction.completion, sample, match, prediction.thinks, own_reward))


def _digest(prompt: PromptInputs) -> str:
    return hashlib.sha256(str(prompt.input_ids.tolist()).encode()).hexdigest()[:12]


def summarize(predictions: Sequence[Prediction]) -> dict:
    """The numbers of one phase.

    `accuracy` (the mean score), `interval` (95 %; Wilson, or the bootstrap where scores are graded), `format`,
    `accuracy_where_formatted`, `parse_failures`, `truncated`, `custom` and `mean_tokens` are of the first sampled draw
    (of the greedy one where it is the only one); `greedy_accuracy` and `greedy_interval` of the greedy one; `by` has
    the accuracy with n and interval for every value of data type, problem type and every field that takes 2 to 20
    values (such as `kind`). `chance` is a guesser's accuracy; `positions` has the shares of the option letters among
    the right answers and among those given, their distance (half the sum of the differences: 0 is no bias) and the
    accuracy of always giving one letter, the best; `reflection` is what the rules of `reflection` count. With several
    sampled draws, `samples` has their number k, the mean accuracy and its interval, the accuracy of the majority's
    answer (ties go to the earlier draw) and pass@k, the share that any draw got right.
    """
    main = headline(predictions)
    greedy = [p for p in predictions if p.draw == GREEDY]
    formatted = [p for p in main if p.format]
    summary = {
        **_accuracy(main),
        "draw": main[0].draw,
        "format": _mean(p.format for p in main),
        "accuracy_where_formatted": _mean(p.score for p in formatted) if formatted else None,
        "parse_failures": _mean(not p.letters for p in main),
        "truncated": _mean(p.truncated for p in main),
        "custom": _mean(p.custom for p in main) if main[0].custom is not None else None,
        "mean_tokens": _mean(p.tokens for p in main),
        "chance": _mean(map(chance, main)),
        "positions": _positions(main),
        "reflection": {
            "rules": reflection.VERSION,
            **reflection.rates([p.completion for p in main]),
            **_effect(predictions),
        },
        "greedy_accuracy": _mean(p.score for p in greedy) if greedy else None,
        "greedy_interval": _accuracy(greedy)["interval"] if greedy else None,
        "samples": _several([p for p in predictions if p.draw != GREEDY]),
        "by": {},
    }
    labels = [{**p.fields, "data_type": p.data_type, "problem_type": p.problem_type} for p in main]
    for name in sorted({name for label in labels for name in label}):
        groups: dict[str, list[Prediction]] = {}
        for p, label in zip(main, labels, strict=True):
            groups.setdefault(label.get(name, ""), []).append(p)
        if 1 < len(groups) <= 20:
            summary["by"][name] = {value: _accuracy(group) for value, group in sorted(groups.items())}
    return summary


def headline(predictions: Sequence[Prediction]) -> list[Prediction]:
    """The draw whose accuracy is reported: the first sampled one, or the greedy one where it is the only one."""
    return [p for p in predictions if p.draw == SAMPLED] or [p for p in predictions if p.draw == GREEDY]


def chance(prediction: Prediction) -> float:
    """Probability that a guess is right: of as many options as are right, drawn at random; 0 of other types."""
    if not _has_letters(prediction):
        return 0.0
    return 1 / comb(len(prediction.options), len(parse_letters(prediction.gold, prediction.options)))


def _has_letters(prediction: Prediction) -> bool:
    return ProblemType(prediction.problem_type) is ProblemType.multiple_choice


def _positions(predictions: Sequence[Prediction]) -> dict | None:
    asked = [p for p in predictions if _has_letters(p)]
    if not asked:
        return None
    gold = [parse_letters(p.gold, p.options) for p in asked]
    right, given = (_shares(letters) for letters in (gold, [p.letters.split(", ") if p.letters else [] for p in asked]))
    letters = sorted({*right, *given})
    return {
        "right": right,
        "given": given,
        "distance": sum(abs(right.get(letter, 0) - given.get(letter, 0)) for letter in letters) / 2 if given else None,
        "one_letter": max(_mean(one == {letter} for one in gold) for letter in letters),
    }


def _shares(answers: Iterable[Iterable[str]]) -> dict[str, float]:
    """Share of each letter; of an answer with several each counts as much less."""
    counts: Counter[str] = Counter()
    for letters in map(list, answers):
        for letter in letters:
            counts[letter] += 1 / len(letters)
    total = sum(counts.values())
    return {letter: counts[letter] / total for letter in sorted(counts)}


def _effect(predictions: Sequence[Prediction]) -> dict:
    """Doubting against other completions of the same prompt, where there are several draws."""
    groups: dict[str, list[tuple[str, bool]]] = {}
    for p in predictions:
        if p.draw != GREEDY:
            groups.setdefault(p.id, []).append((p.completion, p.correct))
    found = reflection.effect(list(groups.values()))
    return {"effect": found and asdict(found)}


def _several(predictions: Sequence[Prediction]) -> dict | None:
    draws: dict[str, list[Prediction]] = {}
    for p in predictions:
        draws.setdefault(p.id, []).append(p)
    k = max(map(len, draws.values()), default=1)
    if k == 1:
        return None
    means = [_mean(p.score for p in group) for group in draws.values()]
    interval = cluster_bootstrap(means, [group[0].cluster for group in draws.values()])
    return {
        "k": k,
        "mean": _mean(p.score for p in predictions),
        "interval": [interval.low, interval.high],
        "majority": _mean(_majority(group) for group in draws.values()),
        "pass": _mean(any(p.correct for p in group) for group in draws.values()),
    }


def _majority(group: Sequence[Prediction]) -> float:
    # most_common keeps the order of first appearance among equals
    top = Counter(p.letters for p in group if p.letters).most_common(1)
    return next((p.score for p in group if top and p.letters == top[0][0]), 0.0)


def _accuracy(predictions: Sequence[Prediction]) -> dict:
    scores, n = [p.score for p in predictions], len(predictions)
    if any(ProblemType(p.problem_type) in GRADED for p in predictions):
        interval = cluster_bootstrap(scores, [p.cluster for p in predictions])
    else:
        interval = wilson(round(sum(scores)), n)
    return {"accuracy": sum(scores) / n, "n": n, "interval": [max(0.0, interval.low), min(1.0, interval.high)]}


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)


def compare(base: Sequence[Prediction], final: Sequence[Prediction], draw: str | None = None) -> Paired:
    """The same samples answered by two checkpoints: exact McNemar for one draw each, else the clustered bootstrap.

    Args:
        base: of the first.
        final: of the second.
        draw: compare this draw; None compares the means of all sampled draws (of the greedy one where there are none).
    """

    def scores(predictions: Sequence[Prediction]) -> dict[str, list[float]]:
        chosen = [p for p in predictions if (p.draw == draw if draw else p.draw != GREEDY)]
        found: dict[str, list[float]] = {}
        for p in chosen or headline(predictions):
            found.setdefault(p.id, []).append(p.score)
        return found

    first, second = scores(base), scores(final)
    ids = [id for id in first if id in second]
    clusters = {p.id: p.cluster for p in base}
    draws = max(len(found[id]) for found in (first, second) for id in ids)
    return paired(
        [_mean(first[id]) for id in ids], [_mean(second[id]) for id in ids], [clusters[id] for id in ids], draws
    )


def flips(base: Sequence[Prediction], final: Sequence[Prediction]) -> list[dict]:
    """Samples whose reported answer became right or wrong, with both completions: lines of flips.jsonl."""
    before = {p.id: p for p in headline(base)}
    pairs = [(before[p.id], p) for p in headline(final) if p.id in before]
    return [
        {
            "id": b.id,
            "direction": "gained" if f.correct else "lost",
            "problem": b.problem,
            "options": b.options,
            "gold": b.gold,
            "base": b.completion,
            "final": f.completion,
            "media": f.media,
        }
        for b, f in pairs
        if b.correct != f.correct
    ]
