"""What a model that was put together is taught before GRPO: names of what is heard and seen, then reasoned answers.

Both are made of the training side of one split alone, as rows with a `response` (docs/supervised.md).

    captions/   every recording, several times varied, and every picture, with its class
    answers/    questions of the split, each with a short reasoned answer
"""

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from scipy.signal import resample_poly

from echoink.common.errors import UserError
from echoink.common.files import as_json
from echoink.rewards.parsing import ANSWER, THINK

Row = dict[str, Any]

JOINED = ("first", "several")
"""Forms whose recordings are two."""
SPEED = (88, 113)
"""In percent; the pitch follows."""
LOUDNESS = (0.15, 0.95)
"""Of the loudest sample."""
NOISE = (-4.0, -2.0)
"""Powers of ten of white noise's standard deviation."""


def write(split: Path, output: Path, copies: int, answers: int, seed: int, bar: Callable) -> list[tuple[str, str]]:
    """Both folders, in the official layout.

    Args:
        split: `recordings` or `packages` of `data get open_media`.
        output: a new folder. Rows of the split's own media name them by their absolute paths.
        copies: of each recording, the first as it is.
        answers: rows of `answers/`.
        seed: of all draws.
        bar: makes a progress bar over an iterable, of a label and a number of items.

    Returns:
        What was made, as lines for the screen: labels and texts.

    Raises:
        UserError: the split is not there.
    """
    train, valid = (_rows(split, side) for side in ("train", "valid"))
    part = output.with_name(f".{output.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    rng = np.random.default_rng([seed, 3])
    sounds, pictures = _single(train, "audio", "heard"), _single(train, "image", "seen")
    captions = _sounds(sounds, split, part / "captions" / "train", copies, rng, bar)
    captions += [_caption("seen", name, _absolute(split, "train", file)) for file, name in pictures.items()]
    chosen = rng.permutation(len(train))[:answers]
    told = [{**_placed(train[n], split, "train"), "response": response(train[n])} for n in sorted(chosen)]
    for folder, rows in (("captions", captions), ("answers", told)):
        named = [row for row in valid if row["kind"] in ("heard_name", "seen_name")]
        asked = named if folder == "captions" else valid
        _save(part / folder, "train", rows)
        _save(part / folder, "valid", [_placed(row, split, "valid") for row in asked])
    if output.exists():
        output.rmdir()
    part.rename(output)
    heard, seen = set(sounds.values()), set(pictures.values())
    return [
        ("captions", f"{len(sounds)} recordings of {len(heard)} classes, {copies} variants of each"),
        ("", f"{len(pictures):,} pictures of {len(seen)} classes"),
        ("answers", f"{len(told):,} questions with a reasoned answer"),
    ]


def response(row: Row) -> str:
    """A right answer to a question of the set, with what was heard and seen for its reason.

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
    """A recording at another speed, begun earlier or later, louder or softer, in some noise.

    Args:
        samples: mono, in -1 to 1: [T].
        rate: samples a second.
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
    """Files of one recording, or pictures, and their classes; a recording that is repeated is another file's."""
    return {
        row["path"][medium]: row[field]
        for row in rows
        if medium in row.get("path", {}) and row["kind"] not in (*JOINED, "count")
    }


def _sounds(
    sounds: dict[str, str], split: Path, folder: Path, copies: int, rng: np.random.Generator, bar: Callable
) -> list[Row]:
    (folder / "audios").mkdir(parents=True)
    rows = []
    for file, name in bar("captions", len(sounds))(sounds.items()):
        samples, rate = soundfile.read(split / "train" / file, dtype="float32")
        for number in range(copies):
            varied = f"audios/{Path(file).stem}_{number}.flac"
            soundfile.write(folder / varied, vary(samples, rate, rng) if number else samples, rate, subtype="PCM_16")
            rows.append(_caption("heard", name, varied))
    return rows


def _caption(sense: str, name: str, file: str) -> Row:
    medium = "audio" if sense == "heard" else "image"
    row = {
        "problem": f"Name what is {sense}.",
        "data_type": medium,
        "problem_type": "free-form",
        "solution": f"{ANSWER[0]}{name}{ANSWER[1]}",
        "path": {medium: file},
        "kind": f"{sense}_name",
        sense: name,
    }
    return {**row, "response": response(row)}


def _placed(row: Row, split: Path, side: str) -> Row:
    return {**row, "path": {medium: _absolute(split, side, file) for medium, file in row.get("path", {}).items()}}


def _absolute(split: Path, side: str, file: str) -> str:
    return str((split / side / file).resolve())


def _save(folder: Path, side: str, rows: Iterable[Row]) -> None:
    (folder / side).mkdir(parents=True, exist_ok=True)
    numbered = [
        {"problem_id": number, **{k: v for k, v in row.items() if k != "problem_id"}} for number, row in enumerate(rows)
    ]
    (folder / side / f"omni_rl_format_{side}.json").write_text(as_json(numbered), encoding="utf-8")
