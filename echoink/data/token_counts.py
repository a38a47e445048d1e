"""How many tokens a prompt has, by arithmetic alone: for the plan, and for refusing a long prompt before training.

The same figures as the processor's, without decoding anything again (a test compares them).
"""

from dataclasses import dataclass

from echoink.data.media_check import MediaInfo
from echoink.media.loaders import GRID, SAMPLING_RATE

HOP = 160
"""Samples of sound per frame of Whisper features."""


@dataclass(frozen=True)
class Tokens:
    """Of one prompt, by modality."""

    text: int
    image: int
    audio: int
    video: int

    @property
    def total(self) -> int:
        return self.text + self.image + self.audio + self.video


def image_tokens(width: int, height: int, min_pixels: int, max_pixels: int) -> int:
    """Of a picture: one for each square of 28 pixels a side, after scaling to `min_pixels` … `max_pixels`."""
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    sides = smart_resize(height, width, factor=GRID, min_pixels=min_pixels, max_pixels=max_pixels)
    return sides[0] * sides[1] // GRID**2


def audio_tokens(seconds: float) -> int:
    """Of a sound: 25 a second; each of the encoder's two strides halves 100 frames a second."""
    frames = -(-round(seconds * SAMPLING_RATE) // HOP)
    return ((frames - 1) // 2 + 1 - 2) // 2 + 1


def video_tokens(frames: int, width: int, height: int) -> int:
    """Of a video's frames, sides multiples of 28: two frames share their tokens."""
    return frames // 2 * width * height // GRID**2


def prompt_tokens(media_info: MediaInfo, text: int, min_pixels: int, max_pixels: int) -> Tokens:
    """Of a prompt with these media.

    Args:
        media_info: what the files hold.
        text: tokens of the text, one placeholder for each medium among them.
        min_pixels: of a picture.
        max_pixels: of a picture.
    """
    image = image_tokens(*media_info.image, min_pixels, max_pixels) if media_info.image else 0
    audio = audio_tokens(media_info.kept) if media_info.kept else 0
    video = video_tokens(media_info.frames, *media_info.frame) if media_info.frame else 0
    placeholders = bool(image) + bool(video) + (bool(audio) and not video)
    return Tokens(text - placeholders, image, audio, video)
