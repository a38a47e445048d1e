"""Broken files by the thousand for the readers of datasets and media: nothing but our own error may come out.

    python -m tests.helpers.fuzz 900 [seed]

Each case is a valid file, damaged at random: bytes changed, cut, repeated, numbers in it made extreme. Prints how many
were read, how many refused, and the first case of every other outcome; leaves with 1 where there was one.
"""

import random
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from echoink.common.errors import UserError
from echoink.data import synthetic
from echoink.data.readers import open_split
from echoink.data.samples import parse_rows
from echoink.media.loaders import Embedded, VideoCaps, load_image, load_sound, load_soundtrack, load_video
from tests.helpers.files import video

CAPS = VideoCaps(fps=2, max_frames=4, max_pixels=56 * 56, grid=28)
EXTREME = [b"\x00" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80\x00\x00\x00", b"\x00\x00\x00\x01"]
WORDS = [
    b'"\\ud800"',
    b"NaN",
    b"-Infinity",
    b"1" * 5000,
    b"[" * 5000,
    b"null",
    b"{}",
    b"\xff\xfe",
    b"1e999",
    b'"../../x"',
]


def harmed(content: bytes, draw: random.Random, words: list[bytes]) -> bytes:
    """A copy, damaged in one to four places."""
    made = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        at, length = draw.randrange(len(made) + 1), draw.choice([1, 1, 2, 4, 16, 256])
        kind = draw.randrange(5)
        if kind == 0:
            made[at : at + length] = draw.randbytes(length)
        elif kind == 1:
            del made[at:]
        elif kind == 2:
            made[at : at + length] = made[at : at + length] * draw.randint(2, 5)
        elif kind == 3:
            word = draw.choice(words)
            made[at : at + len(word)] = word
        else:
            head = draw.randrange(min(len(made), 64) + 1)  # where headers are
            word = draw.choice(words)
            made[head : head + len(word)] = word
        made = made or bytearray(b"x")
    return bytes(made)


def readers(folder: Path) -> list[tuple[str, bytes, list[bytes], Callable[[bytes], object]]]:
    """Name, a valid file, words to put into it, and what reads it."""
    wave = 0.3 * np.sin(np.arange(4_000) / 5)
    found = []
    for name in ("png", "jpg", "webp", "bmp", "gif"):
        Image.effect_noise((40, 32), 60).convert("RGB").save(folder / f"x.{name}")
        found.append((name, load_image))
    for name in ("wav", "flac", "ogg", "mp3"):
        soundfile.write(folder / f"x.{name}", wave, 16_000)
        found.append((name, lambda medium: load_sound(medium, 5.0).samples))
    video(folder / "x.mp4", seconds=0.5, size=(64, 64))
    found += [("mp4", lambda m: load_video(m, CAPS)), ("mp4", lambda m: load_soundtrack(m, 5.0))]
    media = [
        (
            name,
            (folder / f"x.{name}").read_bytes(),
            EXTREME,
            lambda content, load=load: load(Embedded("x", lambda: content)),
        )
        for name, load in found
    ]
    synthetic.write(folder / "set", seed=0, sizes={"train": 3, "dev": 1, "valid": 1})
    (index,) = (folder / "set").rglob("omni_rl_format_train.json")
    whole = index.read_bytes()

    def rows(content: bytes) -> object:
        index.write_bytes(content)
        found = open_split(str(folder / "set"), "train")
        samples, _ = parse_rows(found.rows, found.folder, found.where)
        return "\n".join(f"{s.problem} {s.options} {s.solution} {s.id} {s.fields}" for s in samples).encode()

    lines = folder / "lines/train.jsonl"
    lines.parent.mkdir()

    def jsonl(content: bytes) -> object:
        lines.write_bytes(content)
        found = open_split(str(lines.parent), "train")
        return parse_rows(found.rows, found.folder, found.where)

    return [*media, ("json", whole, WORDS, rows), ("jsonl", whole.replace(b"\n", b" "), WORDS, jsonl)]


def fuzz(seconds: float, seed: int = 0) -> tuple[Counter, dict[str, str]]:
    """Counts of (file, outcome), and for each that is not ours the first traceback."""
    warnings.simplefilter("ignore")
    draw, counts, bad = random.Random(seed), Counter(), {}
    with tempfile.TemporaryDirectory() as folder:
        cases = readers(Path(folder))
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            name, content, words, read = draw.choice(cases)
            try:
                read(harmed(content, draw, words))
                outcome = "read"
            except UserError:
                outcome = "refused"
            except Exception as error:
                outcome = type(error).__name__
                bad.setdefault(f"{name} {outcome}", traceback.format_exc())
            counts[name, outcome] += 1
    return counts, bad


if __name__ == "__main__":
    counts, bad = fuzz(float(sys.argv[1]), *map(int, sys.argv[2:]))
    for (name, outcome), count in sorted(counts.items()):
        print(f"{name:6} {outcome:24} {count:,}")
    for case, text in bad.items():
        print(f"\n{case}\n{text}")
    sys.exit(bool(bad))
