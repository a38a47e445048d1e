"""A question about pictures, sounds, videos or text alone: every row of every dataset becomes such a `Sample`.

One row (the fields of HarryHsing/EchoInk's data files):

    {"problem_id": 7, "problem": "What is making the sound?", "data_type": "image_audio",
     "problem_type": "multiple choice", "options": ["A. dog", "B. bell", "C. car", "D. rain"],
     "solution": "<answer>B</answer>", "path": {"image": "images/sample_7.jpg", "audio": "audios/sample_7.wav"},
     "data_source": "OmniInstruct_v1-AVQA"}

`problem_id` may be absent (the row's number from 0 is used), and so may `data_type` (it follows from `path`). A medium
may be bytes: {"bytes": …}, in base64 in JSON. Media may also be in columns of other trainers (`row_layouts`).
`readers` finds the rows; `public_benchmarks` converts the rows of other datasets.
"""

import base64
import binascii
import difflib
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import combinations
from pathlib import Path

from echoink.common.errors import UserError
from echoink.data import row_layouts
from echoink.data.choices import MAX_OPTIONS
from echoink.media import loaders
from echoink.media.loaders import Embedded, Medium
from echoink.rewards.accuracy import problem_with
from echoink.rewards.numbers import plain_number
from echoink.rewards.parsing import ANSWER, option_letter, option_text, parse_answer, parse_letters
from echoink.rewards.text import alike, same
from echoink.rewards.types import NEEDED, OTHER_NEEDS, ProblemType


class DataType(Enum):
    """What a prompt shows besides its text; the values are the official `data_type`s; `media` is what a row must have.

    `video_audio` is a video with a sound, their tokens interleaved in time: its own soundtrack, or the row's `audio`.
    """

    text = "text"
    image = "image"
    audio = "audio"
    image_audio = "image_audio"
    video = "video"
    video_audio = "video_audio"

    @property
    def media(self) -> tuple[str, ...]:
        return {"text": (), "video_audio": ("video",)}.get(self.value, tuple(self.value.split("_")))


MEDIA = ("image", "audio", "video")

SOURCES = {f"{name}_source": name for name in MEDIA}
"""Fields that name what a medium was cut or made from, and the medium."""

_KNOWN = {
    *("problem_id", "problem", "data_type", "problem_type", "options", "solution", "data_source"),
    *("response", "responses"),
}

_EXAMPLES = {
    ProblemType.multiple_choice: "<answer>B</answer>, with several letters <answer>A, C</answer>",
    ProblemType.ocr: "<answer>NO ENTRY</answer>",
    ProblemType.free_form: "<answer>a dog barks</answer>",
    ProblemType.temporal: "<answer>2.5-7</answer> in seconds",
    **dict.fromkeys((ProblemType.numerical, ProblemType.regression, ProblemType.counting), "<answer>4</answer>"),
}

_CONTROL = re.compile(r"<\|\w+\|>")

MOST_OF_A_PATH = 4096
"""Characters; no system accepts a longer path."""

HALF = re.compile("[\ud800-\udfff]")
"""Half of a surrogate pair: JSON can hold it, a UTF-8 file cannot."""


@dataclass(frozen=True)
class Sample:
    """One question. Media are paths (or cells of a table), decoded late, once per prompt.

    Example: `Sample(id="7", problem="What is making the sound?", options=("A. dog", "B. bell"), solution="B",
    image=Path(".../sample_7.jpg"), audio=Path(".../sample_7.wav"), fields={"data_source": "OmniInstruct_v1-AVQA"})`.
    """

    id: str
    problem: str
    options: tuple[str, ...]
    """May be empty where the question is not multiple choice."""
    solution: str
    """The right answer, as it would stand in an answer block."""
    problem_type: ProblemType = ProblemType.multiple_choice
    data_type: DataType = DataType.image_audio
    image: Medium | None = None
    audio: Medium | None = None
    video: Medium | None = None
    fields: dict[str, str] = field(default_factory=dict)
    """The row's further fields, such as `kind`, as texts: lists, objects and fractions as JSON, booleans as True or
    False. Evaluation reports accuracy by them.
    """
    asks_for_soundtrack: bool = False
    """The row names a video and no data_type: its soundtrack is used if there is one, see `with_soundtrack`."""
    notes: tuple[str, ...] = ()
    """What is unused or odd in the row."""
    responses: tuple[str, ...] = ()
    """What a model should say, for task=sft: the row's `response`, a text, or `responses`, a list of texts."""

    @property
    def gold(self) -> frozenset[str]:
        """Letters of the right options of a multiple-choice question."""
        return parse_letters(self.solution, self.options)

    @property
    def media(self) -> dict[str, Medium]:
        """The sample's picture, sound and video by name."""
        return {name: medium for name in MEDIA if (medium := getattr(self, name)) is not None}

    @property
    def sources(self) -> dict[str, str]:
        """What its media were cut or made from, if the row says so: a sound and a picture may share one `video`."""
        return {name: self.fields[key] for key, name in SOURCES.items() if self.fields.get(key)}

    @property
    def places(self) -> dict[str, str]:
        """Where its media are, by name, for people and reports."""
        return {name: str(medium) for name, medium in self.media.items()}


@dataclass(frozen=True)
class Dropped:
    """A row that is not used, and why."""

    reason: str
    hint: str = ""


def parse_rows(
    rows: Iterable[dict | UserError], folder: Path, where: str, limit: int | None = None, outside: Sequence[str] = ()
) -> tuple[list[Sample], list[Dropped]]:
    """The first `limit` samples of a dataset's rows, and the invalid rows among them.

    Args:
        rows: in the form of this module's docstring; an error stands for a row that could not be converted to it.
        folder: where relative paths start; no path may leave it, except into `outside`.
        where: what to call the source in errors.
        limit: None for all.
        outside: further folders that may hold media.
    """
    samples, dropped, ids = [], [], set()
    folders = [folder.resolve(), *(Path(one).resolve() for one in outside)]
    for number, row in enumerate(rows):
        if limit is not None and len(samples) == limit:
            break
        place = f"{where}, row {number + 1}"
        try:
            if isinstance(row, UserError):
                raise UserError(f"{place}: {row.problem}", row.hint)
            sample = _sample(row, number, folders, place)
            if sample.id in ids:
                raise UserError(f"{place}: problem_id {sample.id} occurs more than once")
        except UserError as error:
            dropped.append(Dropped(error.problem, error.hint))
            continue
        ids.add(sample.id)
        samples.append(sample)
    return samples, dropped


_EXAMPLE = "the top of echoink/data/samples.py shows a row"


def _sample(row: dict, number: int, folders: Sequence[Path], where: str) -> Sample:
    if not isinstance(row, dict):
        raise UserError(f"{where}: a row must be an object, not {type(row).__name__}")
    layout = row_layouts.read(row, where)
    row, given = layout.row, layout.media
    if missing := {"problem", "solution"} - row.keys():
        hints = {}
        if "problem" in missing:
            hints |= dict.fromkeys(("question", "query", "prompt"), "call the question problem")
        if "solution" in missing:
            hints |= dict.fromkeys(("answer", "ground_truth"), "call the answer solution, <answer>…</answer>")
            hints["reward_model"] = "reward_model.ground_truth becomes solution, <answer>…</answer>"
        hint = ", ".join(dict.fromkeys(text for key, text in hints.items() if key in row))
        if {"question", "options", "answer", "source"} <= row.keys():
            hint = "rows of OmniInstruct-v1 become ours by python -m echoink.curate"
        raise UserError(f"{where}: no field {', '.join(sorted(missing))}", hint or _EXAMPLE)
    for key, value in row.items():
        if isinstance(value, str) and HALF.search(f"{key}{value}"):
            raise UserError(f"{where}: {key!a} holds half a character", "rewrite the text in UTF-8")
    id = row.get("problem_id", number)
    id = f"row-{number}" if isinstance(id, str) and not id.strip() else id  # not another row's number
    where = f"{where} (problem_id {id})"
    if not isinstance(row["problem"], str) or not row["problem"].strip():
        raise UserError(f"{where}: problem must be a text", "it is the question")
    problem_type = _one_of(ProblemType, row.get("problem_type", "multiple choice"), f"{where}: problem_type")
    options = _options(row.get("options") or [], problem_type, where)
    _check_chance(row.get("chance"), where)
    for key in SOURCES:
        if not isinstance(row.get(key, ""), str | None):
            raise UserError(f"{where}: {key} must be a text", "if a file joins several, name one")
    check_text([row["problem"], *options], where)
    solution = parse_answer(row["solution"]) if isinstance(row["solution"], str) else None
    hint = f"a solution of type {problem_type.value} looks like {_EXAMPLES[problem_type]}"
    if solution is None:
        raise UserError(f"{where}: the solution {row['solution']!r} has no answer in {ANSWER[0]}{ANSWER[1]}", hint)
    if wrong := problem_with(solution, problem_type, options):
        raise UserError(f"{where}: {wrong}", hint)
    data_type = _data_type(row, given, where)
    if absent := [name for name in data_type.media if name not in given]:
        raise UserError(
            f"{where}: data_type {data_type.value} needs path to hold {' and '.join(f'{name!r}' for name in absent)}",
            "give the file's path, or another data_type",
        )
    wanted = ("audio", "video") if data_type is DataType.video_audio else data_type.media
    unused = [f"{name} is not used by data_type {data_type.value}" for name in given if name not in wanted]
    responses, odd = _responses(row)
    odd += (*_odd_options(options), *_odd_need(row.get("need")), *_odd_number(solution, problem_type))
    return Sample(
        id=str(id),
        problem=row["problem"].strip(),
        options=options,
        solution=solution,
        problem_type=problem_type,
        data_type=data_type,
        **{name: _medium(given[name], folders, f"{where}, {name}") for name in wanted if name in given},
        asks_for_soundtrack="data_type" not in row and data_type is DataType.video,
        notes=(*layout.notes, *unused, *odd),
        fields={key: _field(value) for key, value in row.items() if _is_field(key, value)},
        responses=responses,
    )


def _responses(row: dict) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A row's responses; a note, not an error, if the field holds something else: only task=sft needs responses."""
    given = row.get("responses", row.get("response"))
    if given is None:
        return (), ()
    texts = [given] if isinstance(given, str) else given
    try:
        if not isinstance(texts, list | tuple) or not all(isinstance(text, str) and text.strip() for text in texts):
            raise UserError("a response must be a text that is not empty")
        check_text(texts, "a response")
    except UserError as error:
        return (), (f"its response is not used: {error.problem}",)
    return tuple(dict.fromkeys(texts)), ()


def with_any_solution(row: object) -> object:
    """A row for prediction only: an example of its type, which nothing reads, replaces its solution."""
    if not isinstance(row, dict):
        return row
    kind = next((kind for kind in ProblemType if kind.value == row.get("problem_type", "multiple choice")), None)
    example = _EXAMPLES.get(kind, "<answer>B</answer>")
    return row | {"solution": example[: example.index(ANSWER[1]) + len(ANSWER[1])]}


def _check_chance(chance: object, where: str) -> None:
    """Raises `UserError` unless `chance` is absent or in (0, 1], as a number or a text."""
    try:
        good = chance is None or 0 < float(chance) <= 1
    except (TypeError, ValueError):
        good = False
    if not good or isinstance(chance, bool):
        raise UserError(f"{where}: chance {chance!r} is not a probability", "that a guess is right, in (0, 1]")


def _is_field(key: str, value: object) -> bool:
    """Whether a field is one of the row's own, or `data_source`."""
    return value is not None and (key == "data_source" or key not in _KNOWN)


def _field(value: object) -> str:
    """A field as a text. What JSON cannot hold, such as a table's dates, is written as Python does."""
    if isinstance(value, float | list | tuple | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def check_text(texts: Iterable[str], where: str) -> None:
    """Raises `UserError` if a text holds half a character or a control token, such as a picture's placeholder."""
    for text in texts:
        if HALF.search(text):
            raise UserError(f"{where}: a text holds half a character", "rewrite it in UTF-8")
        if found := _CONTROL.search(text):
            raise UserError(
                f"{where}: a text holds {found.group(0)}, which the model takes for structure", "rephrase it"
            )


def _one_of(kind: type[Enum], value: object, where: str) -> Enum:
    try:
        return kind(value)
    except ValueError:
        names = [str(member.value) for member in kind]
        close = difflib.get_close_matches(str(value).lower().replace("_", " "), names, 1, 0.75)
        meant = f"did you mean {close[0]!r}? " if close else ""
        raise UserError(f"{where} {value!r} is not known", f"{meant}known: {', '.join(names)}") from None


def _odd_options(options: Sequence[str]) -> tuple[str, ...]:
    texts = [option_text(option) for option in options]
    if options and not any(texts):
        return ()  # letters alone: a picture may show the options
    pairs, odd = list(combinations(filter(None, texts), 2)), ()
    if any(alike(*pair) for pair in pairs):
        odd = ("two options are the same",)
    elif any(same(*pair) for pair in pairs):
        odd = ("two options differ in case, blanks or punctuation alone",)
    return (*odd, "an option is empty") if "" in texts else odd


def _odd_need(need: object) -> tuple[str, ...]:
    """A note on a `need` that nothing reads."""
    if (not need and str(need) != "0") or need in (*NEEDED, *OTHER_NEEDS):
        return ()
    meant = str(need).strip().lower()
    return (
        f"need {need!r} is not read: " + (f"it is {meant!r}" if meant in NEEDED else f"known: {', '.join(NEEDED)}"),
    )


def _odd_number(solution: str, problem_type: ProblemType) -> tuple[str, ...]:
    if problem_type is ProblemType.numerical and round(number := plain_number(solution), 2) == 0 != number:
        return (f"the answer {solution} is rounded to two decimals: any answer near 0 is right",)
    return ()


def _options(options: object, problem_type: ProblemType, where: str) -> tuple[str, ...]:
    if not isinstance(options, list | tuple) or not all(isinstance(option, str) for option in options):
        raise UserError(f"{where}: options must be a list of texts", 'such as ["A. a cat", "B. a dog"]')
    if problem_type is not ProblemType.multiple_choice and not options:
        return ()
    if not options:
        others = ", ".join(kind.value for kind in ProblemType if kind is not ProblemType.multiple_choice)
        hint = f'give options ["A. …", "B. …"], or a problem_type without them: {others}'
        raise UserError(f"{where}: a multiple choice question without options", hint)
    if not 2 <= len(options) <= MAX_OPTIONS:
        raise UserError(f"{where}: options must be a list of at least two texts, at most {MAX_OPTIONS}")
    for place, option in enumerate(options):
        letter = chr(ord("A") + place)
        if option_letter(option) != letter:
            bare = re.sub(r"^\s*\(?[A-Za-z0-9][.):]\s*", "", option).strip()
            hint = f'write "{letter}. {bare}"' if bare else "it is empty: remove it"
            hint = f'write "{letter}."' if option.strip() == letter else hint
            if option_letter(option) in (chr(ord("A") + other) for other in range(len(options))):
                hint = "put the options in the order of their letters, or change the solution with them"
            raise UserError(f"{where}: option {place + 1} must start with {letter}., and is {option!r}", hint)
    return tuple(options)


def _data_type(row: dict, given: dict, where: str) -> DataType:
    if "data_type" in row:
        return _one_of(DataType, row["data_type"], f"{where}: data_type")
    found = tuple(name for name in MEDIA if name in given)
    kinds = {("audio", "video"): DataType.video_audio} | {kind.media: kind for kind in reversed(DataType)}
    if found not in kinds:
        raise UserError(f"{where}: no data_type has {' with '.join(found)}", "give data_type and path")
    return kinds[found]


def _of_base64(text: str) -> bytes:
    """The bytes of a text in base64, also of the kind for addresses and with line ends."""
    return base64.b64decode("".join(text.split()).translate(str.maketrans("-_", "+/")), validate=True)


def _medium(value: object, folders: Sequence[Path], where: str) -> Medium:
    if isinstance(value, Embedded):
        return value
    if isinstance(value, dict) and value.get("bytes") is not None:
        content = value["bytes"]
        try:
            content = _of_base64(content) if isinstance(content, str) else bytes(content)
        except (binascii.Error, ValueError, TypeError) as error:
            raise UserError(f"{where}: bytes are not base64: {error}") from error
        return Embedded(where, lambda: content)
    if isinstance(value, bytes):
        return Embedded(where, lambda: value)
    if isinstance(value, dict) and "array" in value:
        raise UserError(
            f"{where} is a decoded sound", "store the file's bytes, or cast the column to Audio(decode=False)"
        )
    if isinstance(value, dict):
        keys = ("path", where.rpartition(", ")[2])  # {"image": "a.jpg"} in a column of pictures
        if (found := next((value[key] for key in keys if value.get(key) is not None), None)) is None:
            names = sorted(str(key) for key, each in value.items() if each is not None)
            held = f"holds {', '.join(names)}, and no path" if names else "is an empty object"
            raise UserError(f"{where} {held}", 'a medium is a path, {"path": …} or {"bytes": …}')
        value = found
    if not isinstance(value, str):
        raise UserError(f"{where}: {value!r} is not a path", "a medium is one path, as a text")
    if scheme := re.match(r"(\w{2,})://", value):
        hint = "write the path without file://" if scheme.group(1) == "file" else "download the file and name its path"
        raise UserError(f"{where}: {value[:80]} is an address, and files are read from the disk", hint)
    if value.startswith("data:") or len(value) > MOST_OF_A_PATH:
        raise UserError(f"{where}: {value[:40]!r}… is not a path", 'bytes in JSON are {"bytes": "<base64>"}')
    try:
        path = (folders[0] / value).resolve() if "\0" not in value and not HALF.search(value) else None
        if path is not None and os.path.islink(path):  # Python 3.13 leaves a circle unresolved, older versions raise
            raise OSError("links in a circle")
    except (OSError, RuntimeError) as error:  # links in a circle
        raise UserError(f"{where}: the path {value!r} leads nowhere: {error}", "fix the link") from error
    if path is None or not any(path.is_relative_to(folder) for folder in folders):
        if path is not None and not os.path.isabs(value) and ".." not in Path(value).parts:
            raise UserError(
                f"{where}: the path {value!r} is a link to {path}, outside of the dataset folder {folders[0]}",
                f"'dataset.outside=[{path.parent}]' allows it",
            )
        raise UserError(
            f"{where}: the path {value!r} leaves the dataset folder {folders[0]}",
            "files must be in it, or in a folder that dataset.outside names",
        )
    return path


def with_soundtrack(sample: Sample, has_sound: bool, wanted: bool = True) -> Sample:
    """The sample after its file was read: a video keeps its own sound if it has one and the row names no data_type.

    Args:
        sample: any.
        has_sound: whether its video has a sound track.
        wanted: `dataset.soundtrack`.
    """
    left_out = sample.data_type is DataType.video and has_sound
    if sample.asks_for_soundtrack and left_out and wanted:
        return replace(sample, data_type=DataType.video_audio, asks_for_soundtrack=False)
    if left_out:
        key = "dataset.soundtrack=false" if sample.asks_for_soundtrack else "data_type video"
        return replace(sample, notes=(*sample.notes, f"the video's sound is left out ({key})"))
    return sample


def load_sound(sample: Sample, max_seconds: float) -> loaders.Sound | None:
    """The sound of a sample: its file, or its video's soundtrack where the data type includes it."""
    if sample.audio is not None and sample.audio != sample.video:
        return loaders.load_sound(sample.audio, max_seconds)
    if sample.data_type is DataType.video_audio or sample.audio is not None:
        return loaders.load_soundtrack(sample.video, max_seconds)
    return None


def fingerprint(samples: Sequence[Sample]) -> str:
    """A short digest of the questions, their answers and their files' names, for the record of a run."""
    lines = (
        f"{s.id}\t{s.problem}\t{s.options}\t{s.solution}\t{[Path(str(medium)).name for medium in s.media.values()]}"
        + (f"\t{s.responses}" if s.responses else "")
        for s in samples
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def answer_positions(samples: Sequence[Sample]) -> dict[str, float]:
    """Share of right answers at each letter of the questions with options."""
    return shares(sample.gold for sample in samples if sample.problem_type is ProblemType.multiple_choice)


def shares(answers: Iterable[Collection[str]]) -> dict[str, float]:
    """Share of each letter; each letter of an answer with n letters counts 1/n."""
    counts: Counter[str] = Counter()
    for letters in answers:
        for letter in letters:
            counts[letter] += 1 / len(letters)
    total = sum(counts.values())
    return {letter: counts[letter] / total for letter in sorted(counts)}
