"""Turns a sample into the model's inputs: the model's own processor runs once per prompt."""

from dataclasses import dataclass
from threading import Lock
from typing import NamedTuple

import numpy as np
from PIL.Image import Image
from transformers import PreTrainedModel, ProcessorMixin

from echoink.common.errors import UserError
from echoink.config.schema import Prompt
from echoink.data.prompts import build_messages
from echoink.data.samples import Sample, load_sound
from echoink.media import loaders
from echoink.media.loaders import VideoCaps
from echoink.models.family import PromptInputs
from echoink.models.registry import family_of

_ONE_AT_A_TIME = Lock()
"""A tokenizer is not thread-safe."""


@dataclass(frozen=True)
class Caps:
    """Caps on sound, video and the length of a prompt. The model's processor caps pictures."""

    audio_seconds: float
    video: VideoCaps
    prompt_tokens: int


class Media(NamedTuple):
    """A sample's media, decoded and within their caps; None where the sample has none of the kind."""

    image: Image | None
    video: loaders.Video | None
    sound: loaders.Sound | None


@dataclass(frozen=True)
class PromptProcessor:
    """Turns samples into `PromptInputs` with one model's processor, one prompt and one set of caps."""

    processor: ProcessorMixin
    model: PreTrainedModel
    """Only its configuration and its position arithmetic are used."""
    prompt: Prompt
    caps: Caps
    workers: int = 0
    """Threads that make prompts before they are needed, see `prefetch`."""

    def __call__(self, sample: Sample) -> PromptInputs:
        """Decode the sample's media and tokenize its prompt.

        Raises:
            UserError: a file cannot be read, or the prompt is longer than its cap (a prompt is never truncated).
        """
        return self.encoded(sample, self.load(sample))

    def load(self, sample: Sample) -> Media:
        """Decode the sample's media.

        Raises:
            UserError: a file cannot be read.
        """
        try:
            return Media(
                loaders.load_image(sample.image) if sample.image else None,
                loaders.load_video(sample.video, self.caps.video) if sample.video else None,
                load_sound(sample, self.caps.audio_seconds),
            )
        except UserError as error:
            raise UserError(f"sample {sample.id}: {error.problem}", error.hint) from error

    def encoded(self, sample: Sample, media: Media) -> PromptInputs:
        """Tokenize a sample's prompt with its media.

        Raises:
            UserError: the prompt is longer than its cap, or see `encode`.
        """
        image, video, sound = media
        try:
            prompt = encode(
                self.processor,
                self.model,
                build_messages(sample, self.prompt),
                image=image,
                audio=sound.samples if sound else None,
                video=video.frames if video else None,
                fps=video.fps if video else 2.0,
            )
        except UserError as error:
            raise UserError(f"sample {sample.id}: {error.problem}", error.hint) from error
        self.check_length(sample, len(prompt.input_ids))
        return prompt

    def check_length(self, sample: Sample, tokens: int) -> None:
        """Raises `UserError` where a prompt is longer than its cap."""
        if tokens > self.caps.prompt_tokens:
            raise UserError(
                f"sample {sample.id}: its prompt has {tokens} tokens, the cap is {self.caps.prompt_tokens}",
                "raise model.max_prompt_tokens, or lower model.max_pixels, model.max_audio_seconds or the video caps",
            )

    def text_tokens(self, sample: Sample) -> int:
        """Tokens of a sample's prompt with one placeholder for each medium; no file is opened."""
        return text_tokens(self.processor, sample, self.prompt)


def text_tokens(processor: ProcessorMixin, sample: Sample, prompt: Prompt) -> int:
    """Tokens of a sample's prompt with one placeholder for each medium; no file is opened."""
    text = chat_text(processor, build_messages(sample, prompt))
    # A sound interleaved with its video keeps its own start and end tokens.
    woven = 2 if sample.video and (sample.audio or "audio" in sample.data_type.value) else 0
    return len(processor.tokenizer(text)["input_ids"]) + woven


def chat_text(processor: ProcessorMixin, messages: list[dict]) -> str:
    """A conversation as the model reads it, with a placeholder per medium, up to the start of the assistant's turn."""
    return processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def encode(
    processor: ProcessorMixin,
    model: PreTrainedModel,
    messages: list[dict],
    image: Image | None = None,
    audio: np.ndarray | None = None,
    video: np.ndarray | None = None,
    fps: float = 2.0,
) -> PromptInputs:
    """Tokenize a conversation with at most one picture, sound and video, and compute its positions.

    A sound that the conversation does not mention is the video's soundtrack.

    Args:
        processor: the model's.
        model: only its configuration and its position arithmetic are used.
        messages: see `prompts.build_messages`; its turns name the media that are given.
        image: RGB.
        audio: mono samples at 16 kHz.
        video: frames [F, 3, height, width], unsigned bytes.
        fps: frames a second of the video.

    Raises:
        UserError: the processor refuses it: the chat template leaves a medium out, or a text contains a placeholder.
    """
    parts = [part["type"] for turn in messages if not isinstance(turn["content"], str) for part in turn["content"]]
    audio_in_video = video is not None and audio is not None and "audio" not in parts
    family = family_of(model)
    with _ONE_AT_A_TIME:
        text = chat_text(processor, messages)
        try:
            return family.prompt_inputs(
                processor, model, text, image=image, audio=audio, video=video, fps=fps, audio_in_video=audio_in_video
            )
        except ValueError as error:  # it counts placeholders
            hint = "the chat template must write a placeholder for every medium; no other text may contain one"
            raise UserError(f"the processor refuses the prompt: {error}", hint) from error
