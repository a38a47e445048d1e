"""The only place that opens a picture, a sound or a video; every limit on media is applied here.

An image is returned as 8-bit RGB, upright; the model's own processor then scales it down to `model.max_pixels`. A sound
is returned as mono float32 samples at 16 kHz, cut to its first `max_seconds`. A video is returned as frames at a steady
rate, scaled while they are decoded; its own soundtrack is read like a sound. Anything that cannot be read raises
`UserError` with the file's path.
"""

import hashlib
import io
import stat
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import av
import numpy as np
import soundfile
import soxr
from av import AudioResampler, time_base
from PIL import Image, ImageOps

from echoink.common.errors import UserError

SAMPLING_RATE = 16_000
"""Hz; the rate of the Whisper features that Qwen2.5-Omni listens through."""

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
MAX_FILE_PIXELS = 50_000_000
"""A picture that claims more pixels than this is refused before it is decoded (decompression bombs)."""

MAX_ASPECT = 200
"""The processor refuses a picture whose sides differ by more than this factor."""

MAX_BYTES = 2**30
"""A larger file is refused before it is opened."""

MAX_CHANNELS, MAX_RATE = 64, 768_000
"""A sound that claims more channels or samples a second is refused before it is read."""

MIN_SECONDS = 0.05
"""A shorter sound gives no audio token."""

MAX_VIDEO_SECONDS = 7_200
"""A video that claims to be longer is refused."""

GRID = 28
"""Pixels of a side of the square that one image token stands for: sides of scaled frames are multiples of it."""


@dataclass(frozen=True)
class Embedded:
    """A medium that lives inside a table, such as a `datasets` folder, and is read when it is needed."""

    name: str
    """For messages and fingerprints."""
    read: Callable[[], bytes] = field(compare=False, repr=False)

    def __str__(self) -> str:
        return self.name

    def __reduce__(self) -> tuple:
        """To another process it goes with its bytes: what they are read from may be a whole table."""
        return Embedded, (self.name, partial(bytes, self.read()))


Medium = Path | Embedded
"""Where a picture, a sound or a video is."""


def digest(medium: Medium) -> str:
    """A short digest of the file's bytes, by which copies of it are recognized.

    Raises:
        UserError: it is missing, no file, or too large.
    """
    stream = _stream(medium)
    if isinstance(stream, io.BytesIO):
        return hashlib.sha256(stream.getbuffer()).hexdigest()[:16]
    try:
        with open(stream, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise _missing("file", medium) from error


def _stream(medium: Medium) -> str | io.BytesIO:
    """What a library reads from: a file's name, or bytes in memory; no more than `MAX_BYTES`, and no pipe or device."""
    if isinstance(medium, Embedded):
        content = medium.read()
        size, regular = len(content), True
    else:
        try:
            found = medium.stat()
        except OSError:  # the library that opens it says what is wrong
            return str(medium)
        size, regular = found.st_size, stat.S_ISREG(found.st_mode)
    if not regular:
        raise UserError(f"{medium} is no file", "replace it or drop the sample")
    if size > MAX_BYTES:
        raise UserError(f"{medium} has {size / 2**20:,.0f} MiB, more than {MAX_BYTES / 2**20:,.0f}")
    return io.BytesIO(content) if isinstance(medium, Embedded) else str(medium)


def _missing(kind: str, medium: Medium) -> UserError:
    return UserError(f"{kind} not found: {medium}", "check the sample's path and dataset.path")


def load_image(medium: Medium) -> Image.Image:
    """Open a picture as RGB; what is transparent becomes white.

    Raises:
        UserError: the file is missing, is no picture, is broken, or claims an absurd size.
    """
    try:
        with Image.open(_stream(medium), formats=IMAGE_FORMATS) as file:
            if file.width * file.height > MAX_FILE_PIXELS:
                raise UserError(f"{medium}: {file.width}x{file.height} pixels is over the limit of {MAX_FILE_PIXELS:,}")
            if max(file.size) > MAX_ASPECT * min(file.size):
                raise UserError(f"{medium}: {file.width}x{file.height} pixels are too narrow for the model's processor")
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I;16") or image.mode == "I":  # 16 bits, of which Pillow would clip all over 255
                image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
            if image.mode in ("RGBA", "LA") or "transparency" in image.info:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert("RGB")
    except UserError:
        raise
    except FileNotFoundError:
        raise _missing("picture", medium) from None
    except Exception as error:  # each decoder fails on broken bytes in ways of its own
        raise UserError(f"cannot read the picture {medium}: {error}", "replace the file or drop the sample") from error
    return image


@dataclass(frozen=True)
class Sound:
    """A sound as the model gets it."""

    samples: np.ndarray
    """Mono float32 at 16 kHz: [samples]."""
    seconds: float
    """How long the whole sound is, before the cap."""


def load_sound(medium: Medium, max_seconds: float) -> Sound:
    """Read the first `max_seconds` of a sound as mono float32 at 16 kHz.

    Raises:
        UserError: the file is missing, is no sound, is broken, holds non-finite samples, or is shorter than 50 ms.
    """
    try:
        with soundfile.SoundFile(_stream(medium)) as file:
            rate, whole = file.samplerate, file.frames / file.samplerate
            if file.channels > MAX_CHANNELS or rate > MAX_RATE:
                raise UserError(f"the sound {medium} claims {file.channels} channels at {rate:,} Hz")
            _check_whole(medium, file)
            samples = file.read(frames=int(np.ceil(max_seconds * rate)), dtype="float32", always_2d=True)
    except UserError:
        raise
    except Exception as error:
        if isinstance(medium, Path) and not medium.exists():
            raise _missing("sound", medium) from None
        raise UserError(f"cannot read the sound {medium}: {error}", "replace the file or drop the sample") from error
    return Sound(_mono_16k(samples, rate, max_seconds, medium), whole)


def _check_whole(medium: Medium, file: soundfile.SoundFile) -> None:
    """Refuse a WAV that ends before its header says: libsndfile reads it without a word, as a shorter sound."""
    if file.format not in ("WAV", "WAVEX", "RF64"):
        return
    stream = _stream(medium)
    with io.BytesIO(stream.getbuffer()) if isinstance(stream, io.BytesIO) else open(stream, "rb") as content:
        end = content.seek(0, io.SEEK_END)
        content.seek(0)
        if content.read(12)[:4] != b"RIFF":
            return
        while len(chunk := content.read(8)) == 8:
            size, start = int.from_bytes(chunk[4:], "little"), content.tell()
            if chunk[:4] == b"data":
                if end < start + size < 2**31 - 2**20:  # a writer that could not know the length says the most there is
                    raise UserError(
                        f"the sound {medium} is cut off: it has {end - start:,} of {size:,} bytes",
                        "replace the file or drop the sample",
                    )
                return
            content.seek(start + size + size % 2)


def load_audio(medium: Medium, max_seconds: float) -> np.ndarray:
    """The samples [samples] of `load_sound`."""
    return load_sound(medium, max_seconds).samples


def _mono_16k(samples: np.ndarray, rate: int, max_seconds: float, medium: Medium) -> np.ndarray:
    mono = samples.mean(axis=1)
    if not np.isfinite(mono).all():
        raise UserError(f"the sound {medium} holds samples that are not finite", "replace the file or drop the sample")
    if len(mono) < MIN_SECONDS * rate:
        raise UserError(f"the sound {medium} lasts {len(mono) / rate:.3f} s, less than {MIN_SECONDS} s")
    mono = mono if rate == SAMPLING_RATE else soxr.resample(mono, rate, SAMPLING_RATE)
    return np.ascontiguousarray(mono[: int(max_seconds * SAMPLING_RATE)], dtype=np.float32)


@dataclass(frozen=True)
class Video:
    """A video as the model gets it."""

    frames: np.ndarray
    """[F, 3, height, width], unsigned bytes."""
    fps: float
    """Frames a second of `frames`."""
    seconds: float
    """How long the whole video is."""


@dataclass(frozen=True)
class VideoCaps:
    """How much of a video the model gets: frames at `fps`, fewer a second where more than `max_frames` would be."""

    fps: float
    max_frames: int
    max_pixels: int
    """Of one frame."""

    def frame_count(self, seconds: float) -> int:
        """Frames of a video of so many seconds: an even number, for the processor takes them two by two."""
        return max(2, min(int(seconds * self.fps), self.max_frames) // 2 * 2)


def load_video(medium: Medium, caps: VideoCaps) -> Video:
    """Decode a video's frames, evenly spaced over the whole of it and scaled to at most `caps.max_pixels` each.

    Raises:
        UserError: the file is missing, is no video, is broken, or claims an absurd size or length.
    """
    with _container(medium) as container:
        if not container.streams.video:
            raise UserError(f"{medium} has no picture track", "replace the file or drop the sample")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        width, height = stream.codec_context.width, stream.codec_context.height
        if not 0 < width * height <= MAX_FILE_PIXELS or max(width, height) > MAX_ASPECT * min(width, height):
            raise UserError(f"{medium}: frames of {width}x{height} pixels are refused")
        seconds = _duration(container, stream, medium)
        count = caps.frame_count(seconds)
        size = scaled(width, height, caps.max_pixels)
        frames: list[np.ndarray] = []
        due = [(number + 0.5) * seconds / count for number in range(count)]  # the middle of each interval
        last, start = None, None
        for frame in container.decode(stream):
            if frame.time is None:
                continue
            last, start = frame, frame.time if start is None else start  # a clock need not start at 0
            while len(frames) < count and frame.time - start + 1e-6 >= due[len(frames)]:
                frames.append(_rgb(frame, size))
            if len(frames) == count:
                break
        if last is None:
            raise UserError(f"the video {medium} has no frames", "replace the file or drop the sample")
        frames += [_rgb(last, size)] * (count - len(frames))
    return Video(np.stack(frames), count / seconds, seconds)


def has_soundtrack(medium: Medium) -> bool:
    """Whether a video has a sound of its own.

    Raises:
        UserError: as `load_video`.
    """
    with _container(medium) as container:
        return bool(container.streams.audio)


def load_soundtrack(medium: Medium, max_seconds: float) -> Sound:
    """The first `max_seconds` of a video's own sound, as `load_sound` returns it, on the clock of its pictures.

    Raises:
        UserError: as `load_video`, or the video has no sound.
    """
    with _container(medium) as container:
        if not container.streams.audio:
            raise UserError(f"the video {medium} has no sound", "use data_type video for it, or drop the sample")
        stream = container.streams.audio[0]
        rate, channels = stream.rate, stream.layout.nb_channels
        if not 0 < channels <= MAX_CHANNELS or not 0 < rate <= MAX_RATE:
            raise UserError(f"the sound of {medium} claims {channels} channels at {rate:,} Hz")
        seconds = float(stream.duration * stream.time_base) if stream.duration else None
        # Interleaved: of more than 8 channels one by one, PyAV reads past the end of its list (18.1).
        resampler = AudioResampler(format="flt", layout=stream.layout, rate=rate)
        parts, length, late = [], 0, 0
        for frame in container.decode(stream):
            if not parts and frame.time is not None and container.streams.video:
                pictures = container.streams.video[0]
                late = round((frame.time - float((pictures.start_time or 0) * pictures.time_base)) * rate)
            for part in resampler.resample(frame):
                parts.append(part.to_ndarray().reshape(-1, channels))
                length += len(parts[-1])
            if length + late >= max_seconds * rate:
                break
    if not parts:
        raise UserError(f"the video {medium} has no sound", "use data_type video for it, or drop the sample")
    samples = np.concatenate(parts)
    late = min(max(late, -len(samples)), int(max_seconds * rate))
    samples = np.pad(samples, ((late, 0), (0, 0))) if late > 0 else samples[-late:]
    samples = samples[: int(np.ceil(max_seconds * rate))]
    return Sound(_mono_16k(samples, rate, max_seconds, medium), seconds or length / rate)


def scaled(width: int, height: int, max_pixels: int) -> tuple[int, int]:
    """Sides of a frame of at most `max_pixels`, multiples of `GRID`, about as wide to its height as before."""
    shrink = min(1.0, (max_pixels / (width * height)) ** 0.5)
    sides = [max(GRID, int(side * shrink / GRID) * GRID) for side in (width, height)]
    return sides[0], sides[1]


def _rgb(frame, size: tuple[int, int]) -> np.ndarray:
    pixels = frame.to_ndarray(format="rgb24", width=size[0], height=size[1])
    return np.rot90(pixels, round(frame.rotation / 90) % 4).transpose(2, 0, 1)  # upright, as the file says


def _duration(container, stream, medium: Medium) -> float:
    if stream.duration:
        seconds = float(stream.duration * stream.time_base)
    else:  # of the whole file, whose clock need not start at 0
        seconds = ((container.duration or 0) - max(0, container.start_time or 0)) / time_base
    if not 0 < seconds <= MAX_VIDEO_SECONDS:
        raise UserError(f"the video {medium} claims to last {seconds:.0f} s", f"at most {MAX_VIDEO_SECONDS} s are read")
    return seconds


@contextmanager
def _container(medium: Medium):
    try:
        with av.open(_stream(medium), metadata_errors="replace") as container:
            yield container
    except UserError:
        raise
    except FileNotFoundError:
        raise _missing("video", medium) from None
    except Exception as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read the video {medium}: {reason}", "replace the file or drop the sample") from error
