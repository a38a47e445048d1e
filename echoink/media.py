"""The only place that opens an image or a sound; every limit on media is applied here.

An image is returned as 8-bit RGB, upright; the model's own processor then scales it down to `model.max_pixels`. A sound
is returned as mono float32 samples at 16 kHz, cut to its first `max_seconds`. Anything that cannot be read raises
`UserError` with the file's path.
"""

from pathlib import Path

import numpy as np
import soundfile
import soxr
from PIL import Image, ImageOps, UnidentifiedImageError

from echoink.errors import UserError

SAMPLING_RATE = 16_000
"""Hz; the rate of the Whisper features that Qwen2.5-Omni listens through."""

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
MAX_FILE_PIXELS = 50_000_000
"""A picture that claims more pixels than this is refused before it is decoded (decompression bombs)."""

MAX_ASPECT = 200
"""The processor refuses a picture whose sides differ by more than this factor."""

MIN_SECONDS = 0.05
"""A shorter sound gives no audio token."""


def load_image(path: Path) -> Image.Image:
    """Open a picture as RGB; what is transparent becomes white.

    Raises:
        UserError: the file is missing, is no picture, is broken, or claims an absurd size.
    """
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as file:
            if file.width * file.height > MAX_FILE_PIXELS:
                raise UserError(f"{path}: {file.width}x{file.height} pixels is over the limit of {MAX_FILE_PIXELS:,}")
            if max(file.size) > MAX_ASPECT * min(file.size):
                raise UserError(f"{path}: {file.width}x{file.height} pixels are too narrow for the model's processor")
            image = ImageOps.exif_transpose(file)
            if image.mode in ("RGBA", "LA") or "transparency" in image.info:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert("RGB")
    except FileNotFoundError:
        raise UserError(f"picture not found: {path}", "check the sample's path and dataset.path") from None
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot read the picture {path}: {error}", "replace the file or drop the sample") from error
    return image


def load_audio(path: Path, max_seconds: float) -> np.ndarray:
    """Read the first `max_seconds` of a sound as mono float32 at 16 kHz, shape [samples].

    Raises:
        UserError: the file is missing, is no sound, is broken, holds non-finite samples, or is shorter than 50 ms.
    """
    try:
        with soundfile.SoundFile(path) as file:
            rate = file.samplerate
            samples = file.read(frames=int(np.ceil(max_seconds * rate)), dtype="float32", always_2d=True)
    except soundfile.SoundFileError as error:
        if not Path(path).exists():
            raise UserError(f"sound not found: {path}", "check the sample's path and dataset.path") from None
        raise UserError(f"cannot read the sound {path}: {error}", "replace the file or drop the sample") from error
    mono = samples.mean(axis=1)
    if not np.isfinite(mono).all():
        raise UserError(f"the sound {path} holds samples that are not finite", "replace the file or drop the sample")
    if len(mono) < MIN_SECONDS * rate:
        raise UserError(f"the sound {path} lasts {len(mono) / rate:.3f} s, less than {MIN_SECONDS} s")
    if rate != SAMPLING_RATE:
        mono = soxr.resample(mono, rate, SAMPLING_RATE)
    return np.ascontiguousarray(mono[: int(max_seconds * SAMPLING_RATE)], dtype=np.float32)
