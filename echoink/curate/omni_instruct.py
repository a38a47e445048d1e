"""AVQA-R1-6K made from OmniInstruct-v1."""

import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import soundfile
from PIL import Image, ImageOps, UnidentifiedImageError

from echoink.common.console import progress
from echoink.common.errors import UserError
from echoink.common.files import write_aside, write_atomic
from echoink.data.choices import labelled
from echoink.data.readers import holds_one_split, open_split
from echoink.media import loaders
from echoink.media.loaders import Embedded, digest

LETTERS = "ABCD"

JPEG_MODES = ("RGB", "L", "CMYK", "YCbCr", "1")
"""Of pictures that can be written as JPEG as they are."""

LEDGER = "ledger.jsonl"
"""In the split's folder while it is being made: one line per row that was settled."""


def convert(row: dict, number: int, keep: Sequence[str]) -> dict | str:
    """A row of OmniInstruct-v1 as one of the official layout, or why it is dropped.

    Args:
        row: `source`, `question`, `options`, `answer`.
        number: in the source split.
        keep: values of `source`.
    """
    source = row.get("source")
    if source not in keep:
        return f"source {source}"
    options, answer = row.get("options"), row.get("answer")
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options) or len(options) < 2:
        return "no options"
    if not isinstance(row.get("question"), str) or not row["question"].strip():
        return "no question"
    if answer not in options:
        return "answer not among the options"
    if not all(option.strip() for option in options):
        return "an option is empty"
    if options.index(answer) >= len(LETTERS):
        return "answer beyond the fourth option"
    kept = list(zip(LETTERS, labelled(options)[1], strict=False))
    return {
        "problem_id": number,
        "problem": row["question"],
        "data_type": "image_audio",
        "problem_type": "multiple choice",
        "options": [f"{letter}. {option}" for letter, option in kept],
        "solution": f"<answer>{LETTERS[options.index(answer)]}</answer>",
        "path": {"image": f"images/sample_{number}.jpg", "audio": f"audios/sample_{number}.wav"},
        "data_source": f"OmniInstruct_v1-{source}",
    }


def write_media(row: dict, folder: Path, made: dict) -> str | None:
    """Write a row's picture and sound; why that cannot be, where it cannot.

    What training would refuse is refused here. The picture keeps its pixels, upright; the sound its rate and channels
    (they are averaged where it is read), or is mono at 16 kHz where only FFmpeg can read it.
    """
    image, audio = row.get("image"), row.get("audio")
    if image is None or audio is None:
        return f"no {'image' if image is None else 'audio'}"
    targets = {name: folder / made["path"][name] for name in ("image", "audio")}
    number = made["problem_id"]
    try:
        loaders.load_image(Embedded(f"picture {number}", lambda: _bytes(image)))
        picture = Image.open(io.BytesIO(_bytes(image)))
        if picture.mode not in JPEG_MODES:
            return f"image of mode {picture.mode}"
        picture = ImageOps.exif_transpose(picture)
        write_aside(targets["image"], lambda file: picture.save(file, format="JPEG"))
    except (UserError, UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return "image is too narrow" if "narrow" in str(error) else "image cannot be read"
    try:
        content = _bytes(audio)
        heard = loaders.load_sound(Embedded(f"sound {number}", lambda: content), loaders.MAX_VIDEO_SECONDS)
        try:
            samples, rate = soundfile.read(io.BytesIO(content))
        except soundfile.SoundFileError:  # FFmpeg has read it
            samples, rate = heard.samples, loaders.SAMPLING_RATE
        # Samples above full scale are kept: integers would clip them.
        subtype = "FLOAT" if abs(samples).max() > 1 else "PCM_16"
        write_aside(targets["audio"], lambda file: soundfile.write(file, samples, rate, subtype, format="WAV"))
    except UserError as error:
        return next((reason for text, reason in _REFUSED.items() if text in error.problem), "audio cannot be read")
    except (soundfile.SoundFileError, OSError, ValueError):
        return "audio cannot be read"
    return None


_REFUSED = {
    "cut off": "audio is cut off",
    "not finite": "audio holds samples that are not finite",
    "lasts 0.000 s": "audio is empty",
    "lasts": "audio is too short",
}
"""What training would refuse of a sound, by what its error says."""


def _bytes(cell: Embedded | dict | str) -> bytes:
    if isinstance(cell, dict):
        cell = cell.get("bytes") if cell.get("bytes") is not None else cell["path"]
    if isinstance(cell, bytes):
        return cell
    return Path(cell).read_bytes() if isinstance(cell, str) else cell.read()


def curate_split(
    source: str, split: str, output: Path, keep: Sequence[str], only: str | None = None
) -> tuple[list[dict], Counter[str]]:
    """Write one split; rows that an earlier run settled are not read again.

    `only` names the split where no other is asked for: then the source may be a single table.

    Returns:
        The rows of the index and the counts of dropped rows by reason.

    Raises:
        UserError: the source has no such split, or its rows are of another kind.
    """
    found = open_split(source, split)
    if found is not None and holds_one_split(source) and split != only:
        raise UserError(f"{source} holds one split", "say which: splits=[train] or splits=[valid]")
    if found is None:
        raise UserError(f"{source} has no split {split}", "name those it has: splits=[train]")
    folder = output / split
    for name in ("images", "audios"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    ledger = folder / LEDGER
    settled = list(_ledger(ledger))
    rows, dropped = [], Counter()
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
                rows.append(result)
            else:
                dropped[result] += 1
    if not rows:
        ledger.unlink()  # so that other settings may try again
        raise UserError(f"no row of {found.where} can be used: {dict(dropped)}", f"keep={list(keep)} names the sources")
    index = output / f"omni_rl_format_{split}.json"
    write_atomic(index, json.dumps(rows, indent=2) + "\n")
    return rows, dropped


def _ledger(file: Path) -> Iterator[dict | str]:
    """What an earlier run settled; a line that was cut off is dropped from the file."""
    whole, _, torn = file.read_bytes().rpartition(b"\n") if file.is_file() else (b"", b"", b"")
    if torn:
        file.write_bytes(whole + b"\n" if whole else b"")
    yield from (json.loads(line) for line in whole.split(b"\n") if line)


def report(output: Path, splits: dict[str, list[dict]], dropped: dict[str, Counter[str]]) -> dict:
    """What was made of each split: counts, reasons, answer positions, duplicates, media that splits share."""
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
            "answer_positions": {letter: letters[letter] / len(rows) for letter in sorted(letters)},
            "options": dict(sorted(Counter(len(row["options"]) for row in rows).items())),
            "duplicates": sum(count - 1 for count in asked.values()),
            "media_also_in": {other: len(seen[split] & seen[other]) for other in splits if other != split},
        }
    return made


def refuse_another(output: Path, recipe: dict) -> None:
    note = output / ".recipe.json"
    begun = any(output.glob(f"*/{LEDGER}"))
    if begun and note.is_file() and json.loads(note.read_text()) != recipe:
        raise UserError(f"{output} was begun as {note.read_text().strip()}", "give a new output=")
    output.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(recipe) + "\n")
