"""A few questions of every kind with media, for the user to replace: `python -m echoink.data new <folder>`."""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import IO

import av
import numpy as np
import soundfile
from PIL import Image

from echoink.common.errors import UserError
from echoink.common.files import as_lines
from echoink.data import synthetic
from echoink.media.loaders import SAMPLING_RATE

SIZES = {"train": 4, "valid": 2}
"""Rows of each kind."""
FRAMES = 8
"""Of a video of one second."""


def new(folder: Path) -> dict[str, int]:
    """Write train.jsonl and valid.jsonl with their media; no file is in both.

    Returns:
        Rows by split.

    Raises:
        UserError: the folder is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty", "give a new folder")
    (folder / "media").mkdir(parents=True)
    made = {}
    for place, (split, count) in enumerate(SIZES.items()):
        rows = [row for number in range(count) for row in _rows(folder, f"{split}{number}", 10 * place + number)]
        (folder / f"{split}.jsonl").write_text(as_lines(rows), encoding="utf-8")
        made[split] = len(rows)
    return made


def _rows(folder: Path, name: str, seed: int) -> Iterator[dict]:
    """A question of each kind about one scene."""
    rng = np.random.default_rng(seed)
    scene, question = synthetic.draw(rng, "both")
    picture, sound, video = f"media/{name}.jpg", f"media/{name}.wav", f"media/{name}.mp4"
    image, heard = synthetic.render_picture(rng, scene), synthetic.render_sound(rng, scene)
    image.save(folder / picture, quality=92)
    soundfile.write(folder / sound, heard, SAMPLING_RATE, subtype="PCM_16")
    write_video(str(folder / video), [image] * FRAMES, FRAMES, heard)

    def row(text: str, solution: str, path: dict[str, str], **fields: object) -> dict:
        return {"problem": text, **fields, "solution": f"<answer>{solution}</answer>", "path": path}

    options, gold = list(question.options), ", ".join(question.gold)
    yield row(question.text, gold, {"image": picture, "audio": sound}, options=options, kind="both", need="both")
    yield row("How many sounds are heard?", str(scene.sounds), {"audio": sound}, problem_type="counting", kind="ear")
    yield row(
        "Which colour do the shapes have?", scene.colour, {"image": picture}, problem_type="free-form", kind="eye"
    )
    words = f"{scene.shapes} {scene.colour} {scene.form}, {scene.sounds} {scene.timbre}"
    yield row("What is shown and heard?", words, {"video": video}, problem_type="free-form", kind="video")
    place = seed % 3
    texts = [str(seed + 4 + number - place) for number in range(3)]
    options = [f"{letter}. {text}" for letter, text in zip("ABC", texts, strict=True)]
    yield row(f"What is {seed} + 4?", "ABC"[place], {}, options=options, data_type="text", kind="text")


def write_video(place: str | IO, images: Sequence[Image.Image], rate: int, heard: np.ndarray | None) -> None:
    """Write an MP4 of pictures, `rate` per second, with a sound at 16 kHz if there is one."""
    with av.open(place, "w", format="mp4") as file:
        shown = file.add_stream("mpeg4", rate=rate)
        shown.width, shown.height, shown.pix_fmt = *images[0].size, "yuv420p"
        track = file.add_stream("aac", rate=SAMPLING_RATE, layout="mono") if heard is not None else None
        for number, image in enumerate(images):
            frame = av.VideoFrame.from_image(image)
            frame.pts, frame.time_base = number, Fraction(1, rate)
            file.mux(shown.encode(frame))
        file.mux(shown.encode())
        if track is None:
            return
        for start in range(0, len(heard), 1024):
            part = av.AudioFrame.from_ndarray(heard[None, start : start + 1024], format="fltp", layout="mono")
            part.sample_rate, part.pts, part.time_base = SAMPLING_RATE, start, Fraction(1, SAMPLING_RATE)
            file.mux(track.encode(part))
        file.mux(track.encode())
