"""Makes pictures and sounds for people, in reports and traces: small, playable, self-contained."""

import base64
import io
from pathlib import Path

import soundfile

from echoink.media.loaders import SAMPLING_RATE, load_image, load_sound


def picture(place: Path, side: int) -> bytes:
    """A picture as the model's loader reads it, as a JPEG of at most `side` pixels a side.

    Raises:
        UserError: it cannot be read.
    """
    image = load_image(place)
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def sound(place: Path, seconds: float) -> bytes:
    """A sound as the model hears it, 16 kHz and mono, as a WAV file of at most `seconds`.

    Raises:
        UserError: it cannot be read.
    """
    buffer = io.BytesIO()
    soundfile.write(buffer, load_sound(place, seconds).samples, SAMPLING_RATE, "PCM_16", format="WAV")
    return buffer.getvalue()


def encoded(data: bytes) -> str:
    """Bytes as base64 text."""
    return base64.b64encode(data).decode()
