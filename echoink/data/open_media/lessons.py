"""What a model built from parts is taught before GRPO: names of what is heard and seen, then reasoned answers.

Both come from the training side of one split alone: several variants of each recording, and pictures, with their
classes; and questions of the split with a short reasoned answer, as rows with a `response` (docs/supervised.md).
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from scipy.signal import resample_poly

from echoink.common.errors import UserError
from echoink.common.files import as_json, write_atomic
from echoink.media.loaders import digest
from echoink.rewards.parsing import ANSWER, THINK

Row = dict[str, Any]

JOINED = ("first", "several")
"""Forms with two recordings."""
SPEED = (88, 113)
"""Percent of the length; speed and pitch follow."""
LOUDNESS = (0.15, 0.95)
"""Amplitude of the loudest sample."""
NOISE = (-4.0, -2.0)
"""Powers of ten of white noise's standard deviation."""


@dataclass(frozen=True)
class Lessons:
    """What was written."""

    sounds: list[tuple[Path, str]]
    """Variants of recordings, and their classes."""
    pictures: list[tuple[Path, str]]
    answers: Path
    """Folder of the rows with responses."""
    held_sounds: list[tuple[Path, str]]
    """Of the validation side, for measurement: those whose class is learned."""
    held_pictures: list[tuple[Path, str]]

    def says(self) -> str:
        """One line for the screen."""
        heard, seen = ({name for _, name in of} for of in (self.sounds, self.pictures))
        return (
            f"{len(self.sounds):,} sounds of {len(heard)} classes, with variants · "
            f"{len(self.pictures):,} pictures of {len(seen)} classes, with backgrounds"
        )


def write(split: Path, output: Path, copies: int, answers: int, seed: int, bar: Callable) -> Lessons:
    """Write variants of recordings, and the rows with responses in the official layout.

    Args:
        split: `recordings` or `packages` of `data get open_media`.
        output: the folder; rows are always written again, variants unless the same are there. Rows name the split's
            media by absolute paths.
        copies: of each recording; the first is unchanged.
        answers: at most so many questions with a response, and as many rows that name one recording or picture.
        seed: of all draws.
        bar: takes a label and a number of items, returns a progress bar for iterables.

    Raises:
        UserError: the split is not there.
    """
    train, valid = (_rows(split, side) for side in ("train", "valid"))
    rng = np.random.default_rng([seed, 3])
    sounds = _varied(_single(train, "audio", "heard"), split, output / "sounds", copies=copies, rng=rng, bar=bar)
    pictures = [((split / "train" / file).resolve(), name) for file, name in _single(train, "image", "seen").items()]
    named = [
        _caption(sense, *one)
        for sense, of in (("heard", sounds), ("seen", pictures))
        for one in _some(of, answers // 2, rng)
    ]
    told = [{**_placed(row, split, "train"), "response": response(row)} for row in _some(train, answers, rng)]
    for side, rows in (("train", [*told, *named]), ("valid", [_placed(row, split, "valid") for row in valid])):
        numbered = [{**row, "problem_id": number} for number, row in enumerate(rows)]
        (output / f"omni_rl_format_{side}.json").write_text(as_json(numbered), encoding="utf-8")
    held = []
    for medium, field, learned in (("audio", "heard", sounds), ("image", "seen", pictures)):
        known, files = {name for _, name in learned}, _single(valid, medium, field)
        held.append([((split / "valid" / file).resolve(), name) for file, name in files.items() if name in known])
    return Lessons(sounds, pictures, output, *held)


def digest_of(split: Path) -> str:
    """A digest of the questions of a split.

    Raises:
        UserError: the split is not there.
    """
    rows = [_rows(split, side) for side in ("train", "valid")]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def _some(of: Sequence[Any], number: int, rng: np.random.Generator) -> list[Any]:
    return [of[n] for n in sorted(rng.permutation(len(of))[:number])]


def response(row: Row) -> str:
    """A right answer to a question of the set, with what is heard and seen as its reason.

    Example: "<think>I hear: dog. That is B, dog.</think>\\n<answer>B</answer>".
    """
    answer = row["solution"].removeprefix(ANSWER[0]).removesuffix(ANSWER[1])
    options = dict(option.split(". ", 1) for option in row.get("options", ()))
    heard, seen, form = row.get("heard", ""), row.get("seen", ""), row["kind"]
    hear, see = f"I hear: {heard.replace(', ', ', then ')}.", f"I see: {seen}."
    match form:
        case "heard" | "seen":
            thought = f"{hear if form == 'heard' else see} That is {answer}, {options[answer]}."
        case "heard_name" | "seen_name":
            thought = hear if form == "heard_name" else see
        case "pair":
            thought = f"{see} {hear} That is {answer}."
        case "together":
            thought = f"{see} {hear} That is {'the same' if heard == seen else 'not the same'}, so {answer}."
        case "rule":
            shown = "The picture shows it too" if heard == seen else "The picture does not show it"
            thought = f"{hear} {see} {shown}. That is {answer}, {options[answer]}."
        case "first":
            thought = f"{hear} The first is {options[answer]}. That is {answer}."
        case "several":
            thought = f"{hear} Those are {answer}."
        case "count":
            thought = f"I hear: {', '.join([heard] * int(answer))}. That is {answer}."
        case "words":
            thought = f"That is {answer}, {options[answer]}."
        case _:
            raise ValueError(f"no response for questions of the form {form}")
    return f"{THINK[0]}{thought}{THINK[1]}\n{ANSWER[0]}{answer}{ANSWER[1]}"


def vary(samples: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
    """A recording at another speed, with its start cut or delayed, louder or softer, with some noise.

    Args:
        samples: mono, in -1 to 1: [T].
        rate: samples per second.
        rng: of all draws.
    """
    other = resample_poly(samples, int(rng.integers(SPEED[0], SPEED[1] + 1)), 100).astype(np.float32)
    if len(other) > 1.5 * rate:
        other = other[int(rng.integers(len(other) // 4)) :]
    if rng.random() < 0.5:
        other = np.concatenate([np.zeros(int(rng.integers(rate // 2)), np.float32), other])
    other *= rng.uniform(*LOUDNESS) / max(float(np.abs(other).max()), 1e-6)
    noise = rng.normal(0, 10 ** rng.uniform(*NOISE), len(other))
    return np.clip(other + noise, -1, 1).astype(np.float32)


def _rows(split: Path, side: str) -> list[Row]:
    file = split / side / f"omni_rl_format_{side}.json"
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        hint = "make it: python -m echoink.data get open_media, or give a split of it: media=…/recordings"
        raise UserError(f"cannot read {file}: {error}", hint) from error


def _single(rows: Sequence[Row], medium: str, field: str) -> dict[str, str]:
    """Files with a single recording, or pictures, and their classes; files for `count` repeat a recording."""
    return {
        row["path"][medium]: row[field]
        for row in rows
        if medium in row.get("path", {}) and row["kind"] not in (*JOINED, "count")
    }


def _varied(
    sounds: dict[str, str], split: Path, folder: Path, copies: int, rng: np.random.Generator, bar: Callable
) -> list[tuple[Path, str]]:
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "variants.json"
    of = [[file, digest(split / "train" / file), name] for file, name in sounds.items()]
    wanted = {"of": of, "copies": copies, "random": rng.bit_generator.state}
    if record.is_file():
        before = json.loads(record.read_text(encoding="utf-8"))
        there = [(folder.resolve() / file, name) for file, name in before["made"]]
        if before["wanted"] == wanted and all(file.is_file() for file, _ in there):
            rng.bit_generator.state = before["random"]  # as if they had been made now
            return there
    made = []
    for file, name in bar("variants", len(sounds))(sounds.items()):
        samples, rate = soundfile.read(split / "train" / file, dtype="float32")
        for number in range(copies):
            varied = (folder / f"{Path(file).stem}_{number}.flac").resolve()
            soundfile.write(varied, vary(samples, rate, rng) if number else samples, rate, subtype="PCM_16")
            made.append((varied, name))
    told = {"wanted": wanted, "random": rng.bit_generator.state, "made": [(file.name, name) for file, name in made]}
    write_atomic(record, as_json(told))
    return made


def _caption(sense: str, file: Path, name: str) -> Row:
    medium = "audio" if sense == "heard" else "image"
    row = {
        "problem": f"Name what is {sense}.",
        "data_type": medium,
        "problem_type": "free-form",
        "solution": f"{ANSWER[0]}{name}{ANSWER[1]}",
        "path": {medium: str(file)},
        "kind": f"{sense}_name",
        sense: name,
    }
    return {**row, "response": response(row)}


def _placed(row: Row, split: Path, side: str) -> Row:
    path = {medium: str((split / side / file).resolve()) for medium, file in row.get("path", {}).items()}
    return {**row, "path": path}
