"""Accuracies, intervals and paired differences of predictions: pure functions."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from math import comb, prod

from echoink.common.clusters import Clusters, count
from echoink.common.statistics import Paired, mean_interval, paired
from echoink.data.samples import SOURCES, shares
from echoink.evaluation import reflection
from echoink.evaluation.prediction import GREEDY, SAMPLED, Prediction
from echoink.rewards.accuracy import canonical
from echoink.rewards.parsing import equal_options, option_letter, parse_letters
from echoink.rewards.types import ProblemType


def summarize(predictions: Sequence[Prediction]) -> dict:
    """The numbers of one phase.

    `accuracy` (the mean score), its `interval` (95 %, see `statistics.mean_interval`), `format`,
    `accuracy_where_formatted`, `parse_failures`, `truncated`, `custom`, `rewards` (other rewards by name, if there are
    any) and `mean_tokens` are of the first sampled draw, or of the greedy draw if there is no other; `draw` says which.
    `clusters` is the number of clusters, if samples share media. `greedy_accuracy` and `greedy_interval` are of the
    greedy draw. `by` has accuracy, n and interval for every value of data type, problem type and every other field,
    such as `kind`, that has 2 to max(20, n / 2) values (a field with more identifies samples). `chance` is the accuracy
    of a guess. `positions` has the shares of the option letters among the right answers and among the given ones, their
    distance (half the sum of the differences; 0 is no bias), and the accuracy of always giving the best single letter.
    `reflection` is what the rules of `reflection` count. With several sampled draws, `samples` has their number k, the
    mean accuracy and its interval, the accuracy of the majority's answer (a tie goes to the earlier draw) and pass@k,
    the share of samples that at least one draw got right.
    """
    main = headline(predictions)
    names = main[0].rewards
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
        **({"rewards": {name: _mean(p.rewards[name] for p in main) for name in names}} if names else {}),
        "mean_tokens": _mean(p.tokens for p in main),
        "chance": _mean(map(chance, main)),
        "positions": _positions(main),
        "reflection": {
            "rules": reflection.VERSION,
            **reflection.rates([p.completion for p in main], [_lettered(p) for p in main]),
            **_effect(predictions),
        },
        "greedy_accuracy": _mean(p.score for p in greedy) if greedy else None,
        "greedy_interval": _accuracy(greedy)["interval"] if greedy else None,
        "samples": _several([p for p in predictions if p.draw != GREEDY]),
        "by": {},
    }
    labels = [{**p.fields, "data_type": p.data_type, "problem_type": p.problem_type} for p in main]
    for name in sorted({name for label in labels for name in label} - {"chance", "pass_rate", *SOURCES}):
        groups: dict[str, list[Prediction]] = {}
        for p, label in zip(main, labels, strict=True):
            groups.setdefault(label.get(name, ""), []).append(p)
        if 1 < len(groups) <= max(20, len(main) // 2):  # a field with more values identifies samples
            summary["by"][name] = {value: _accuracy(group) for value, group in sorted(groups.items())}
    return summary


def headline(predictions: Sequence[Prediction]) -> list[Prediction]:
    """The draw whose accuracy is reported: the first sampled one, or the greedy one if there is no other."""
    return [p for p in predictions if p.draw == SAMPLED] or [p for p in predictions if p.draw == GREEDY]


def chance(prediction: Prediction) -> float:
    """Probability that a guess is right: the row's field `chance`, if given; else for multiple choice the probability
    of a random set of as many options as are right, and 0 for other types.
    """
    if given := prediction.fields.get("chance"):
        return float(given)
    if not _has_letters(prediction):
        return 0.0
    gold = equal_options(parse_letters(prediction.gold, prediction.options), prediction.options)
    # An option that occurs twice is right under both letters.
    each = [equal_options(frozenset(option_letter(option)), prediction.options) for option in prediction.options]
    return prod(each.count(frozenset(letter)) for letter in gold) / comb(len(each), len(gold))


def _has_letters(prediction: Prediction) -> bool:
    return ProblemType(prediction.problem_type) is ProblemType.multiple_choice


def _lettered(prediction: Prediction) -> Sequence[str]:
    """The options that an answer names by letter; none for other problem types, whose rows may list some too."""
    return prediction.options if _has_letters(prediction) else ()


def _positions(predictions: Sequence[Prediction]) -> dict | None:
    asked = [p for p in predictions if _has_letters(p)]
    if not asked:
        return None
    # An option that occurs twice is right under both letters: the first stands for both.
    gold = [equal_options(parse_letters(p.gold, p.options), p.options) for p in asked]
    chosen = [equal_options(frozenset(p.letters.split(", ")), p.options) for p in asked if p.letters]
    right, given = shares(gold), shares(chosen)
    letters = sorted({*right, *given})
    return {
        "right": right,
        "given": given,
        "distance": sum(abs(right.get(letter, 0) - given.get(letter, 0)) for letter in letters) / 2 if given else None,
        "one_letter": max(sum(one == {letter} for one in gold) for letter in letters) / len(predictions),
    }


def _effect(predictions: Sequence[Prediction]) -> dict:
    """Completions with doubt compared with others of the same prompt, if there are several draws."""
    groups: dict[str, list[tuple[reflection.Reflection, bool]]] = {}
    clusters: dict[str, Clusters] = {}
    for p in predictions:
        if p.draw != GREEDY:
            groups.setdefault(p.id, []).append((reflection.reflect(p.completion, _lettered(p)), p.correct))
            clusters[p.id] = p.cluster
    found = reflection.effect(list(groups.values()), list(clusters.values()))
    return {"effect": found and asdict(found)}


def _several(predictions: Sequence[Prediction]) -> dict | None:
    draws: dict[str, list[Prediction]] = {}
    for p in predictions:
        draws.setdefault(p.id, []).append(p)
    k = max(map(len, draws.values()), default=1)
    if k == 1:
        return None
    means = [_mean(p.score for p in group) for group in draws.values()]
    return {
        "k": k,
        "mean": _mean(p.score for p in predictions),
        "interval": list(mean_interval(means, [group[0].cluster for group in draws.values()])),
        "majority": _mean(_majority(group) for group in draws.values()),
        "pass": _mean(any(p.correct for p in group) for group in draws.values()),
    }


def _majority(group: Sequence[Prediction]) -> float:
    # most_common keeps the order of first appearance in a tie
    votes = [(canonical(p.letters, ProblemType(p.problem_type), p.options), p.score) for p in group if p.letters]
    top = Counter(vote for vote, _ in votes).most_common(1)
    return next((score for vote, score in votes if vote == top[0][0]), 0.0)


def _accuracy(predictions: Sequence[Prediction]) -> dict:
    scores, n = [p.score for p in predictions], len(predictions)
    clusters = [p.cluster for p in predictions]
    groups = count(clusters)
    found = {"accuracy": sum(scores) / n, "n": n, "interval": list(mean_interval(scores, clusters))}
    return found | ({"clusters": groups} if groups < n else {})


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)


def compare(base: Sequence[Prediction], final: Sequence[Prediction], draw: str | None = None) -> Paired:
    """Compare the answers of two checkpoints to the same samples; see `statistics.paired`.

    Args:
        base: answers of the first checkpoint.
        final: answers of the second.
        draw: compare this draw; None compares the means of all sampled draws (the greedy draw if there is no other).
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
    return paired([_mean(first[id]) for id in ids], [_mean(second[id]) for id in ids], [clusters[id] for id in ids])


def flips(base: Sequence[Prediction], final: Sequence[Prediction]) -> list[dict]:
    """Samples whose reported answer became right or wrong, with both completions: the lines of flips.jsonl."""
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


def metrics_of_phase(found: dict, where: str) -> dict[str, float]:
    metrics = {
        f"{where}/accuracy": found["accuracy"],
        f"{where}/format": found["format"],
        f"{where}/parse_failure_ratio": found["parse_failures"],
        f"{where}/truncated_ratio": found["truncated"],
        f"{where}/mean_length": found["mean_tokens"],
    }
    if found["greedy_accuracy"] is not None:
        metrics[f"{where}/greedy_accuracy"] = found["greedy_accuracy"]
    if found["positions"] and found["positions"]["distance"] is not None:
        metrics[f"{where}/position_distance"] = found["positions"]["distance"]
    metrics |= {f"{where}/reflection_{name}": found["reflection"][name] for name in reflection.SIGNS}
    if found["samples"]:
        metrics |= {f"{where}/mean_accuracy": found["samples"]["mean"], f"{where}/pass_at_k": found["samples"]["pass"]}
    for variant, ablation in (found.get("ablations") or {}).items():
        if variant != "needs":
            metrics |= {
                f"{where}/{variant}/accuracy": ablation["accuracy"],
                f"{where}/{variant}/drop": ablation["drop"]["difference"],
                f"{where}/{variant}/parse_failure_ratio": ablation["parse_failures"],
            }
    return metrics
