"""How many tokens Qwen2.5-Omni makes of a medium: the processor's arithmetic, without decoding anything again.

A test compares it with the processor (tests/data/test_token_counts.py). It stands apart from `qwen2_5_omni` because the
plan needs it before any model is imported.
"""

GRID = 28
"""Pixels of a side of the square that one token of a picture stands for."""
HOP = 160
"""Samples of sound at 16 kHz per frame of Whisper features."""


def image_size(width: int, height: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Width and height to which a picture is scaled: multiples of `GRID`, of `min_pixels` … `max_pixels`."""
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize  # imports torchvision

    height, width = smart_resize(height, width, factor=GRID, min_pixels=min_pixels, max_pixels=max_pixels)
    return width, height


def image_tokens(width: int, height: int, min_pixels: int, max_pixels: int) -> int:
    """Of a picture: one for each square of 28 pixels a side, after scaling."""
    width, height = image_size(width, height, min_pixels, max_pixels)
    return width * height // GRID**2


def audio_tokens(samples: int) -> int:
    """Of a sound at 16 kHz: 25 a second; each of the encoder's two strides halves 100 frames a second."""
    frames = -(-samples // HOP)
    return ((frames - 1) // 2 + 1 - 2) // 2 + 1


def video_tokens(frames: int, width: int, height: int) -> int:
    """Of a video's frames, sides multiples of 28: two frames share their tokens."""
    return frames // 2 * width * height // GRID**2
