"""From a sample to what the model takes: the real `Qwen2_5OmniProcessor`, once per prompt, explicit M-RoPE positions.

Shapes: B prompts, R rows (a row is one completion with its prompt), P prompt tokens, C completion tokens.
Masks are True (or 1) where something counts. Prompts are padded on the left, completions on the right.

The position of completion token j is `next_position + j` on all three M-RoPE axes. A picture takes fewer positions than
tokens, so this is not P + j; and the model keeps its own offset as module state that goes stale between calls. Hence
positions are computed here, once per prompt, and passed to every forward.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pickle import UnpicklingError
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL.Image import Image
from safetensors import SafetensorError
from torch import Tensor
from transformers import Qwen2_5OmniProcessor

from echoink.common.errors import UserError
from echoink.config.paths import resolve
from echoink.config.schema import Prompt
from echoink.data.prompts import build_messages
from echoink.data.samples import Sample, load_sound
from echoink.media import loaders
from echoink.media.loaders import GRID, VideoCaps

if TYPE_CHECKING:
    from transformers import Qwen2_5OmniProcessor, Qwen2_5OmniThinkerForConditionalGeneration


MEDIA = (
    "pixel_values",
    "image_grid_thw",
    "pixel_values_videos",
    "video_grid_thw",
    "input_features",
    "feature_attention_mask",
)
"""What the processor makes of media, by the names under which the model takes it."""

_ONE_AT_A_TIME = Lock()
"""A tokenizer is not for several threads."""


@dataclass(frozen=True)
class PromptInputs:
    """One prompt as the model takes it.

    Example: a picture of 112 pixels a side and one second of sound give `input_ids` [116], `position_ids` [3, 116] and
    `media` with `pixel_values` [64, 1176], `image_grid_thw` [1, 3], `input_features` [1, 128, 104] and
    `feature_attention_mask` [1, 104].
    """

    input_ids: Tensor
    """[P]"""
    position_ids: Tensor
    """[3, P]: temporal, height, width."""
    media: dict[str, Tensor]
    """Processor outputs by the name under which the model takes them; the first axis runs over patches or sounds."""

    @property
    def next_position(self) -> int:
        """Position of the first completion token."""
        return int(self.position_ids.max()) + 1


@dataclass(frozen=True)
class Caps:
    """How much of its media, and how long a prompt, the model gets. Pictures are capped by the model's processor."""

    audio_seconds: float
    video: VideoCaps
    prompt_tokens: int


@dataclass(frozen=True)
class PromptProcessor:
    """Turns samples into `PromptInputs` with one model's processor, one prompt and one set of caps."""

    processor: "Qwen2_5OmniProcessor"
    model: "Qwen2_5OmniThinkerForConditionalGeneration"
    """Only its M-RoPE arithmetic is used."""
    prompt: Prompt
    caps: Caps
    workers: int = 0
    """Threads that make prompts before they are needed, see `ahead`."""

    def __call__(self, sample: Sample) -> PromptInputs:
        """Decode the sample's media and tokenize its prompt.

        Raises:
            UserError: a file cannot be read, or the prompt is longer than its cap (media are never cut).
        """
        try:
            image = loaders.load_image(sample.image) if sample.image else None
            video = loaders.load_video(sample.video, self.caps.video) if sample.video else None
            sound = load_sound(sample, self.caps.audio_seconds)
        except UserError as error:
            raise UserError(f"sample {sample.id}: {error.problem}", error.hint) from error
        prompt = encode(
            self.processor,
            self.model,
            build_messages(sample, self.prompt),
            image,
            sound.samples if sound else None,
            video.frames if video else None,
            video.fps if video else 2.0,
        )
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
        text = chat_text(self.processor, build_messages(sample, self.prompt))
        woven = (
            2 if sample.video and (sample.audio or "audio" in sample.data_type.value) else 0
        )  # bos and eos of a sound
        return len(self.processor.tokenizer(text)["input_ids"]) + woven


def chat_text(processor: "Qwen2_5OmniProcessor", messages: list[dict]) -> str:
    """A conversation as the model reads it, a placeholder for each medium, up to where the assistant speaks."""
    return processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def encode(
    processor: "Qwen2_5OmniProcessor",
    model: "Qwen2_5OmniThinkerForConditionalGeneration",
    messages: list[dict],
    image: Image | None = None,
    audio: np.ndarray | None = None,
    video: np.ndarray | None = None,
    fps: float = 2.0,
) -> PromptInputs:
    """Tokenize a conversation with at most one picture, sound and video, and compute its positions.

    A sound without a place of its own in the conversation is woven into the video: chunks of two seconds of frames and
    of sound take turns, as in Omni's audio-in-video, and share the clock of their positions.

    Args:
        processor: the model's.
        model: only its M-RoPE arithmetic is used.
        messages: see `prompts.build_messages`; its turns name the media that are given.
        image: RGB.
        audio: mono samples at 16 kHz.
        video: frames [F, 3, height, width], unsigned bytes.
        fps: frames a second of the video.

    Raises:
        UserError: the chat template leaves a medium out.
    """
    parts = [part["type"] for turn in messages if not isinstance(turn["content"], str) for part in turn["content"]]
    woven = video is not None and audio is not None and "audio" not in parts
    given: dict = {}
    if image is not None:
        given["images"] = [image]
    if audio is not None:
        # The extractor pads to `max_length`; the published configuration says 300 s, which costs 30 times the work of a
        # 10 s clip. A few frames of silence past the end give the same features (the mask drops them).
        hop = processor.feature_extractor.hop_length
        given |= {"audio": [audio], "audio_kwargs": {"max_length": (len(audio) // hop + 4) * hop}}
    if video is not None:
        pixels = video.shape[2] * video.shape[3]  # frames are scaled where they are decoded
        size = {"shortest_edge": min(pixels, GRID**2), "longest_edge": max(pixels, GRID**2)}
        given |= {"videos": [video], "videos_kwargs": {"fps": fps, "size": size}}
    if woven:
        given |= {"load_audio_from_video": True, "audio_from_video_indices": [0]}
    with _ONE_AT_A_TIME:
        encoded = processor(text=[chat_text(processor, messages)], **given, return_tensors="pt")
    per_grid = encoded.get("video_second_per_grid")
    positions, _ = model.get_rope_index(
        encoded["input_ids"],
        image_grid_thw=encoded.get("image_grid_thw"),
        video_grid_thw=encoded.get("video_grid_thw"),
        attention_mask=encoded["attention_mask"],
        use_audio_in_video=woven,
        audio_seqlens=encoded["feature_attention_mask"].sum(-1) if audio is not None else None,
        second_per_grids=torch.as_tensor(per_grid) if per_grid is not None else None,
    )
    media = {name: encoded[name] for name in MEDIA if name in encoded}
    _check_placeholders(model, encoded["input_ids"][0], image, audio, video)
    return PromptInputs(encoded["input_ids"][0], positions[:, 0], media)


def _check_placeholders(model, input_ids: Tensor, image, audio, video) -> None:
    config = model.config
    tokens = {"picture": config.image_token_id, "sound": config.audio_token_id, "video": config.video_token_id}
    for (name, token), medium in zip(tokens.items(), (image, audio, video), strict=True):
        there = bool((input_ids == token).any())
        if there != (medium is not None):
            raise UserError(
                f"the prompt has {'no' if medium is not None else 'a'} place for a {name}",
                "the model's chat template must write a placeholder for every medium of the user turn",
            )


def prompt_batch(prompts: Sequence[PromptInputs], pad_id: int) -> dict[str, Tensor]:
    """Left-padded inputs of B prompts: `input_ids`, `attention_mask` [B, P], `position_ids` [3, B, P] and media."""
    width = max(len(prompt.input_ids) for prompt in prompts)
    input_ids = torch.full((len(prompts), width), pad_id)
    mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        input_ids[row, width - len(prompt.input_ids) :] = prompt.input_ids
        mask[row, width - len(prompt.input_ids) :] = 1
    owner = range(len(prompts))
    positions = row_positions(prompts, owner, width, 0)
    return {"input_ids": input_ids, "attention_mask": mask, "position_ids": positions, **row_media(prompts, owner)}


def row_positions(
    prompts: Sequence[PromptInputs], owner: Sequence[int], prompt_width: int, completion_width: int
) -> Tensor:
    """Positions [3, R, P + C] of rows whose prompt is left-padded to P and whose completion is right-padded to C.

    Args:
        prompts: the unique prompts.
        owner: for each row the index of its prompt.
        prompt_width: P.
        completion_width: C.
    """
    positions = torch.zeros((3, len(owner), prompt_width + completion_width), dtype=torch.long)
    ahead = torch.arange(completion_width)
    for row, index in enumerate(owner):
        prompt = prompts[index]
        positions[:, row, prompt_width - prompt.position_ids.shape[1] : prompt_width] = prompt.position_ids
        positions[:, row, prompt_width:] = prompt.next_position + ahead
    return positions


def row_media(prompts: Sequence[PromptInputs], owner: Sequence[int]) -> dict[str, Tensor]:
    """Media of rows, in row order: each row carries its prompt's media again; a medium that none has is absent."""
    heard = [prompt.media["input_features"] for prompt in prompts if "input_features" in prompt.media]
    frames = max((features.shape[-1] for features in heard), default=0)
    parts: dict[str, list[Tensor]] = {}
    for index in owner:
        for name, value in prompts[index].media.items():
            if name in ("input_features", "feature_attention_mask"):
                value = torch.nn.functional.pad(value, (0, frames - value.shape[-1]))
            parts.setdefault(name, []).append(value)
    return {name: torch.cat(values) for name, values in parts.items()}


def load_processor(path: str, min_pixels: int, max_pixels: int) -> Qwen2_5OmniProcessor:
    """The processor of a model folder or hub id, with pictures scaled into `min_pixels` to `max_pixels`."""
    with as_user_error(path):
        processor = Qwen2_5OmniProcessor.from_pretrained(resolve(path))
    processor.image_processor.size = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
    return processor


@contextlib.contextmanager
def as_user_error(path: str):
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, UnpicklingError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]
        raise UserError(
            f"cannot load a model from {path}: {reason}",
            "give a folder with config.json, weights and processor files, or a hub id; checkpoint= takes run folders",
        ) from error
