"""A question about a picture and a sound, and the reader of the official AVQA-R1-6K layout.

    <dataset.path>/
      omni_rl_format_train.json     a list of rows (below); the synthetic set adds omni_rl_format_dev.json
      omni_rl_format_valid.json
      train/images/sample_7.jpg     the rows' paths start at their split's folder
      train/audios/sample_7.wav

One row (the fields of HarryHsing/EchoInk's data files):

    {"problem_id": 7, "problem": "What is making the sound?", "data_type": "image_audio",
     "problem_type": "multiple choice", "options": ["A. dog", "B. bell", "C. car", "D. rain"],
     "solution": "<answer>B</answer>", "path": {"image": "images/sample_7.jpg", "audio": "audios/sample_7.wav"},
     "data_source": "OmniInstruct_v1-AVQA"}
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from echoink import media
from echoink.errors import UserError
from echoink.rewards import option_letter, parse_answer, parse_letters

OFFICIAL_ROOTS = ("", "AVQA_R1", "AVQA-R1-6K/AVQA_R1")
"""Where the official archive may have put the split folders below `dataset.path`."""

_KNOWN_KEYS = {"problem_id", "problem", "data_type", "problem_type", "options", "solution", "path", "data_source"}


@dataclass(frozen=True)
class Sample:
    """One question. Media are paths: they are decoded late, once per prompt.

    Example: `Sample(id="7", problem="What is making the sound?", options=("A. dog", "B. bell"), gold=frozenset("B"),
    image=Path(".../sample_7.jpg"), audio=Path(".../sample_7.wav"), fields={"data_source": "OmniInstruct_v1-AVQA"})`.
    """

    id: str
    problem: str
    options: tuple[str, ...]
    gold: frozenset[str]
    """Letters of the right options."""
    image: Path
    audio: Path
    fields: dict[str, str] = field(default_factory=dict)
    """Further scalar fields of the row, such as `kind`; evaluation reports accuracy by them."""


def read_split(root: Path, split: str, limit: int | None = None) -> list[Sample]:
    """Read one split of a dataset folder in the official layout.

    Raises:
        UserError: the folder or its JSON is missing or unreadable, or a row is not a valid multiple-choice question.
    """
    if not root.is_dir():
        raise UserError(f"dataset folder not found: {root}", "set dataset.path to the folder that holds the splits")
    candidates = [root / sub / f"omni_rl_format_{split}.json" for sub in OFFICIAL_ROOTS]
    candidates += [root / sub / split / f"omni_rl_format_{split}.json" for sub in OFFICIAL_ROOTS]
    index = next((path for path in candidates if path.is_file()), None)
    if index is None:
        raise UserError(
            f"no omni_rl_format_{split}.json in {root}",
            f"dataset.path must hold the official layout: omni_rl_format_{split}.json beside the folder {split}/",
        )
    try:
        rows = json.loads(index.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{index} is not valid JSON: {error}", "restore the file from its source") from error
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{index} must hold a list of at least one row")
    folder = index.parent if index.parent.name == split else index.parent / split
    samples = [_sample(row, folder.resolve(), f"{index}, row {number}") for number, row in enumerate(rows)]
    repeated = [id for id, count in Counter(sample.id for sample in samples).items() if count > 1]
    if repeated:
        raise UserError(f"{index}: problem_id {repeated[0]} occurs more than once")
    return samples[:limit]


def _sample(row: dict, folder: Path, where: str) -> Sample:
    if not isinstance(row, dict):
        raise UserError(f"{where}: a row must be an object, not {type(row).__name__}")
    missing = {"problem_id", "problem", "options", "solution", "path"} - row.keys()
    if missing:
        raise UserError(f"{where}: no field {', '.join(sorted(missing))}")
    where = f"{where} (problem_id {row['problem_id']})"
    if row.get("problem_type", "multiple choice") != "multiple choice":
        raise UserError(f"{where}: problem_type {row['problem_type']!r} is not known", "known: multiple choice")
    if row.get("data_type", "image_audio") != "image_audio":
        raise UserError(f"{where}: data_type {row['data_type']!r} is not known", "known: image_audio")
    options = row["options"]
    if not isinstance(options, list) or len(options) < 2 or not all(isinstance(option, str) for option in options):
        raise UserError(f"{where}: options must be a list of at least two texts")
    letters = [option_letter(option) for option in options]
    expected = [chr(ord("A") + position) for position in range(len(options))]
    if letters != expected:
        raise UserError(f"{where}: options must start with {', '.join(f'{letter}.' for letter in expected)} in order")
    gold = parse_letters(parse_answer(row["solution"]) or "", options)
    if not gold:
        raise UserError(
            f"{where}: the answer {row['solution']!r} is not among the options {', '.join(letters)}",
            'a solution reads "<answer>B</answer>", several letters "<answer>A, C</answer>"',
        )
    if not isinstance(row["path"], dict) or not {"image", "audio"} <= row["path"].keys():
        raise UserError(f'{where}: path must hold "image" and "audio"')
    return Sample(
        id=str(row["problem_id"]),
        problem=str(row["problem"]).strip(),
        options=tuple(options),
        gold=gold,
        image=_inside(folder, row["path"]["image"], where),
        audio=_inside(folder, row["path"]["audio"], where),
        fields={
            key: str(value)
            for key, value in row.items()
            if key == "data_source" or (key not in _KNOWN_KEYS and isinstance(value, str | int | bool))
        },
    )


def _inside(folder: Path, relative: str, where: str) -> Path:
    path = (folder / relative).resolve() if isinstance(relative, str) and "\0" not in relative else None
    if path is None or not path.is_relative_to(folder):
        raise UserError(f"{where}: the path {relative!r} leaves the dataset folder {folder}")
    return path


def check_media(
    samples: Sequence[Sample],
    max_seconds: float,
    progress: Callable[[Iterable], Iterable] = iter,
) -> None:
    """Decode every picture and sound once, so that a broken file is named before anything expensive starts.

    Raises:
        UserError: naming the sample and the file.
    """

    def check(sample: Sample) -> None:
        try:
            media.load_image(sample.image)
            media.load_audio(sample.audio, max_seconds)
        except UserError as error:
            raise UserError(f"sample {sample.id}: {error.problem}", error.hint) from error

    with ThreadPoolExecutor() as pool:
        for _ in progress(pool.map(check, samples)):
            pass


def fingerprint(samples: Sequence[Sample]) -> str:
    """A short digest of the questions, their answers and their files' names, for the record of a run."""
    lines = (f"{s.id}\t{s.problem}\t{s.options}\t{sorted(s.gold)}\t{s.image.name}\t{s.audio.name}" for s in samples)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def answer_positions(samples: Sequence[Sample]) -> dict[str, float]:
    """Share of right answers at each letter; a sample with two right letters counts half for each."""
    counts: Counter[str] = Counter()
    for sample in samples:
        for letter in sample.gold:
            counts[letter] += 1 / len(sample.gold)
    return {letter: counts[letter] / len(samples) for letter in sorted(counts)}
