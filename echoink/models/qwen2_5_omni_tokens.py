"""How many tokens Qwen2.5-Omni uses for a medium: the processor's arithmetic, without decoding anything again.

A test compares it with the processor (tests/data/test_token_counts.py). It is separate from `qwen2_5_omni` because the
plan needs it before any model is imported.
"""

GRID = 28
"""Side, in pixels, of the square that one token of a picture stands for."""
HOP = 160
"""Samples of sound at 16 kHz per frame of Whisper features."""


def image_size(width: int, height: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Width and height to which a picture is scaled: multiples of `GRID`, with `min_pixels` to `max_pixels` in all."""
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize  # imports torchvision

    height, width = smart_resize(height, width, factor=GRID, min_pixels=min_pixels, max_pixels=max_pixels)
    return width, height


def image_tokens(width: int, height: int, min_pixels: int, max_pixels: int) -> int:
    """Tokens of a picture: one for each square with a side of 28 pixels, after scaling."""
    width, height = image_size(width, height, min_pixels, max_pixels)
    return width * height // GRID**2


def audio_tokens(samples: int) -> int:
    """Tokens of a sound at 16 kHz: 25 per second; 100 frames per second are halved twice, by strides of 2."""
    frames = -(-samples // HOP)
    return ((frames - 1) // 2 + 1 - 2) // 2 + 1


def video_tokens(frames: int, width: int, height: int) -> int:
    """Tokens of a video's frames, whose sides are multiples of 28: two frames share their tokens."""
    return frames // 2 * width * height // GRID**2
