"""How many tokens a family of models uses for a medium, computed before any weights or classes are loaded."""

import importlib
from typing import Protocol

from echoink.config.schema import ModelFamily


class MediaTokens(Protocol):
    """The module `echoink/models/<family>_tokens.py`."""

    GRID: int
    """The sides of a video's frames are scaled to multiples of so many pixels."""

    def image_size(self, width: int, height: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
        """Width and height to which a picture is scaled."""

    def image_tokens(self, width: int, height: int, min_pixels: int, max_pixels: int) -> int:
        """Tokens of a picture that has this size before it is scaled."""

    def audio_tokens(self, samples: int) -> int:
        """Tokens of a sound of so many samples at 16 kHz."""

    def video_tokens(self, frames: int, width: int, height: int) -> int:
        """Tokens of a video of so many frames of this size, which are already scaled."""


def arithmetic_of(family: ModelFamily) -> MediaTokens:
    """The module with the arithmetic of a family."""
    return importlib.import_module(f"echoink.models.{family.name}_tokens")
