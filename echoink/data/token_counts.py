"""The number of tokens of a prompt, by arithmetic alone: for the plan, and to refuse long prompts before training."""

from dataclasses import dataclass

from echoink.config.schema import ModelConfig
from echoink.data.media_check import MediaInfo
from echoink.media.loaders import SAMPLING_RATE
from echoink.models import media_tokens


@dataclass(frozen=True)
class Tokens:
    """Token counts of one prompt, by modality."""

    text: int
    image: int
    audio: int
    video: int

    @property
    def total(self) -> int:
        return self.text + self.image + self.audio + self.video


def prompt_tokens(media_info: MediaInfo, text: int, model: ModelConfig) -> Tokens:
    """Count the tokens of a prompt with these media.

    Args:
        media_info: what the files hold.
        text: tokens of the text, including one placeholder for each medium.
        model: its family, and the caps on pictures.
    """
    count = media_tokens.arithmetic_of(model.architecture.family)
    image = count.image_tokens(*media_info.image, model.min_pixels, model.max_pixels) if media_info.image else 0
    audio = count.audio_tokens(round(media_info.kept * SAMPLING_RATE)) if media_info.kept else 0
    video = count.video_tokens(media_info.frames, *media_info.frame) if media_info.frame else 0
    placeholders = bool(image) + bool(video) + (bool(audio) and not video)
    return Tokens(text - placeholders, image, audio, video)
