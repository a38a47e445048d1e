"""Which senses a question needs, from answers with and without them. Pure functions on predictions.

A removed modality cannot help: if answers are still right above chance, the model uses a unimodal shortcut, or the
question does not need the modality. A drop in accuracy shows that this model used the modality on these questions.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from enum import Enum
from typing import Any

from echoink.common.statistics import above_chance, more_often, paired
from echoink.config.schema import Variant
from echoink.data.ablations import SWAPS, senses
from echoink.data.samples import DataType
from echoink.evaluation import metrics
from echoink.evaluation.prediction import GREEDY, Prediction
from echoink.rewards.accuracy import GRADED
from echoink.rewards.types import ProblemType

ALPHA = 0.05
"""Significance level of each of the one-sided tests behind a label."""
FEWEST = 4
"""A sample with fewer draws per variant gets no label: even with 4 draws, 4 right against 1 has p = 0.07."""

UNKNOWN_GUESS = 0.1
"""How often a guess is taken to be right where nobody knows, as with counts whose row has no `chance`. With 0, one
lucky answer of eight would prove that a sense is not needed; with 0.1 it takes three."""

WITHOUT = {
    "audio": (Variant.swapped_audio, Variant.no_audio),
    "image": (Variant.swapped_image, Variant.no_image),
    "text": (Variant.text_only,),
}
"""Variants of a question without sound, without sight, without both. A swap contradicts the question; a removal may be
unlike any prompt in training. Either may fail for this reason alone, so a sense is needed only if both fail."""


class Need(Enum):
    """What a question needs. `either`: one of the two senses, no matter which; the other names say what they mean."""

    audio = "audio"
    image = "image"
    both = "both"
    either = "either"
    neither = "neither"
    undetermined = "undetermined"


def label(hits: Mapping[Variant, int], draws: int, chance: float, has: Collection[str] = ("audio", "image")) -> Need:
    """What a question needs, from how many of its draws were right with each variant.

    A variant of `WITHOUT` fails if it is right less often than the full prompt (Fisher's exact test, one-sided,
    `ALPHA`). It suffices if it does not fail and is right more often than a guess (exact binomial test). A sense is not
    needed if any of its variants suffices. It is needed if all of them fail. Everything else is undetermined: a
    question that the full prompt does not answer above chance, a sense that meets neither condition or was never
    removed.

    Args:
        hits: right draws of `full`, and of the variants of `WITHOUT` that were answered.
        draws: k, draws of each variant.
        chance: probability that a guess is right.
        has: the senses that the question has.

    Example: of 8 draws with four options, 8 right in full, 2 without sound, 8 without picture: `audio`.
    """

    def no_guess(right: int) -> bool:
        return above_chance(right, draws, chance) <= ALPHA

    def falls(right: int) -> bool:
        return more_often(hits[Variant.full], right, draws) <= ALPHA

    def needed(name: str) -> bool | None:
        """Whether the sense is needed; None: undetermined."""
        found = [hits[variant] for variant in WITHOUT[name] if variant in hits]
        if any(not falls(right) and no_guess(right) for right in found):
            return False
        return True if found and all(map(falls, found)) else None

    if not no_guess(hits[Variant.full]):
        return Need.undetermined
    need = {sense: needed(sense) for sense in has}
    if not has or None in need.values():
        return Need.undetermined
    if any(need.values()):
        return Need.both if len(has) == 2 and all(need.values()) else Need.audio if need.get("audio") else Need.image
    if len(has) == 1:
        return Need.neither
    text = needed("text")
    return Need.undetermined if text is None else Need.either if text else Need.neither


def labels(answers: Mapping[Variant, Sequence[Prediction]]) -> dict[str, Need]:
    """What each sample needs, by id; samples with graded scores or fewer than `FEWEST` sampled draws are left out."""
    hits: dict[str, Counter[Variant]] = defaultdict(Counter)
    draws: Counter[tuple[str, Variant]] = Counter()
    asked: dict[str, Prediction] = {}
    for variant, predictions in answers.items():
        for p in predictions:
            if p.draw != GREEDY and ProblemType(p.problem_type) not in GRADED:
                hits[p.id][variant] += p.correct
                draws[p.id, variant] += 1
                if variant is Variant.full:
                    asked[p.id] = p
    found = {}
    for id, counts in hits.items():
        k = draws[id, Variant.full]
        if k >= FEWEST:
            chance = metrics.chance(asked[id]) or UNKNOWN_GUESS
            found[id] = label(counts, k, chance, senses(DataType(asked[id].data_type)))
    return found


def rows(answers: Mapping[Variant, Sequence[Prediction]]) -> list[dict]:
    """A line per sample: what it needs (null without a label), and for each variant the right answers and the draws. Of
    graded questions it is the sum of the scores: none of their answers may score 1.
    """
    needed, found = labels(answers), {}
    for variant, predictions in answers.items():
        for p in predictions:
            if p.draw != GREEDY:
                row = found.setdefault(p.id, {"id": p.id, "need": needed[p.id].name if p.id in needed else None})
                right, drawn = row.get(variant.name, (0, 0))
                graded = ProblemType(p.problem_type) in GRADED
                row[variant.name] = (right + (p.score if graded else p.correct), drawn + 1)
    return list(found.values())


def summarize(answers: Mapping[Variant, Sequence[Prediction]]) -> dict[str, Any]:
    """Accuracies of a model without each modality.

    Args:
        answers: answers of `full` and of other variants, each to the samples that it applies to.

    Returns:
        By variant: `accuracy`, `interval`, `n`, `parse_failures`, `chance`; `drop` from full on the same samples, with
        its interval, p, test and counts (see `statistics.paired`); `shortcut`, the accuracy above chance,
        (a - c) / (1 - c), with its interval (None for swaps); `by` field and value: n, the accuracies with and without
        the modality, and p. `needs`: the number of samples with each need; None without labels.
    """
    full = {p.id: p for p in metrics.headline(answers[Variant.full])}
    found: dict[str, Any] = {}
    for variant, predictions in answers.items():
        if variant is Variant.full or not predictions:
            continue
        summary = metrics.summarize(predictions)
        drop = metrics.compare(predictions, answers[Variant.full], metrics.headline(predictions)[0].draw)
        chance = summary["chance"]
        found[variant.name] = {
            **{name: summary[name] for name in ("accuracy", "interval", "n", "parse_failures", "chance")},
            "drop": {
                "difference": drop.difference,
                "interval": list(drop.interval),
                "p_value": drop.p_value,
                "test": drop.test,
                "lost": drop.gained,
                "gained": drop.lost,
            },
            "shortcut": None
            if variant in SWAPS or chance == 1  # a swapped medium misleads; it is not only missing
            else {
                "rate": (summary["accuracy"] - chance) / (1 - chance),
                "interval": [(end - chance) / (1 - chance) for end in summary["interval"]],
            },
            "by": _by_field(full, metrics.headline(predictions), summary["by"]),
        }
    needed = Counter(need.name for need in labels(answers).values())
    found["needs"] = {need.name: needed[need.name] for need in Need} if needed else None
    return found


def _by_field(full: Mapping[str, Prediction], without: Sequence[Prediction], by: Mapping[str, Any]) -> dict[str, Any]:
    """By field and value of the summary: n, accuracy with and without the modality, and p of their difference."""
    made: dict[str, Any] = {}
    for name in by:
        if name in ("data_type", "problem_type"):
            continue
        groups: dict[str, list[tuple[Prediction, Prediction]]] = defaultdict(list)
        for p in without:
            groups[p.fields.get(name, "")].append((full[p.id], p))
        made[name] = {
            value: {
                "n": len(pairs),
                "full": sum(a.score for a, _ in pairs) / len(pairs),
                "accuracy": sum(b.score for _, b in pairs) / len(pairs),
                "p_value": paired(
                    [b.score for _, b in pairs], [a.score for a, _ in pairs], [a.cluster for a, _ in pairs]
                ).p_value,
            }
            for value, pairs in sorted(groups.items())
        }
    return made
