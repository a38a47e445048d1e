"""One evaluated answer: `Prediction`, as `predictions.jsonl` keeps it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from echoink.common.clusters import Clusters
from echoink.data.samples import DataType, Sample
from echoink.rewards.accuracy import accuracy_reward, has_answer
from echoink.rewards.format import format_reward
from echoink.rewards.parsing import parse_answer, read_letters
from echoink.rewards.terms import ExtraReward
from echoink.rewards.types import Match, ProblemType

SAMPLED, GREEDY = "sampled", "greedy"

BASE, FINAL = "base", "final"


def draw_names(samples: int, greedy: bool) -> list[str]:
    """Names of an evaluation's draws: "sampled", "sampled-2", …, "greedy". The first does not depend on the rest."""
    return [SAMPLED, *(f"{SAMPLED}-{number}" for number in range(2, samples + 1)), *([GREEDY] if greedy else [])]


def number_of(draw: str) -> int:
    """A number of its own for each of `draw_names`: 0, then 2, 3, …, and 1 for "greedy"."""
    return {SAMPLED: 0, GREEDY: 1}[draw] if draw in (SAMPLED, GREEDY) else int(draw.removeprefix(f"{SAMPLED}-"))


@dataclass(frozen=True)
class Prediction:
    """One answer to one sample: a line of predictions.jsonl, with everything that another parser or reward needs."""

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
    """Content of the answer block; None if it cannot be parsed."""
    letters: str
    """What was read: the letters of a multiple-choice answer, else the answer; empty: nothing was, a parse failure."""
    gold: str
    score: float
    """The accuracy reward, in [0, 1]."""
    correct: bool
    """Whether the score is 1."""
    format: bool
    custom: float | None
    """The reward of reward.file, if there is one."""
    tokens: int
    truncated: bool
    cluster: Clusters
    """Cluster names (`Splits.clusters`): samples that share media share a name. Intervals and tests count clusters."""
    fields: dict[str, str]
    rewards: dict[str, float] = field(default_factory=dict)
    """Other rewards by name, see `rewards.terms`."""
    media: dict[str, str] = field(default_factory=dict)
    """Where the sample's picture, sound and video are: file paths, or names of embedded media."""


def of_row(row: dict) -> Prediction:
    """A line of predictions.jsonl."""
    cluster = row["cluster"] if isinstance(row["cluster"], str) else tuple(row["cluster"])
    return Prediction(**{**row, "options": tuple(row["options"]), "cluster": cluster})


def judged(text: str, sample: Sample, match: Match, thinks: bool, extra_rewards: Sequence[ExtraReward] = ()) -> dict:
    """Judge a completion: the fields of a `Prediction` that a parser or a reward decides."""
    answer = parse_answer(text)
    choice = sample.problem_type is ProblemType.multiple_choice
    score = accuracy_reward(text, sample.problem_type, sample.options, solution=sample.solution, match=match)
    if choice:
        understood = ", ".join(sorted(read_letters(text, sample.options, match)))
    else:
        understood = answer if has_answer(text, sample.problem_type, sample.options, match) else ""
    extra = {each.name: each.score(text, sample) for each in extra_rewards}
    return {
        "thinks": thinks,
        "answer": answer,
        "letters": understood,
        "score": score,
        "correct": score == 1,
        "format": bool(format_reward(text, thinks)),
        "custom": extra.pop("custom", None),
        "rewards": extra,
    }


def sample_of(prediction: Prediction) -> Sample:
    """The sample that was answered, restored from its line."""
    return Sample(
        id=prediction.id,
        problem=prediction.problem,
        options=prediction.options,
        solution=prediction.gold,
        problem_type=ProblemType(prediction.problem_type),
        data_type=DataType(prediction.data_type),
        fields=prediction.fields,
        **{kind: Path(place) for kind, place in prediction.media.items()},
    )


def rejudged(prediction: Prediction, match: Match, extra_rewards: Sequence[ExtraReward]) -> Prediction:
    """A stored answer judged by another parser or reward, without a model. Rewards that are not given stay."""
    sample, text, thinks = sample_of(prediction), prediction.completion, prediction.thinks
    says = judged(text, sample, match, thinks=thinks, extra_rewards=extra_rewards)
    if says["custom"] is None:
        says["custom"] = prediction.custom
    return replace(prediction, **says | {"rewards": prediction.rewards | says["rewards"]})
