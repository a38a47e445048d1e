"""Responses for a supervised stage, from a model's own right answers: `python -m echoink.curate mode=traces`.

    python -m echoink.curate mode=traces source=data/AVQA_R1 checkpoint=outputs/tiny/<run> output=data/taught
    python -m echoink.curate mode=traces source=… checkpoint=… output=… draws=16 keep=4 order=diverse
    python -m echoink.train task=sft dataset=rows dataset.path=data/taught

A model answers every training question `draws` times. Up to `keep` answers that are right, well-formed and complete
become the question's `responses`: the shortest, or the most diverse (the shortest, then each time the one whose words
are farthest from all chosen ones). A question without such an answer is left out; so easy questions are taught, and
hard ones remain for GRPO. The other splits are written unchanged. traces.json counts the questions by their number of
such answers. A run that was stopped continues where it stopped.
"""

import shlex
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path

from echoink.common import cli
from echoink.common.console import say
from echoink.common.errors import UserError
from echoink.common.files import as_json, read_rows, write_atomic
from echoink.common.keys import key
from echoink.config.overrides import quoted
from echoink.curate.difficulty import answer_training_split, begin, dataset, read_source, write_splits
from echoink.run_folder.checkpoint import resolve
from echoink.run_folder.folder import PREDICTIONS


class Order(Enum):
    shortest = "shortest"
    diverse = "diverse"


@dataclass
class TracesConfig:
    """Settings of the command."""

    mode: str = key("this command", "traces")
    source: str = key("a dataset's folder")
    checkpoint: str = key("the model that answers: a run folder, a step, a model folder or a hub id")
    output: str = key("the new folder")
    draws: int = key("answers to each question", 8)
    keep: int = key("most responses of a question", 4)
    order: Order = key("which responses are kept first", Order.shortest)
    seed: int = key("seed of the draws", 0)
    settings: list[str] = key("settings of echoink.train for the answers, such as model=qwen2_5_omni_7b", list)


def main(words: Sequence[str]) -> None:
    """Let the model answer, choose responses, write the dataset, and print what was kept."""
    given = cli.settings(TracesConfig, words)
    output, recipe = Path(given.output), asdict(given) | {"order": given.order.name}
    if min(given.draws, given.keep) < 1:
        raise UserError("draws and keep are at least 1", "such as draws=8 keep=4")
    source = read_source(dataset(given.source, given.settings))
    resolve(given.checkpoint)  # a wrong name leaves no folder behind
    work = begin(output, "traces.json", recipe)
    say("phase 1", f"every training question is answered {given.draws} times")
    settings = [f"eval.samples={given.draws}", "eval.greedy=false", "eval.ablations=[]", *given.settings]
    answer_training_split(given.source, given.checkpoint, given.seed, folder=work / "answers", words=settings)
    chosen, counts = _choose(work / "answers", given)
    if not chosen:
        raise UserError(
            f"no question of {counts.total():,} has a right, well-formed answer",
            "a stronger checkpoint=, or more draws=",
        )
    say("phase 2", f"{len(chosen):,} questions and their files are written to {output}")
    write_splits(source, output, {id: {"responses": texts} for id, texts in chosen.items()})
    kept = sum(map(len, chosen.values()))
    report = {**recipe, "questions": len(chosen), "responses": kept, "right_answers": dict(sorted(counts.items()))}
    write_atomic(output / "traces.json", as_json(report))
    shutil.rmtree(work)
    say("kept", f"{len(chosen):,} of {counts.total():,} questions, {kept:,} responses")
    say("", f"{counts[0]:,} dropped: no right, well-formed answer among {given.draws}")
    place = shlex.quote(f"dataset.path={quoted(output)}")
    say("train", f"python -m echoink.train task=sft dataset=rows {place}")


def _choose(answers: Path, given: TracesConfig) -> tuple[dict[str, list[str]], Counter[int]]:
    """Responses by question, and the number of questions by their number of right answers."""
    right: dict[str, list[str]] = {}
    for row in read_rows(answers / PREDICTIONS):
        found = right.setdefault(row["id"], [])
        if row["correct"] and row["format"] and not row["truncated"]:
            found.append(row["completion"].strip())
    counts = Counter(len(texts) for texts in right.values())
    pick = diverse if given.order is Order.diverse else shortest
    return {id: pick(texts, given.keep) for id, texts in right.items() if texts}, counts


def shortest(texts: Sequence[str], count: int) -> list[str]:
    """The shortest different ones."""
    return sorted(dict.fromkeys(texts), key=len)[:count]


def diverse(texts: Sequence[str], count: int) -> list[str]:
    """The shortest, then each time the one that is the farthest from those chosen (Jaccard distance of their words)."""
    left = sorted(dict.fromkeys(texts), key=len)
    words = {text: set(text.split()) for text in left}

    def apart(one: str, other: str) -> float:
        return 1 - len(words[one] & words[other]) / len(words[one] | words[other])

    chosen = [left.pop(0)]
    while left and len(chosen) < count:
        chosen.append(left.pop(max(range(len(left)), key=lambda at: min(apart(left[at], one) for one in chosen))))
    return chosen
