"""Select training questions by difficulty and by the senses they need: `python -m echoink.curate mode=difficulty`.

    python -m echoink.curate mode=difficulty source=data/AVQA_R1 checkpoint=outputs/tiny/<run> output=data/hard
    python -m echoink.curate mode=difficulty source=… checkpoint=… output=… 'needs=[both]' 'pass_rate=[0,0.75]' draws=8
    python -m echoink.curate mode=difficulty … 'settings=[model=qwen2_5_omni_7b,trainer.bf16=true]'

A model answers every training question `draws` times, in full and without each sense (`modality_need.py` has the tests
behind the labels). A question is kept if its share of right answers (if graded, its mean score) lies in `pass_rate`,
its need is among `needs` (an empty list keeps all), and it shares no picture, sound or video with another split. The
output has the official layout; its rows have `need`, by which `dataset.curriculum` orders and filters training, and
`pass_rate`. Options are shuffled (`shuffle=false` leaves them), so that each letter is right equally often among
questions with the same number of options. They keep their order where one refers to others ("both A and B", "none of
the above"). Free-form answers have graded scores and get no label of need: needs=[unlabelled] keeps them.

Selecting by a noisy measure biases it: the kept questions are answered again with other draws, and those numbers are
the ones to report. curation.json counts what was kept and why the rest was dropped; needs.jsonl has the measurement,
needs-afresh.jsonl the second one. A run that was stopped continues where it stopped.
"""

import hashlib
import io
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from echoink.common import cli
from echoink.common.console import counted, progress, say
from echoink.common.errors import UserError
from echoink.common.files import as_json, as_lines, read_json, read_rows, write_aside, write_atomic
from echoink.common.keys import key
from echoink.config.compose import compose
from echoink.config.overrides import quoted
from echoink.config.schema import DatasetConfig
from echoink.data.media_check import MediaInfo
from echoink.data.readers import holds_one_split, open_split
from echoink.data.samples import Dropped, Sample, parse_rows
from echoink.data.splits import further_splits, joined, refuse_too_many
from echoink.evaluation.modality_need import FEWEST, Need
from echoink.media.loaders import digest
from echoink.rewards.parsing import option_letter, option_text
from echoink.rewards.types import ProblemType
from echoink.run_folder.checkpoint import resolve
from echoink.run_folder.folder import take

ABLATIONS = "[no_audio,no_image,text_only,swapped_audio,swapped_image]"
UNLABELLED = "unlabelled"
"""In `needs`: questions that get no label, such as those whose score is graded."""

SPLITS = ("train", "dev", "valid")

SELECTS = ("needs", "pass_rate", "shuffle")
"""Settings that the first measurement does not depend on: changing them does not repeat it."""


OF_COMMAND = {
    **dict.fromkeys(
        ("task", "tracking", "hydra.run.dir", "eval.split", "eval.ablations", "eval.greedy"), "leave it out"
    ),
    "seed": "give seed=",
    "eval.samples": "give draws=",
    "checkpoint": "give checkpoint=",
    "dataset.path": "give source=",
}
"""Keys that the commands set themselves; in `settings` they would replace theirs. Each with the way out."""


@dataclass
class DifficultyConfig:
    """Settings of the command."""

    mode: str = key("this command", "difficulty")
    source: str = key("a dataset's folder")
    checkpoint: str = key("the model that answers: a run folder, a step, a model folder or a hub id")
    output: str = key("the new folder")
    draws: int = key("answers to each question, in full and without each sense", 8)
    needs: list[str] = key(f"labels that are kept: {', '.join(Need.__members__)}, {UNLABELLED}; []: all", ["both"])
    pass_rate: list[float] = key("lowest and highest share of right answers that are kept", [0.0, 0.75])
    seed: int = key("seed of the draws and of the options' order", 0)
    shuffle: bool = key("shuffle the options", True)
    settings: list[str] = key("settings of echoink.train for the answers, such as model=qwen2_5_omni_7b", list)


def main(words: Sequence[str]) -> None:
    """Measure, select, write, measure again, and print what was kept."""
    given = cli.settings(DifficultyConfig, words)
    _check(given)
    output, source = Path(given.output), read_source(dataset(given.source, given.settings))
    if not any(sample.media for sample in source["train"]):
        hint = "mode=traces takes questions without media"
        raise UserError("no training question has a picture, a sound or a video", hint)
    resolve(given.checkpoint)  # a wrong name leaves no folder behind
    work = begin(output, "curation.json", {key: value for key, value in asdict(given).items() if key not in SELECTS})
    say("phase 1", f"every training question is answered {given.draws} times, in full and without each sense")
    measured = _measure(given, given.source, given.seed, work / "first")
    say("phase 2", "looking for files that other splits have too")
    kept, dropped = _select(given, source, measured)
    if not kept:
        reasons = ", ".join(f"{number:,} dropped for {reason}" for reason, number in dropped.most_common())
        raise UserError(
            f"no question is left of {len(measured):,}: {reasons}",
            "the measurement is kept; repeat the command with, for example, needs=[both,undetermined] or needs=[] "
            "(all), pass_rate=[0,1] (all)",
        )
    say("phase 3", f"{len(kept):,} questions and their files are written to {output}")
    labels = {id: {"need": measured[id]["need"], "pass_rate": round(_rate(measured[id]), 4)} for id in kept}
    _forget_another_selection(work, output, {"labels": labels, "shuffle": given.shuffle})
    write_splits(source, output, labels, seed=given.seed, shuffle=given.shuffle)
    say("phase 4", "what was kept is answered again with other draws")
    again = _measure(given, str(output), given.seed + 1, work / "again")
    report = {
        **asdict(given),
        "kept": len(kept),
        "dropped": dict(dropped.most_common()),
        "selected_on": _numbers(measured, kept, given.draws),
        "drawn_afresh": _numbers(again, [id for id in kept if id in again], given.draws),
    }
    for name, found in (("needs.jsonl", measured), ("needs-afresh.jsonl", again)):
        write_atomic(output / name, as_lines(found.values()))
    write_atomic(output / "curation.json", as_json(report))
    shutil.rmtree(work)
    say("kept", f"{len(kept):,} of {len(measured):,} questions")
    for reason, count in dropped.most_common():
        say("", f"{count:,} dropped: {reason}")
    for name in ("selected_on", "drawn_afresh"):
        found = report[name]
        needs = " · ".join(f"{need} {count}" for need, count in found["needs"].items() if count)
        say(name.replace("_", " "), f"right {100 * found['pass_rate']:.1f} % · {needs}")
    say("curated", str(output))


def begin(output: Path, report: str, recipe: dict) -> Path:
    """The folder for unfinished work, new or left by a run that was stopped.

    Args:
        output: the dataset's folder.
        report: the file that is written last.
        recipe: the settings; work that is there must have been made with the same.

    Raises:
        UserError: the output is finished, was begun with another recipe, holds other files, or is in use.
    """
    work = output / ".work"
    if (output / report).is_file():
        raise UserError(f"{output} is finished", "give a new output=")
    begun = (work / "recipe.json").is_file()
    if begun and read_json(work / "recipe.json") != recipe:
        raise UserError(f"{output} was begun with other settings", "give a new output=")
    if not begun and output.is_dir() and any(path != work for path in output.iterdir()):
        raise UserError(f"{output} holds other files", "give a new output=")
    work.mkdir(parents=True, exist_ok=True)
    take(work)
    write_atomic(work / "recipe.json", as_json(recipe))
    return work


def _check(given: DifficultyConfig) -> None:
    if given.draws < FEWEST:
        raise UserError(f"draws={given.draws}: fewer than {FEWEST} give no label", f"give draws={2 * FEWEST}")
    known = [*(need.name for need in Need), UNLABELLED]
    if unknown := [need for need in given.needs if need not in known]:
        raise UserError(f"needs holds {unknown[0]!r}", f"known: {', '.join(known)}")
    if len(given.pass_rate) != 2 or not 0 <= given.pass_rate[0] <= given.pass_rate[1] <= 1:
        raise UserError(f"pass_rate={given.pass_rate} is not a range", "such as pass_rate=[0,0.75]")


def _measure(given: DifficultyConfig, source: str, seed: int, folder: Path) -> dict[str, dict]:
    """What each training question needs and how often it was right with each variant, by id."""
    words = [f"eval.ablations={ABLATIONS}", f"eval.samples={given.draws}", "eval.greedy=false", *given.settings]
    answer_training_split(source, given.checkpoint, seed, folder=folder, words=words)
    (rows,) = folder.glob("needs-*.jsonl")  # of the base, or of another checkpoint
    return {row["id"]: row for row in read_rows(rows)}


def answer_training_split(source: str, checkpoint: str, seed: int, folder: Path, words: Sequence[str]) -> None:
    """Let a model answer every training question, in an evaluation by `echoink.train`.

    It continues where an earlier one stopped. One that has ended is started again: that answers nothing, but refuses
    other data or weights.

    Args:
        source: the dataset.
        checkpoint: the model.
        seed: of the draws.
        folder: of the evaluation.
        words: further words of its command line.

    Raises:
        UserError: the evaluation did not end.
    """
    own = ["task=eval", *_of_source(source), "eval.split=train", f"checkpoint={quoted(checkpoint)}"]
    own += [f"seed={seed}", "tracking=off", f"hydra.run.dir={quoted(folder)}"]
    if cli.train([*own, *words]):
        hint = "start again, with a new output= if the data or the model has changed"
        raise UserError(f"the measurement of {source} did not end", f"see {folder / 'train.log'}; {hint}")


def _rate(row: dict) -> float:
    right, drawn = row["full"]
    return right / drawn


def _forget_another_selection(work: Path, output: Path, selection: dict) -> None:
    """Remove the files and answers of another selection, made by an earlier start with other settings."""
    file = work / "selection.json"
    if file.is_file() and read_json(file) != selection:
        for folder in (work / "again", output / "train"):
            shutil.rmtree(folder, ignore_errors=True)
        (output / "omni_rl_format_train.json").unlink(missing_ok=True)
    write_atomic(file, as_json(selection))


def _select(
    given: DifficultyConfig, splits: Mapping[str, Sequence[Sample]], measured: dict[str, dict]
) -> tuple[list[str], Counter[str]]:
    """Ids that are kept, and counts of the others by reason."""
    low, high = given.pass_rate
    taken = _elsewhere(splits)
    kept, dropped = [], Counter()
    for id, row in measured.items():
        if not low <= _rate(row) <= high:
            dropped["pass rate"] += 1
        elif given.needs and (row["need"] or UNLABELLED) not in given.needs:
            dropped[f"need {row['need'] or UNLABELLED}"] += 1
        elif taken.get(id):
            dropped["media in another split"] += 1
        else:
            kept.append(id)
    return kept, dropped


def _elsewhere(splits: Mapping[str, Sequence[Sample]]) -> dict[str, bool]:
    """For each training question, by id, whether another split has one of its files, or one from the same source."""

    def origins(sample: Sample) -> list[str]:
        return joined(MediaInfo(tuple(map(digest, sample.media.values()))).origins(sample))

    others = {one for name in splits if name != "train" for s in splits[name] for one in origins(s)}
    return {s.id: not others.isdisjoint(origins(s)) for s in progress("digest", None)(splits["train"])}


def dataset(source: str, settings: Sequence[str]) -> DatasetConfig:
    """The dataset's configuration, as the evaluation with these settings reads it.

    Raises:
        UserError: there is no such folder, or the settings replace one of the command's own.
    """
    for word in settings:
        if hint := OF_COMMAND.get(word.partition("=")[0].lstrip("+")):
            raise UserError(f"settings holds {word}, which curate sets itself", hint)
    if not Path(source).exists():
        raise UserError(f"no such dataset: {source}", "curate takes a folder")
    return compose([*_of_source(source), *settings])[0].config.dataset


def _of_source(source: str) -> list[str]:
    return ["dataset=rows", f"dataset.path={quoted(Path(source).resolve())}"]


def read_source(data: DatasetConfig) -> dict[str, list[Sample]]:
    """The samples of every split of a source, by name. Errors in them are raised before a model answers anything.

    Raises:
        UserError: it has no training split, or see `read_samples`.
    """
    if holds_one_split(data.path):
        raise UserError(f"{data.path} holds one split", "give a folder with train.jsonl, and valid.jsonl beside it")
    found = {split: read_samples(data, split) for split in SPLITS}
    if not found["train"]:
        raise UserError(f"{data.path} has no training questions", "curate chooses among those of train")
    for name in further_splits(data):
        found[name] = read_samples(data, "valid", name)
        say("", f"{name} is not written: the output has one validation split")
    return found


def read_samples(data: DatasetConfig, split: str, name: str | None = None) -> list[Sample]:
    """The samples of a split whose files exist; none where there is no such split.

    Args:
        data: the dataset.
        split: train, dev or valid.
        name: what the files call it, see `open_split`; by default a validation split has the name `dataset.split`.

    Raises:
        UserError: more rows are invalid or lack a file than dataset.max_skipped allows.
    """
    name = name or (data.split if split == "valid" else None)
    if not (found := open_split(data.path, split, name)):
        return []
    samples, dropped = parse_rows(found.rows, found.folder, found.where, outside=data.outside)
    files = [(s.id, medium) for s in samples for medium in s.media.values() if isinstance(medium, Path)]
    gone = {id: f"sample {id}: {file} not found" for id, file in files if not file.is_file()}
    dropped += [Dropped(reason, "check the path") for reason in gone.values()]
    samples = [sample for sample in samples if sample.id not in gone]
    refuse_too_many(dropped, len(samples) + len(dropped), data.max_skipped, split)
    if dropped:
        say("", f"{counted(len(dropped), 'row')} of {split} cannot be used and are left out ({dropped[0].reason})")
    return samples


def write_splits(
    splits: Mapping[str, Sequence[Sample]],
    output: Path,
    extra: Mapping[str, dict],
    seed: int = 0,
    shuffle: bool = False,
) -> None:
    """Write the official layout with a copy of every file: the training samples in `extra`, dev and valid whole.

    All rows have the labels that evaluation reads (`Sample.fields`).

    Args:
        splits: from `read_source`.
        output: the new dataset's folder.
        extra: by id of a training sample, further fields of its row.
        seed: of the order of options.
        shuffle: whether the options of training samples are reordered, see `balanced`.
    """
    for split in SPLITS:
        rows, lost, turns, samples = [], 0, Counter(), splits[split]
        for number, sample in enumerate(progress(f"write {split}", len(samples))(samples)):
            if split == "train" and sample.id not in extra:
                continue
            options, solution = sample.options, sample.solution
            moved = shuffle and split == "train" and may_move(sample)
            lost += moved and bool(sample.responses)  # they name the old letters
            if moved:
                options, solution = balanced(sample.id, options, sample.gold, seed=seed, turns=turns)
            path = {kind: _copied(medium, output / split / f"{kind}s", number) for kind, medium in sample.media.items()}
            new = extra[sample.id] if split == "train" else {}
            fields = {key: value for key, value in sample.fields.items() if key not in new}
            # A video without a data_type is used with its own sound; writing a data_type would remove the sound.
            data_type = {} if sample.asks_for_soundtrack else {"data_type": sample.data_type.value}
            rows.append(
                {
                    "problem_id": sample.id,
                    "problem": sample.problem,
                    **data_type,
                    "problem_type": sample.problem_type.value,
                    "options": list(options),
                    "solution": f"<answer>{solution}</answer>",
                    "path": path,
                    **fields,
                    **({"responses": list(sample.responses)} if sample.responses and not moved else {}),
                    **new,
                }
            )
        if lost:
            say("", f"{counted(lost, 'question')} of {split} lost responses: options moved (shuffle=false keeps them)")
        if rows:
            write_atomic(output / f"omni_rl_format_{split}.json", as_json(rows))


_ONE = r"(?:[A-H]|[1-8])"
_OTHERS = re.compile(
    rf"\b(?:above|below|both|neither|{_ONE}\s*(?:,|/|&|\+|and|or|nor|to)\s*{_ONE}|(?:only|options?)\s+{_ONE})\b"
    rf"|\b{_ONE} (?:only|alone)\b|\b(?:first|last|previous|preceding|following|same as)\b"
    r"|\b(?:all|none|any|either) of (?:these|them|the (?:options|others))\b"
    r"|以上|以下|上述|上記|[前后後][两兩二三]|两者|兩者|都|皆|均|全部|[选選][项項]|[仅僅]|只有"
    r"|\b(?:oben|vorstehend|ci-dessus|anterior(?:es)?|acima)\b",
    re.IGNORECASE,
)

_LETTER = re.compile(
    r"(?<![\w'’.])([A-H])(?![\w'’])(?!\s+(?!(?:and|or|nor|but|only|alone|to|as|is)\b)[a-z])"
    r"|(?<![A-Za-z0-9_'’.])([A-H])(?=[^\x00-\u2fff])|(?<=[^\x00-\u2fff])([A-H])(?![A-Za-z0-9_'’])"
)
"""A letter that stands alone, as an option's does, also beside Chinese or Japanese; "A dog" has an article."""


def may_move(sample: Sample) -> bool:
    """Whether its options may be reordered: each has a text, and neither the question nor an option refers to one by
    its place.

    In doubt they stay, which costs nothing.
    """
    texts, letters = [option_text(option) for option in sample.options], {*map(option_letter, sample.options)}
    if sample.problem_type is not ProblemType.multiple_choice or not all(texts):
        return False
    if any(map(_OTHERS.search, texts)):
        return False
    named = (match.group(match.lastindex) for text in (sample.problem, *texts) for match in _LETTER.finditer(text))
    return letters.isdisjoint(named)


def _copied(medium, folder: Path, number: int) -> str:
    """Copy a sample's file, and return its path in the rows."""
    target = folder / (f"sample_{number}" + (medium.suffix if isinstance(medium, Path) else ""))
    folder.mkdir(parents=True, exist_ok=True)
    if not target.exists():  # it may be there from a run that was stopped
        with open(medium, "rb") if isinstance(medium, Path) else io.BytesIO(medium.read()) as content:
            write_aside(target, lambda file: shutil.copyfileobj(content, file))
    return f"{folder.name}/{target.name}"


def balanced(
    id: str, options: Sequence[str], gold: frozenset[str], seed: int, turns: Counter[tuple[int, int]]
) -> tuple[list[str], str]:
    """Options in another order, and their right letters: the first right option gets the letter that was right least
    often so far.

    Args:
        id: of the question; with the seed it decides the order.
        options: with their letters.
        gold: letters of the right ones.
        seed: of the order.
        turns: how often each letter was right, by the number of options; updated here.

    Example: after one question whose A is right, of ("A. dog", "B. cat") with gold A: (["A. cat", "B. dog"], "B").
    """
    words = [(option_text(option), option_letter(option) in gold) for option in options]
    words.sort(key=lambda pair: hashlib.sha256(f"{seed} {id} {pair[0]}".encode()).digest())
    place = min(range(len(words)), key=lambda at: (turns[len(words), at], at))
    first = next(at for at, (_, right) in enumerate(words) if right)
    words[first], words[place] = words[place], words[first]
    turns[len(words), place] += 1
    letters = [chr(ord("A") + at) for at in range(len(words))]
    solution = ", ".join(letter for letter, (_, right) in zip(letters, words, strict=True) if right)
    return [f"{letter}. {word}" for letter, (word, _) in zip(letters, words, strict=True)], solution


def _numbers(measured: dict[str, dict], ids: Sequence[str], draws: int) -> dict:
    """For some questions, the share of right answers in full and without each sense, and the counts of their needs."""
    shares: dict[str, list[float]] = defaultdict(list)
    for id in ids:
        for variant, found in measured[id].items():
            if variant not in ("id", "need"):
                shares[variant].append(found[0] / found[1])
    needs = Counter(measured[id]["need"] for id in ids)
    return {
        "questions": len(ids),
        "draws": draws,
        "pass_rate": sum(shares["full"]) / max(1, len(ids)),
        "without": {name: sum(values) / len(values) for name, values in shares.items() if name != "full"},
        "needs": {need.name: needs[need.name] for need in Need},
    }
