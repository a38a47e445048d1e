"""Apply another parser or reward to stored completions, without a model.

    python -m echoink.rescore outputs/tiny/<time>/predictions.jsonl reward.match=exact
    python -m echoink.rescore outputs/tiny/<time>/predictions.jsonl reward.file=mine.py output=rescored.jsonl

Prints the run's table with the new scores, and how many answers changed. For a reward of your own it also prints how
its values are spread, in how many groups they differ (a group: the draws of one sample, eval.samples=8), how they
correlate with accuracy, and which call took longest. With output= the rescored lines are written there; the file that
is read does not change.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import correlation, fmean

import numpy as np
from omegaconf import OmegaConf

from echoink.common import cli, console
from echoink.common.console import counted, percent
from echoink.common.errors import UserError
from echoink.common.keys import key
from echoink.config.schema import Protocol, RewardFile
from echoink.config.validate import check_reward_files
from echoink.data.samples import Sample
from echoink.evaluation import metrics, tables
from echoink.evaluation.prediction import BASE, FINAL, GREEDY, Prediction, of_row, rejudged, sample_of
from echoink.rewards import custom
from echoink.rewards.terms import ExtraReward
from echoink.rewards.types import Match, OnError
from echoink.run_folder import reader


@dataclass
class RewardKeys:
    """The keys of the group `reward` that matter here."""

    match: Match | None = key("how strictly an answer is read; null: as in the run", None)
    file: str | None = key("a reward of your own, a Python file", None)
    files: list[RewardFile] = key("several of them: [{path: …, name: …}]", list)
    on_error: OnError = key("what happens if a reward fails", OnError.stop)
    max_seconds: float = key("longest time of one call of a reward", 10, gt=0)


@dataclass
class RescoreConfig:
    """Settings of the command; the group `reward` is as in training."""

    reward: RewardKeys = field(default_factory=RewardKeys)
    output: str | None = key("a new file for the judged answers; null: none is written", None)


class Clock:
    """A reward function that records its slowest call."""

    def __init__(self, score: Callable[[str, Sample], float]):
        self._score = score
        self.slowest, self.of = 0.0, ""

    def __call__(self, completion: str, sample: Sample) -> float:
        began = time.perf_counter()
        found = self._score(completion, sample)
        if (took := time.perf_counter() - began) > self.slowest:
            self.slowest, self.of = took, sample.id
        return found


def about(values: Sequence[float], predictions: Sequence[Prediction], clock: Clock) -> Iterator[str]:
    """Lines for the screen: what to know about a user's reward before training with it.

    Args:
        values: the reward's values.
        predictions: the answers that it judged: sampled, with all media given.
        clock: the wrapper that called it.
    """
    least, low, median, high, most = (float(x) for x in np.quantile(values, [0, 0.25, 0.5, 0.75, 1]))
    common = " · ".join(f"{value:g} in {percent(n / len(values))}" for value, n in Counter(values).most_common(3))
    yield (
        f"{counted(len(values), 'answer')}: {least:.3g} to {most:.3g}, median {median:.3g} "
        f"[{low:.3g}, {high:.3g}], mean {fmean(values):.3g} · most often {common}"
    )
    groups: dict[tuple, list[float]] = {}
    for p, value in zip(predictions, values, strict=True):
        groups.setdefault((p.phase, p.id), []).append(value)
    several = [group for group in groups.values() if len(group) > 1]
    if several:
        differ = sum(len(set(group)) > 1 for group in several)
        share = percent(differ / len(several))
        yield f"it differs in {differ:,} of {counted(len(several), 'group')} ({share}): only these give advantages"
    else:
        yield "one answer a sample: evaluate with eval.samples=8 to see in how many groups it differs"
    scores = [p.score for p in predictions]
    if len(set(values)) > 1 and len(set(scores)) > 1:
        yield f"correlation with accuracy {correlation(values, scores):+.2f}"
    else:
        yield "correlation with accuracy: none, one of them never changes"
    yield f"slowest call {1000 * clock.slowest:.1f} ms, sample {clock.of}"


def rescore(path: Path, given: RewardKeys) -> tuple[list[Prediction], list[Prediction], dict[str, Clock]]:
    """Predictions before and after, and the clocks of the user's rewards by name.

    Raises:
        UserError: there is no such file, or a line is no prediction.
    """
    path = path / "predictions.jsonl" if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"no such file: {path}", "give the predictions.jsonl of a run")
    before = []
    match_of = _match_of_phase(path.parent, given.match)
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            before += [of_row(json.loads(line))] if line else []
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines) and isinstance(error, ValueError):  # no JSON, or cut within a character
                console.say("warning", f"the last line of {path} is cut off and left out; was the run killed?")
                break
            raise UserError(f"{path}, line {number} is no prediction: {error}", "it must come from echoink") from error
    if not before:
        raise UserError(f"{path} is empty", "give the predictions.jsonl of a run")
    check_reward_files(given.file, given.files)
    example = sample_of(before[0])
    files = {"custom": given.file} if given.file else {}
    files |= {each.metric_name: each.path for each in given.files}
    clocks = {
        name: Clock(custom.load(file, example, given.on_error, given.max_seconds)) for name, file in files.items()
    }
    own = [ExtraReward(name, clock, 1) for name, clock in clocks.items()]
    return before, [rejudged(each, match_of(each.phase), own) for each in before], clocks


def _match_of_phase(run: Path, given: Match | None) -> Callable[[str], Match]:
    """How to read the answers of a phase: as `given`, else as the run in that folder does, else leniently."""
    if given:
        return lambda phase: given
    file = run / "config.yaml"
    config = reader.configuration(run) if file.is_file() else OmegaConf.create()
    match = Match[OmegaConf.select(config, "reward.match") or "lenient"]
    protocol = Protocol[OmegaConf.select(config, "eval.protocol") or "matched"]
    says = f"as {file} says" if file.is_file() else "because there is no config.yaml beside the file"
    console.say("match", f"{protocol.reads(match).name}, {says}")
    # The development split is always read as training reads.
    return lambda phase: protocol.reads(match) if phase in (BASE, FINAL) else match


def _changed(before: Sequence[Prediction], after: Sequence[Prediction]) -> str:
    """How many answers are judged differently, and in which way."""
    pairs = [*zip(before, after, strict=True)]
    differ = sum((a.score, a.letters, a.format) != (b.score, b.letters, b.format) for a, b in pairs)
    right = sum(b.correct and not a.correct for a, b in pairs)
    wrong = sum(a.correct and not b.correct for a, b in pairs)
    return f"{differ:,} of {len(pairs):,} answers are judged differently: {right:,} became right, {wrong:,} wrong"


def main(words: Sequence[str]) -> None:
    """Rescore, print, write."""
    paths, others = cli.places_and_settings(words)
    if len(paths) != 1:
        raise UserError("give one predictions.jsonl", "python -m echoink.rescore <predictions.jsonl> reward.match=…")
    given = cli.settings(RescoreConfig, others)
    if given.output and Path(given.output).exists():
        raise UserError(f"{given.output} is there already", "give a new output=")
    if given.output and not Path(given.output).parent.is_dir():
        raise UserError(f"no such folder: {Path(given.output).parent}", "make it, or give another output=")
    before, after, clocks = rescore(Path(paths[0]), given.reward)
    groups: dict[str, list[Prediction]] = {}
    for p in after:
        groups.setdefault(p.phase if p.variant == "full" else f"{p.phase} {p.variant}", []).append(p)
    # These are of the development split, which has its own number of draws.
    during = [name for name in groups if name.startswith("step-")]
    found = {name: metrics.summarize(group) for name, group in groups.items()}
    for names in ([name for name in groups if name not in during], during):
        if names:
            tables.accuracy_table({name: found[name] for name in names})
    if during and len(during) < len(groups):
        console.say("", f"the second table is of the development split, {console.counted(len(during), 'evaluation')}")
    console.say("changed", _changed(before, after))
    for name, clock in clocks.items():
        drawn = [p for p in after if p.variant == "full" and p.draw != GREEDY]
        if not drawn:
            console.say("reward", f"{name}: every answer is greedy, so there are no groups to compare it in")
            continue
        values = [p.custom if name == "custom" else p.rewards[name] for p in drawn]
        for number, text in enumerate(about(values, drawn, clock)):
            console.say("" if number else name if len(name) < 10 else "reward", text)
    if {BASE, FINAL} <= set(groups):
        several = found[FINAL]["samples"]
        gained = metrics.compare(groups[BASE], groups[FINAL])
        console.say("gain", tables.gain(gained, several["k"] if several else 1))
        asked = [{p.id for p in groups[name]} for name in (BASE, FINAL)]
        if asked[0] != asked[1]:
            console.say("warning", f"the gain is over the {len(asked[0] & asked[1]):,} samples that both have answered")
    if given.output:
        with open(given.output, "x", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(p), ensure_ascii=False) + "\n" for p in after)


if __name__ == "__main__":
    cli.run(main, cli.help_of(__doc__, RescoreConfig))
