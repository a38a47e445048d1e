"""How many tokens a family of models makes of a medium, known before any of its weights or classes is loaded."""

import importlib
from typing import Protocol

from echoink.config.schema import ModelFamily


class MediaTokens(Protocol):
    """The module `echoink/models/<family>_tokens.py`."""

    GRID: int
    """Frames of a video are scaled to multiples of so many pixels a side."""

    def image_size(self, width: int, height: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
        """Width and height to which a picture is scaled."""

    def image_tokens(self, width: int, height: int, min_pixels: int, max_pixels: int) -> int:
        """Of a picture of that size, before scaling."""

    def audio_tokens(self, samples: int) -> int:
        """Of so many samples at 16 kHz."""

    def video_tokens(self, frames: int, width: int, height: int) -> int:
        """Of so many frames, scaled."""


def arithmetic_of(family: ModelFamily) -> MediaTokens:
    """The arithmetic of a family."""
    return importlib.import_module(f"echoink.models.{family.name}_tokens")
