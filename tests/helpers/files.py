"""Pictures, sounds and videos for the tests, as real files."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile
from PIL import Image


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (96, 64)) -> Path:
    """A picture of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)
    return path


def sound(path: Path, seed: int = 0, seconds: float = 1.0, rate: int = 16_000) -> Path:
    """A sound of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    soundfile.write(path, rng.uniform(-0.3, 0.3, int(seconds * rate)), rate)
    return path


def video(
    path: Path,
    seconds: float = 3.0,
    fps: int = 8,
    with_sound: bool = True,
    size: tuple[int, int] = (160, 96),
    hertz: float = 440,
    start: float = 0,
    sound_start: float = 0,
    half: bool = False,
    sound_seconds: float | None = None,
) -> Path:
    """A video whose frame at second t has the grey level 20 t, and a tone.

    Its clock begins at `start`, its sound `sound_start` later, and lasts `sound_seconds` where that is given; with
    `half` the left half of the frames is white.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        heard = container.add_stream("aac", rate=16_000, layout="mono") if with_sound else None
        for number in range(int(seconds * fps)):
            level = np.full((size[1], size[0], 3), int(20 * number / fps), np.uint8)
            level[:, : size[0] // 2 * half] = 255
            frame = av.VideoFrame.from_ndarray(level, format="rgb24")
            frame.pts, frame.time_base = number + int(start * fps), Fraction(1, fps)
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
        if heard:
            moments = np.arange(int((sound_seconds or seconds) * 16_000)) / 16_000
            wave = 0.3 * np.sin(2 * np.pi * hertz * moments).astype(np.float32)
            first = int((start + sound_start) * 16_000)
            for place in range(0, len(wave), 1024):
                frame = av.AudioFrame.from_ndarray(wave[None, place : place + 1024], format="fltp", layout="mono")
                frame.sample_rate, frame.pts, frame.time_base = 16_000, first + place, Fraction(1, 16_000)
                for packet in heard.encode(frame):
                    container.mux(packet)
            for packet in heard.encode():
                container.mux(packet)
    return path
