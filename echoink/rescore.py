"""Apply another parser or reward to stored completions, without a model.

    python -m echoink.rescore outputs/tiny/<time>/predictions.jsonl reward.match=exact
    python -m echoink.rescore outputs/tiny/<time>/predictions.jsonl reward.file=mine.py output=rescored.jsonl

Prints the table of the run with the new scores, and how many answers changed. With output= the rescored lines are
written; the file that is read stays as it is.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from echoink.common import cli
from echoink.common.errors import UserError
from echoink.rewards.types import Match


@dataclass
class Reward:
    """The keys of the group `reward` that matter here."""

    match: Match = Match.lenient
    file: str | None = None


@dataclass
class RescoreConfig:
    """`reward.match` and `reward.file` as in training; `output` is a new file."""

    reward: Reward = field(default_factory=Reward)
    output: str | None = None


def rescore(path: Path, match: Match, reward_file: str | None):
    """Predictions before and after.

    Raises:
        UserError: there is no such file, or a line is no prediction.
    """
    from echoink.data.samples import Sample
    from echoink.evaluation.prediction import of_row, rejudged
    from echoink.rewards import custom
    from echoink.rewards.terms import ExtraReward

    path = path / "predictions.jsonl" if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"no such file: {path}", "give the predictions.jsonl of a run")
    before = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        try:
            before += [of_row(json.loads(line))] if line else []
        except (json.JSONDecodeError, TypeError, KeyError) as error:
            raise UserError(f"{path}, line {number} is no prediction: {error}", "it must come from echoink") from error
    if not before:
        raise UserError(f"{path} is empty", "give the predictions.jsonl of a run")
    first = before[0]
    example = Sample(first.id, first.problem, first.options, first.gold, fields=first.fields)
    own = [ExtraReward("custom", custom.load(reward_file, example), 1)] if reward_file else []
    return before, [rejudged(prediction, match, own) for prediction in before]


def main(words: Sequence[str]) -> None:
    """Rescore, print, write."""
    from echoink.common import console
    from echoink.evaluation import metrics, tables
    from echoink.evaluation.prediction import BASE, FINAL, Prediction

    paths = [word for word in words if "=" not in word or Path(word).is_file()]
    others = [word for word in words if word not in paths]
    if len(paths) != 1:
        raise UserError("give one predictions.jsonl", "python -m echoink.rescore <predictions.jsonl> reward.match=…")
    given = cli.settings(RescoreConfig, others)
    before, after = rescore(Path(paths[0]), given.reward.match, given.reward.file)
    groups: dict[str, list[Prediction]] = {}
    for p in after:
        groups.setdefault(p.phase if p.variant == "full" else f"{p.phase} {p.variant}", []).append(p)
    tables.accuracy_table({name: metrics.summarize(group) for name, group in groups.items()})
    changed = sum(old.correct != new.correct for old, new in zip(before, after, strict=True))
    console.say("changed", f"{changed:,} of {len(after):,} answers are judged differently")
    if {BASE, FINAL} <= set(groups):
        base, final = groups[BASE], groups[FINAL]
        found = metrics.compare(base, final)
        low, high = (100 * end for end in found.interval)
        text = f"{100 * found.difference:+.1f} points [{low:+.1f}, {high:+.1f}], {found.test} p = {found.p_value:.2g}"
        console.say("gain", text)
    if given.output:
        target = Path(given.output)
        if target.exists():
            raise UserError(f"{target} is there already", "give a new output=")
        with open(target, "x", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(p), ensure_ascii=False) + "\n" for p in after)


if __name__ == "__main__":
    cli.run(main, cli.help_of(__doc__, RescoreConfig))
