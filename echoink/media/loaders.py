"""Opens pictures, sounds and videos for everything but the dataset makers; every limit on media is applied here.

An image is returned as 8-bit RGB, upright; the model's own processor then scales it down to `model.max_pixels`. A sound
is returned as mono float32 samples at 16 kHz, cut to its first `max_seconds`. A video is returned as frames at a steady
rate, scaled while they are decoded; its own soundtrack is read like a sound. Anything that cannot be read raises
`UserError` with the file's path.
"""

import functools
import hashlib
import io
import math
import os
import re
import stat
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import unquote

import av
import numpy as np
import soundfile
import soxr
from av import AudioResampler, time_base
from av.sidedata.sidedata import Type as SideData
from PIL import ExifTags, Image, PngImagePlugin

from echoink.common.errors import UserError
from echoink.media import truncation

SAMPLING_RATE = 16_000
"""Hz; the sampling rate of Qwen2.5-Omni's Whisper features."""

PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
"""Bytes of a text in a PNG, such as a program's own description of a picture; nobody reads it, so it refuses none."""

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")
MAX_FILE_PIXELS = 50_000_000
"""A picture that claims more pixels than this is refused before it is decoded (decompression bombs)."""

MAX_ASPECT = 200
"""The processor refuses a picture whose sides differ by more than this factor."""

MAX_BYTES = 2**30
"""A larger file is refused before it is opened."""

MAX_CHANNELS, MAX_RATE = 64, 768_000
"""A sound that claims more channels or samples a second is refused before it is read."""

MOST_JITTER = 0.05
"""Seconds by which a frame of sound may be late without leaving a gap: times are rounded, encoders add a delay."""

MOST_DELAY = 0.1
"""A video's sound that begins less than this many seconds before the pictures is cut to their start."""

CANCELLED, LOUDEST = 0.05, 8.0
"""Warn of a mono sound with less than this share of its channels' loudness, and of a peak above this."""

MIN_SECONDS = 0.05
"""A shorter sound gives no audio token."""

MAX_VIDEO_SECONDS = 7_200
"""A video that claims to be longer is refused."""


@dataclass(frozen=True)
class Embedded:
    """A medium that lives inside a table, such as a `datasets` folder, and is read when it is needed."""

    name: str
    """For messages and fingerprints."""
    read: Callable[[], bytes] = field(compare=False, repr=False)

    def __str__(self) -> str:
        return self.name

    def __reduce__(self) -> tuple:
        """Pickle the bytes, not what they are read from, which may be a whole table."""
        return Embedded, (self.name, partial(bytes, self.read()))


Medium = Path | Embedded
"""Where a picture, a sound or a video is."""


def digest(medium: Medium) -> str:
    """A short digest of the file's bytes, by which copies of it are recognized.

    Raises:
        UserError: the file is missing, is not a regular file, or is too large.
    """
    with _open(medium, "file") as file:
        try:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
        except OSError as error:  # a disk or a network drive that fails
            raise UserError(f"cannot read {medium}: {error.strerror}", "replace the file or drop the sample") from error


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


def load_image(medium: Medium) -> Image.Image:
    """Open a picture as RGB; what is transparent becomes white.

    Raises:
        UserError: the file is missing, is no picture, is broken, or claims an absurd size.
    """
    with _reading("picture", medium), Image.open(_stream(medium), formats=IMAGE_FORMATS) as file:
        if file.width * file.height > MAX_FILE_PIXELS:
            size = f"{file.width}x{file.height} pixels"
            raise UserError(f"{medium}: {size} is over the limit of {MAX_FILE_PIXELS:,}", "make it smaller")
        if max(file.size) > MAX_ASPECT * min(file.size):
            raise UserError(f"{medium}: {file.width}x{file.height} pixels are too narrow for the model's processor")
        if file.mode == "F":
            raise UserError(f"{medium}: its pixels are floats of an unknown range", "convert it to 8 bits")
        image = upright(file)
        if image.mode.startswith("I;16") or image.mode == "I":
            image = _of_16_bits(image, file, medium)
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            return _on_white(image.convert("RGBA"))
        return image.convert("RGB")


def upright(image: Image.Image) -> Image.Image:
    """A picture, turned and mirrored as its EXIF says; broken EXIF says nothing, as in browsers."""
    image.load()
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # it raises what its bytes make of it
        orientation = None
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture upright, by the orientation in its EXIF."""


def _on_white(image: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _of_16_bits(image: Image.Image, file: Image.Image, medium: Medium) -> Image.Image:
    """Keep the upper 8 of 16 bits; Pillow would clip values over 255."""
    values = np.asarray(image)
    # 16 bits may hold fewer: 12 from microscopes, 14 from sensors.
    unknown = image.mode == "I" or 0 < values.max() < 2**15
    if unknown or getattr(file, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO or "transparency" in file.info:
        what = f"integers of an unknown range, at most {values.max()}" if unknown else "of a rare kind of 16 bits"
        raise UserError(f"{medium}: its pixels are {what}", "convert it to 8 bits")
    return Image.fromarray((values >> 8).astype(np.uint8))


_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0
"""A tag of TIFF, and its value for pictures whose 0 is white."""


@dataclass(frozen=True)
class Sound:
    """A sound as the model gets it."""

    samples: np.ndarray
    """Mono float32 at 16 kHz: [samples]."""
    seconds: float
    """How long the whole sound is, before the cap."""
    warnings: tuple[str, ...] = ()
    """What is odd about it, for a person to check."""


def load_sound(medium: Medium, max_seconds: float) -> Sound:
    """Read the first `max_seconds` of a sound as mono float32 at 16 kHz.

    libsndfile reads the formats that it knows, except MP3 and chained Ogg (see `truncation.known_to_sndfile`). FFmpeg
    reads the rest (AAC, Opus in WebM, Matroska, …) and, like players, continues after a damaged frame of an MP3.

    Raises:
        UserError: the file is missing, is no sound, is broken or cut off, holds non-finite samples, or is shorter than
            50 ms.
    """
    truncation.check_sound(_open(medium, "sound"), str(medium))
    if truncation.known_to_sndfile(_open(medium, "sound")):
        # What libsndfile cannot read, FFmpeg may read, or it says what is wrong.
        with suppress(RuntimeError), soundfile.SoundFile(_stream(medium)) as file:
            rate, frames = file.samplerate, file.frames
            if file.channels > MAX_CHANNELS or rate > MAX_RATE:
                raise UserError(f"the sound {medium} claims {file.channels} channels at {rate:,} Hz")
            wanted = int(np.ceil(max_seconds * rate))
            if 0 < frames < 2**62:  # after a killed recorder it is 0, for FLAC from a pipe the largest
                samples = file.read(frames=wanted, dtype="float32", always_2d=True)
                if len(samples) == min(wanted, frames):
                    return _sound(samples, rate, max_seconds, seconds=frames / rate, medium=medium)
    return _load_sound_by_ffmpeg(medium, max_seconds)


_LENGTH_IS_A_GUESS = ("mp3", "aac", "ac3", "eac3", "amr")
"""FFmpeg's formats without a header: it estimates the length from the bit rate of the first frames."""


def _load_sound_by_ffmpeg(medium: Medium, max_seconds: float) -> Sound:
    with _container(medium, "sound") as container:
        form, track = container.format.name, container.streams.best("audio")
        if track is None:  # there is none, or one that is declared and holds nothing
            raise UserError(f"{medium} has no sound", "replace the file or drop the sample")
        samples, rate, ended = _decode_sound(container, max_seconds, None, medium, skips_bad_packets=form == "mp3")
        declared = float(container.duration / time_base) if container.duration else None
        if track.duration:
            declared = float(track.duration * track.time_base)
        # An MP3 is also shorter if frames are damaged; a file's pictures may last longer than its sound.
        certain = form not in _LENGTH_IS_A_GUESS and (track.duration or not container.streams.video)
    found = len(samples) / rate
    if form == "mp3":
        truncation.check_mp3(_open(medium, "sound"), str(medium))
    if ended and certain and declared and found < declared - max(0.15, 0.02 * declared):
        raise UserError(
            f"the sound {medium} is cut off: {found:.2f} of {declared:.2f} s can be read",
            "replace the file or drop the sample",
        )
    return _sound(samples, rate, max_seconds, seconds=found if ended or not declared else declared, medium=medium)


def _decode_sound(
    container, max_seconds: float, clock: float | None, medium: Medium, skips_bad_packets: bool = False
) -> tuple[np.ndarray, int, bool]:
    """Decode the sound track that players choose, each frame at its time; gaps between frames become silence.

    Args:
        container: of FFmpeg.
        max_seconds: where decoding stops.
        clock: the time, in seconds, at which the sound begins; None: the time of its first frame.
        medium: for errors.
        skips_bad_packets: skip packets that cannot be decoded, as players do.

    Returns:
        [samples, channels], the sampling rate, and whether the track ended before `max_seconds`.
    """
    stream = container.streams.best("audio")
    rate, channels = stream.rate, stream.layout.nb_channels
    if not 0 < channels <= MAX_CHANNELS or not 0 < rate <= MAX_RATE:
        raise UserError(f"the sound of {medium} claims {channels} channels at {rate:,} Hz")
    layout, form, resampler = stream.layout, None, None  # of joined files the first one's layout and rate
    parts, length, most = [], 0, int(np.ceil(max_seconds * rate))
    ended, skip = True, 0
    for frame in _frames(container, stream, skips_bad_packets):
        its_form = (frame.format.name, frame.layout.name, frame.sample_rate)
        if its_form != form:
            # Interleaved: with more than 8 planar channels, PyAV 18.1 reads past the end of its list.
            form, resampler = its_form, AudioResampler(format="flt", layout=layout, rate=rate)
        if frame.time is not None:
            clock = frame.time if clock is None else clock
            gap = round((frame.time - clock) * rate) - length
            if not parts:
                skip = max(0, -gap)  # it begins before its pictures
            if gap > (0 if not parts else MOST_JITTER * rate):
                silence = min(gap, most - length)
                parts.append(np.zeros((silence, channels), np.float32))
                length += silence
        for part in resampler.resample(frame):
            parts.append(part.to_ndarray().reshape(-1, channels)[skip:])
            skip = max(0, skip - part.samples)
            length += len(parts[-1])
        if length >= most:
            ended = False
            break
    samples = np.concatenate(parts) if parts else np.zeros((0, channels), np.float32)
    return samples[:most], rate, ended


def _frames(container, stream, skips_bad_packets: bool) -> Iterator:
    for packet in container.demux(stream):
        try:
            yield from packet.decode()
        except av.error.InvalidDataError:
            if not skips_bad_packets:
                raise


def _sound(samples: np.ndarray, rate: int, max_seconds: float, seconds: float, medium: Medium) -> Sound:
    mono = samples.mean(axis=1)
    if not np.isfinite(mono).all():
        raise UserError(f"the sound {medium} holds samples that are not finite", "replace the file or drop the sample")
    if len(mono) < MIN_SECONDS * rate:
        raise UserError(f"the sound {medium} lasts {len(mono) / rate:.3f} s, less than {MIN_SECONDS} s")
    warnings = []
    loud, heard = (float(np.sqrt(np.square(x, dtype=np.float64).mean())) for x in (samples, mono))
    if loud > 1e-3 and heard < CANCELLED * loud:
        warnings.append(f"{medium}: its channels cancel each other out, the mono sound is nearly silent")
    if (peak := float(np.abs(samples).max())) > LOUDEST:
        warnings.append(f"{medium}: its samples reach {peak:,.0f} where 1 is full scale (integers stored as floats?)")
    mono = mono if rate == SAMPLING_RATE else soxr.resample(mono, rate, SAMPLING_RATE)
    mono = np.ascontiguousarray(mono[: int(max_seconds * SAMPLING_RATE)], dtype=np.float32)
    return Sound(mono, seconds, tuple(warnings))


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
    """How much of a video the model gets: frames at `fps`, or fewer per second if there were more than `max_frames`."""

    fps: float
    max_frames: int
    max_pixels: int
    """Of one frame."""
    grid: int
    """Sides of scaled frames are multiples of so many pixels."""
    min_frames: int = 2
    """Of a video that has so many."""
    min_pixels: int = 28 * 28
    """Of one frame."""

    def frame_count(self, seconds: float, there: int = 0) -> int:
        """Frames of a video of `seconds`: an even number, because the processor takes them in pairs.

        Args:
            seconds: its length.
            there: how many frames it has; 0 if that is not known.
        """
        wanted = max(self.min_frames, min(int(seconds * self.fps), self.max_frames))
        return max(2, min(wanted, there or wanted) // 2 * 2)


def load_video(medium: Medium, caps: VideoCaps) -> Video:
    """Decode a video's frames, evenly spaced over the whole of it and scaled to at most `caps.max_pixels` each.

    Each is the frame that is shown at its moment, upright, unmirrored and with square pixels; what is transparent
    becomes white.

    Raises:
        UserError: the file is missing, is no video, is broken or cut off, or claims an absurd size or length.
    """
    truncation.check_container(_open(medium, "video"), str(medium))
    with _container(medium) as container:
        stream = container.streams.best("video")
        if stream is None:
            raise UserError(f"{medium} has no picture track", "replace the file or drop the sample")
        stream.thread_type = "AUTO"
        if stream.codec_context is None or not stream.codec_context.width * stream.codec_context.height:
            raise ValueError("it has no frames that FFmpeg knows")
        width, height = stream.codec_context.width, stream.codec_context.height
        if stream.sample_aspect_ratio:  # pixels need not be square
            width = round(width * float(stream.sample_aspect_ratio))
        if width * height > MAX_FILE_PIXELS or max(width, height) > MAX_ASPECT * min(width, height):
            raise UserError(f"{medium}: frames of {width}x{height} pixels are refused")
        early = _early_sound(container)
        seconds = _duration(container, stream, early, medium)
        # The header of a fragmented file counts the frames of its first fragment alone.
        rate = float(stream.average_rate or 0)
        count = caps.frame_count(seconds, stream.frames if stream.frames >= 0.5 * seconds * rate > 0 else 0)
        size = scaled(width, height, caps.max_pixels, caps.grid, min_pixels=caps.min_pixels)
        frames: list[np.ndarray] = []
        due = [(number + 0.5) * seconds / count for number in range(count)]  # the middle of each interval
        # Up to the first whole picture of a file that was cut between key frames, that picture is shown.
        begins = None if stream.start_time is None else float(stream.start_time * stream.time_base)
        shown, start = None, begins if early is None else early
        for frame in _pictures(container, stream):
            if frame.time is None:
                continue
            # A clock need not start at 0. Before the first picture comes, a player shows it, or nothing.
            start = frame.time if start is None else start
            elapsed = frame.time - start
            # A frame is shown until the next one's time: the moments before this one show the previous frame.
            if shown is not None and due[len(frames)] + 1e-6 < elapsed:
                pixels = _rgb(shown, size)
                while len(frames) < count and due[len(frames)] + 1e-6 < elapsed:
                    frames.append(pixels)
            shown = frame
            if len(frames) == count:
                break
        if shown is None:
            raise UserError(f"the video {medium} has no frames", "replace the file or drop the sample")
        if len(frames) < count:
            frames += [_rgb(shown, size)] * (count - len(frames))
    return Video(np.stack(frames), count / seconds, seconds)


def has_soundtrack(medium: Medium) -> bool:
    """Whether a video has its own sound.

    Raises:
        UserError: as `load_video`.
    """
    with _container(medium) as container:
        return container.streams.best("audio") is not None


def load_soundtrack(medium: Medium, max_seconds: float) -> Sound:
    """The first `max_seconds` of a video's own sound, as `load_sound` returns it, on the clock of its pictures: a gap
    in it becomes silence.

    Raises:
        UserError: as `load_video`, or the video has no sound.
    """
    truncation.check_container(_open(medium, "video"), str(medium))
    with _container(medium) as container:
        stream, pictures = container.streams.best("audio"), container.streams.best("video")
        if stream is None:
            raise UserError(f"the video {medium} has no sound", "use data_type video for it, or drop the sample")
        declared = float(stream.duration * stream.time_base) if stream.duration else None
        clock = _early_sound(container)
        if clock is None and pictures:
            clock = float((pictures.start_time or 0) * pictures.time_base)
        samples, rate, ended = _decode_sound(container, max_seconds, clock, medium)
    if not len(samples):
        raise UserError(f"the video {medium} has no sound", "use data_type video for it, or drop the sample")
    found = len(samples) / rate
    return _sound(
        samples, rate, max_seconds, seconds=found if ended or not declared else max(declared, found), medium=medium
    )


def scaled(width: int, height: int, max_pixels: int, grid: int, min_pixels: int = 0) -> tuple[int, int]:
    """Sides of a frame, multiples of `grid` with about the same aspect ratio: of at most `max_pixels`, unless that
    would leave fewer than `min_pixels`. The processor's own rule, with these bounds one after the other.
    """
    shrink = min(1.0, (max_pixels / (width * height)) ** 0.5)
    sides = [max(grid, int(side * shrink / grid) * grid) for side in (width, height)]
    if sides[0] * sides[1] < min_pixels:
        sides = [width, height] if width * height < min_pixels else sides
        grow = (min_pixels / (sides[0] * sides[1])) ** 0.5
        sides = [math.ceil(side * grow / grid) * grid for side in sides]
    return sides[0], sides[1]


def _pictures(container, stream) -> Iterator:
    """The frames of a stream. FFmpeg's own decoders of VP8 and VP9 leave the transparency out, libvpx does not."""
    decoder = _WITH_TRANSPARENCY.get(stream.codec_context.name)
    if stream.metadata.get("alpha_mode") != "1" or decoder not in av.codecs_available:
        yield from container.decode(stream)
        return
    codec = av.Codec(decoder, "r").create()
    codec.thread_count = 0  # as many as there are processors
    for packet in container.demux(stream):
        yield from codec.decode(packet)


_WITH_TRANSPARENCY = {"vp8": "libvpx", "vp9": "libvpx-vp9"}


def _rgb(frame, size: tuple[int, int]) -> np.ndarray:
    transparent = any(component.is_alpha for component in frame.format.components)
    form = "rgba" if transparent else "rgb24"
    pixels = frame.to_ndarray(format=form, width=size[0], height=size[1], interpolation="BICUBIC")
    if transparent:  # a fourth byte that is 0 everywhere only fills up, as in an AVI of 32 bits
        pixels = np.asarray(_on_white(Image.fromarray(pixels))) if pixels[..., 3].any() else pixels[..., :3]
    return _upright(pixels, frame).transpose(2, 0, 1)


def _upright(pixels: np.ndarray, frame) -> np.ndarray:
    """Pixels [height, width, 3] turned and mirrored as the file's display matrix says, by quarter turns."""
    found = [data for data in frame.side_data if data.type == SideData.DISPLAYMATRIX]
    if not found:
        return pixels
    # (x, y) of the file is shown at (a x + c y, b x + d y)
    a, b, _, c, d, *_ = np.frombuffer(bytes(found[0]), np.int32)[:9].tolist()
    turned = abs(a) < abs(b)
    x, y = (c, b) if turned else (a, d)
    pixels = pixels.transpose(1, 0, 2) if turned else pixels
    return pixels[:: -1 if y < 0 else 1, :: -1 if x < 0 else 1]


def _early_sound(container) -> float | None:
    """When the sound begins, in seconds, if that is clearly before the pictures; else None. Cutting between two key
    frames makes such files. A few hundredths are an encoder's delay.
    """
    sound, pictures = container.streams.best("audio"), container.streams.best("video")
    if not sound or not pictures or sound.start_time is None or pictures.start_time is None:
        return None
    begins = float(sound.start_time * sound.time_base)
    return begins if float(pictures.start_time * pictures.time_base) - begins > MOST_DELAY else None


def _duration(container, stream, early: float | None, medium: Medium) -> float:
    lead = 0.0 if early is None else float(stream.start_time * stream.time_base) - early
    if stream.duration:
        seconds = lead + float(stream.duration * stream.time_base)
    elif container.duration:  # of the whole file, whose clock need not start at 0
        seconds = (container.duration - max(0, container.start_time or 0)) / time_base
    else:  # a browser's recorder writes no duration: from the first packet to the last
        packets = [packet for packet in container.demux(stream) if packet.pts is not None and packet.time_base]
        if not packets:
            hint = "write it again: ffmpeg -i in -c copy out.mkv"
            raise UserError(f"the video {medium} does not say how long it is", hint)
        begins = min(packet.pts * packet.time_base for packet in packets)
        ends = max((packet.pts + (packet.duration or 0)) * packet.time_base for packet in packets)
        seconds = lead + float(ends - begins)
        container.seek(0)
    if not 0 < seconds <= MAX_VIDEO_SECONDS:
        raise UserError(f"the video {medium} claims to last {seconds:.0f} s", f"at most {MAX_VIDEO_SECONDS} s are read")
    return seconds


def _open(medium: Medium, kind: str) -> io.BufferedIOBase:
    stream = _stream(medium)
    with _reading(kind, medium):
        return stream if isinstance(stream, io.BytesIO) else open(stream, "rb")


@contextmanager
def _container(medium: Medium, kind: str = "video"):
    with _reading(kind, medium), av.open(_stream(medium), metadata_errors="replace") as container:
        yield container


def missing_hint(path: str) -> str:
    """What to do about a file that is not there, if there is one whose path looks almost the same."""
    for form in ("NFC", "NFD"):  # a Mac writes accents in another form
        if (other := unicodedata.normalize(form, path)) != path and os.path.isfile(other):
            return f"there is one whose name is written in the other form of Unicode ({form}): rename one of the two"
    for what, other in (
        ("with / in place of \\", path.replace("\\", "/")),
        ("without a blank at its end", path.rstrip()),
        ("without %20 and the like", unquote(path)),
        ("in other capitals", _with_other_capitals(Path(path))),
    ):
        if other != path and os.path.isfile(other):
            return f"there is {other}: write the path {what}"
    return "check the sample's path and dataset.path"


def _with_other_capitals(path: Path) -> str:
    found = Path(path.anchor)
    for part in path.parts[bool(path.anchor) :]:
        exact = found / part
        found = exact if os.path.exists(exact) else found / _names(found).get(part.casefold(), part)
    return str(found)


@functools.lru_cache(maxsize=16)
def _names(folder: Path) -> dict[str, str]:
    """The names in a folder, by their form in lower case."""
    try:
        return {name.casefold(): name for name in os.listdir(folder)}
    except OSError:
        return {}


@contextmanager
def _reading(kind: str, medium: Medium) -> Iterator[None]:
    """Raise what a library raises as a `UserError` that names the medium."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{kind} not found: {medium}", missing_hint(str(medium))) from None
    except Exception as error:  # each decoder fails on broken bytes in its own ways
        reason, hint = getattr(error, "strerror", None) or error, "replace the file or drop the sample"
        with suppress(Exception):  # it may not be there any more
            stream = _stream(medium)
            with stream if isinstance(stream, io.BytesIO) else open(stream, "rb") as file:
                head = file.read(1024)
            reason, hint = next((found[1:] for found in _STRANGERS if re.match(found[0], head)), (reason, hint))
        raise UserError(f"cannot read the {kind} {medium}: {reason}", hint) from error


_CONVERT = "convert it to JPEG or PNG"
_STRANGERS = (
    (rb"\Z", "it is empty", "replace the file or drop the sample"),
    (rb"(?s)....ftyp(?:hei|hev|mif1|msf1)(?!.{,64}avif)", "it is in HEIC", _CONVERT),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "it is in JPEG 2000", _CONVERT),
    (rb"\0\0\0\x0cJXL |\xff\x0a", "it is in JPEG XL", _CONVERT),
    (rb"(?s)RIFF....WEBP", "it is a WebP that cannot be read", "write it again, an animation as GIF or MP4"),
    (rb"(?is)(?:\xef\xbb\xbf)?\s*<(?:svg\b|(?:\?xml|!--|!doctype svg).*<svg\b)", "it is in SVG", _CONVERT),
    (
        rb"(?is)(?:\xef\xbb\xbf)?\s*<(?:html|!doctype html|(?:\?xml|!--).*<html)",
        "it is a web page",
        "download it again",
    ),
    (rb"version https://git-lfs", "it is a pointer of Git LFS", "git lfs pull brings the file"),
)
"""What people have in place of a medium: the beginning of the file, what it is, and what to do."""
