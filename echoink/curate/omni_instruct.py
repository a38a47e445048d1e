"""AVQA-R1-6K made from OmniInstruct-v1."""

import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image, UnidentifiedImageError

from echoink.common.console import progress
from echoink.common.errors import UserError
from echoink.common.files import cut_lines, read_json, read_rows, write_aside, write_atomic
from echoink.data.choices import labelled
from echoink.data.readers import Rows, holds_one_split, open_split
from echoink.media import loaders
from echoink.media.loaders import Embedded, digest
from echoink.run_folder.folder import LOCK, take

LETTERS = "ABCD"

JPEG_MODES = ("RGB", "L", "CMYK", "YCbCr", "1")
"""Modes of pictures that JPEG can store without conversion."""

LEDGER = "ledger.jsonl"
"""In a split's folder while the split is made: one line per row that was kept or dropped."""

NOTE = "note"
"""Key of a kept row in the ledger that says what is odd about the row."""


def convert(row: dict, number: int, keep: Sequence[str]) -> dict | str:
    """A row of OmniInstruct-v1 in the official layout, or the reason why the official rules drop it.

    An odd row that they keep says under `NOTE` what is odd: training refuses most of these.

    Args:
        row: `source`, `question`, `options`, `answer`.
        number: its place in the source split.
        keep: the values of `source` that are kept.
    """
    source = row.get("source")
    if source not in keep:
        return f"source {source}"
    options, answer, question = row.get("options"), row.get("answer"), row.get("question") or ""
    if not isinstance(options, list) or not options:
        return "no options"
    if answer is None or answer not in options:
        return "answer not among the options"
    if options.index(answer) >= len(LETTERS):
        return "answer beyond the fourth option"
    kept = list(zip(LETTERS, labelled([str(option) for option in options])[1], strict=False))
    notes = {
        "the question is empty": not question.strip(),
        "one option": len(kept) < 2,
        "an option is empty": not all(text for _, text in kept),
        "an option is null": None in options[: len(LETTERS)],
    }
    noted = {NOTE: next(note for note, holds in notes.items() if holds)} if any(notes.values()) else {}
    return noted | {
        "problem_id": number,
        "problem": question,
        "data_type": "image_audio",
        "problem_type": "multiple choice",
        "options": [f"{letter}. {option}" for letter, option in kept],
        "solution": f"<answer>{LETTERS[options.index(answer)]}</answer>",
        "path": {"image": f"images/sample_{number}.jpg", "audio": f"audios/sample_{number}.wav"},
        "data_source": f"OmniInstruct_v1-{source}",
    }


def write_media(row: dict, folder: Path, made: dict) -> str | None:
    """Write a row's picture and sound; returns the reason where that fails, else None.

    Media that training refuses are still written if that is possible, and noted in `made`. The picture keeps its size
    and is turned upright. The sound keeps its rate and channels (readers average them), or becomes mono at 16 kHz where
    only FFmpeg reads all of it.
    """
    image, audio = row.get("image"), row.get("audio")
    if image is None or audio is None:
        return f"no {'image' if image is None else 'audio'}"
    targets = {name: folder / made["path"][name] for name in ("image", "audio")}
    number = made["problem_id"]
    try:
        picture = Image.open(io.BytesIO(_bytes(image)))
        if picture.mode not in JPEG_MODES:
            return f"image of mode {picture.mode}"
        picture = loaders.upright(picture)
        write_aside(targets["image"], lambda file: picture.save(file, format="JPEG"))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return "image cannot be read"
    try:
        loaders.load_image(targets["image"])
    except UserError as error:
        made.setdefault(NOTE, _reason(error, "image"))
    try:
        content = _bytes(audio)
        heard = refused = None
        try:
            heard = loaders.load_sound(Embedded(f"sound {number}", lambda: content), loaders.MAX_VIDEO_SECONDS)
        except UserError as error:
            refused = error
        try:
            samples, rate = soundfile.read(io.BytesIO(content))
        except (soundfile.SoundFileError, ValueError, MemoryError):
            samples, rate = np.zeros(0), loaders.SAMPLING_RATE
            if heard is None:
                return "audio cannot be read"
        # A killed recorder leaves a header of length 0, a stream one of unknown length: `heard` has all samples.
        if heard and abs(len(samples) / rate - heard.seconds) > 0.1:
            samples, rate = heard.samples, loaders.SAMPLING_RATE
        # Samples above full scale are kept: integers would clip them.
        subtype = "FLOAT" if np.abs(samples).max(initial=0) > 1 else "PCM_16"
        write_aside(targets["audio"], lambda file: soundfile.write(file, samples, rate, subtype, format="WAV"))
        if refused:
            made.setdefault(NOTE, _reason(refused, "audio"))
    except (soundfile.SoundFileError, OSError, ValueError):
        return "audio cannot be read"
    return None


_REFUSED = {
    "cut off": "audio is cut off",
    "not finite": "audio holds samples that are not finite",
    "lasts 0.000 s": "audio is empty",
    "lasts": "audio is too short",
    "narrow": "image is too narrow",
}
"""Why training refuses a medium, by words in its error message."""


def _reason(error: UserError, medium: str) -> str:
    return next((reason for text, reason in _REFUSED.items() if text in error.problem), f"{medium} cannot be read")


def _bytes(cell: Embedded | dict | str) -> bytes:
    if isinstance(cell, dict):
        cell = cell.get("bytes") if cell.get("bytes") is not None else cell["path"]
    if isinstance(cell, bytes):
        return cell
    return Path(cell).read_bytes() if isinstance(cell, str) else cell.read()


def open_named(source: str, split: str, alone: bool) -> Rows:
    """The rows of a split; the source may be a single table if no other split is asked for.

    Raises:
        UserError: the source has no such split.
    """
    found = open_split(source, split)
    if found is not None and holds_one_split(source) and not alone:
        raise UserError(f"{source} holds one split", "say which: splits=[train] or splits=[valid]")
    if found is None:
        raise UserError(f"{source} has no split {split}", "name those it has: splits=[train]")
    return found


def curate_split(
    found: Rows, split: str, output: Path, keep: Sequence[str]
) -> tuple[list[dict], Counter[str], Counter[str]]:
    """Write one split; rows that an earlier run has finished are not processed again.

    Returns:
        The rows of the index, the counts of dropped rows by reason, and those of odd rows that are kept.

    Raises:
        UserError: the source lacks a column, or has no row that can be used.
    """
    folder = output / split
    for name in ("images", "audios"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    ledger = folder / LEDGER
    cut_lines(ledger, lambda row: True)  # keep what an earlier run has finished, without a line that was cut off
    settled = read_rows(ledger)
    rows, dropped, noted = [], Counter(), Counter()
    with open(ledger, "a", encoding="utf-8") as file:
        for number, row in enumerate(progress(split, found.total)(found.rows)):
            if number == 0 and not {"source", "question", "options", "answer"} <= row.keys():
                raise UserError(
                    f"{found.where} has the columns {', '.join(row)}",
                    "OmniInstruct-v1 has source, question, options, answer, image, audio (the set without _v1 has not)",
                )
            if number < len(settled):
                result = settled[number]
            else:
                result = convert(row, number, keep)
                result = (isinstance(result, dict) and write_media(row, folder, result)) or result
                if isinstance(result, str):
                    for medium in ("images/sample_{}.jpg", "audios/sample_{}.wav"):
                        (folder / medium.format(number)).unlink(missing_ok=True)
                file.write(json.dumps(result) + "\n")
            if isinstance(result, dict):
                noted.update([note] if (note := result.pop(NOTE, None)) else [])
                rows.append(result)
            else:
                dropped[result] += 1
    if not rows:
        ledger.unlink()  # so that other settings may try again
        raise UserError(f"no row of {found.where} can be used: {dict(dropped)}", f"keep={list(keep)} names the sources")
    index = output / f"omni_rl_format_{split}.json"
    write_atomic(index, json.dumps(rows, indent=2) + "\n")
    return rows, dropped, noted


def report(
    output: Path, splits: dict[str, list[dict]], dropped: dict[str, Counter[str]], noted: dict[str, Counter[str]]
) -> dict:
    """Statistics of each split: counts, reasons, answer positions, duplicates, number of media shared with others."""
    media = {
        split: {
            row["problem_id"]: tuple(digest(output / split / row["path"][name]) for name in ("image", "audio"))
            for row in progress("digest", len(rows))(rows)
        }
        for split, rows in splits.items()
    }
    seen = {split: {each for pair in found.values() for each in pair} for split, found in media.items()}
    made = {}
    for split, rows in splits.items():
        asked = Counter(
            (row["problem"], *row["options"], row["solution"], *media[split][row["problem_id"]]) for row in rows
        )
        letters = Counter(row["solution"].removeprefix("<answer>")[0] for row in rows)
        made[split] = {
            "rows": len(rows),
            "dropped": dict(dropped[split].most_common()),
            "kept_all_the_same": dict(noted[split].most_common()),
            "answer_positions": {letter: letters[letter] / len(rows) for letter in sorted(letters)},
            "options": dict(sorted(Counter(len(row["options"]) for row in rows).items())),
            "duplicates": sum(count - 1 for count in asked.values()),
            "media_also_in": {other: len(seen[split] & seen[other]) for other in splits if other != split},
        }
    return made


def refuse_another(output: Path, recipe: dict) -> None:
    """Take the output folder, new or begun with the same recipe.

    Raises:
        UserError: it was begun with another recipe, holds other files, or another process writes to it.
    """
    note = output / ".recipe.json"
    begun = any(output.glob(f"*/{LEDGER}"))
    files = () if begun else (path for path in output.rglob("*") if path.is_file())
    if any(path.name not in (note.name, LOCK) for path in files):
        raise UserError(f"{output} holds other files", "give a new output=")
    if begun and note.is_file() and read_json(note) != recipe:
        raise UserError(f"{output} was begun as {note.read_text('utf-8').strip()}", "give a new output=")
    output.mkdir(parents=True, exist_ok=True)
    take(output)
    note.write_text(json.dumps(recipe) + "\n", "utf-8")
