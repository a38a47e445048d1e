"""The interface of a model family; the rest of the package names no model class.

A family is a module with the names of `Family`, such as `models/qwen2_5_omni.py`; `models/registry.py` lists them. The
module `<family>_tokens.py` belongs to it, see `models/media_tokens.py`.

Shapes: A position axes (3 for M-RoPE), P prompt tokens, T tokens of a row, N placeholder tokens of a medium, D width of
the language model, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from re import Pattern
from typing import Any, Protocol

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, ProcessorMixin

Features = dict[str, Tensor]
"""The towers' features of one prompt's media: `image`, `video`, `audio`, each [N, D]. An absent medium has no entry."""

UNUSED = "unused"
"""Key of another entry of `Features`: a zero that depends on the towers that had nothing to encode."""


@dataclass(frozen=True)
class PromptInputs:
    """One prompt as input of the model.

    Example: with Qwen2.5-Omni a picture of 112 pixels a side and one second of sound give `input_ids` [116],
    `position_ids` [3, 116] and `media` with `pixel_values` [64, 1176], `image_grid_thw` [1, 3], `input_features`
    [1, 128, 104] and `feature_attention_mask` [1, 104].
    """

    input_ids: Tensor
    """[P]"""
    position_ids: Tensor
    """[A, P]"""
    media: dict[str, Tensor]
    """The processor's outputs by the names of the model's arguments; the first axis is patches, media or sounds."""

    @property
    def next_position(self) -> int:
        """Position of the first completion token, the same on all axes."""
        return int(self.position_ids.max()) + 1


class Family(Protocol):
    """One family of models. `model` is a model with its head, `base` the same without it (`model.model`)."""

    NAME: str
    """The name that messages use."""
    MODEL_TYPE: str
    """`model_type` in the configuration of `MODEL`."""
    MODEL: type[PreTrainedModel]
    POSITION_AXES: int
    """A"""
    MEDIA: Sequence[str]
    """Names of the processor's outputs that the towers take."""
    TOWERS: Mapping[str, str]
    """The towers' names, as in `model.freeze`, and the modules of `base` that they stand for."""
    PROJECTIONS: Mapping[str, str]
    """For each tower, by its name, its module that projects to the width of the language model."""
    OTHER_PARTS: tuple[str, ...]
    """Prefixes of the names of published weights that training does not use."""
    SHARDED_UNITS: Mapping[str, str]
    """The units that FSDP2 gathers at a time, in transformers' notation of an `fsdp_plan`."""
    PUBLISHED_NAMES: Sequence[tuple[Pattern[str], str]]
    """Patterns and replacements that turn a weight's name in transformers into its published name, which vLLM reads."""

    def own_config(self, config: PretrainedConfig) -> PretrainedConfig:
        """The part of a published configuration that `MODEL` uses."""

    def prompt_inputs(
        self,
        processor: ProcessorMixin,
        model: PreTrainedModel,
        text: str,
        image: Image | None,
        audio: np.ndarray | None,
        video: np.ndarray | None,
        fps: float,
        audio_in_video: bool,
    ) -> PromptInputs:
        """Tokens, positions and media tensors of a prompt whose chat template has been applied.

        Args:
            processor: the model's.
            model: only its configuration and its position arithmetic are used.
            text: the text, with one placeholder for each medium.
            image: RGB.
            audio: mono samples at 16 kHz.
            video: frames [F, 3, height, width], unsigned bytes.
            fps: frames a second of the video.
            audio_in_video: whether the sound is the video's own, and interleaved with its frames.
        """

    def placeholders(self, config: PretrainedConfig) -> dict[str, int]:
        """The token that stands for each of `image`, `video`, `audio` in `input_ids`."""

    def encode(self, base: torch.nn.Module, media: Mapping[str, Tensor], run_all: bool) -> Features:
        """Run each tower once over a batch's media tensors.

        Args:
            base: the model without its head.
            media: the processor's tensors, on any device.
            run_all: also run a tower that has nothing to encode, and add a zero that depends on it as `UNUSED`.

        Returns:
            The features of the whole batch: those of all prompts, in their order, concatenated for each medium.
        """

    def embed(self, base: torch.nn.Module, input_ids: Tensor, features: Sequence[Features]) -> dict[str, Any]:
        """Keyword arguments that replace `input_ids` [..., T] for the language model: features replace placeholders."""

    def positions(self, position_ids: Tensor) -> dict[str, Any]:
        """Positions [A, B, T] as keyword arguments of the language model."""

    def padding_mask(self, mask: Tensor) -> dict[str, Any]:
        """A mask [B, T], 1 where there is a token, as keyword arguments of the language model."""

    def no_mask(self) -> dict[str, Any]:
        """Keyword arguments that keep the language model from making a mask, because our attention needs none."""

    def language_model(self, base: torch.nn.Module) -> torch.nn.Module:
        """The decoder layers with their embedding and final norm."""

    def logits(self, model: PreTrainedModel, hidden: Tensor) -> Tensor:
        """Logits [..., V] from hidden states [..., D]."""

    def vllm_config(self, config: PretrainedConfig) -> PretrainedConfig:
        """The configuration that vLLM reads."""

    def vllm_fields(self, config: PretrainedConfig) -> tuple[str, str, tuple]:
        """Module, name and arguments of vLLM's function that says how a prompt's media tensors are split into items."""

    def vllm_media(self, media: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """A prompt's media tensors by the names of vLLM's fields."""


def place_features(
    embeddings: Tensor, input_ids: Tensor, features: Sequence[Features], placeholders: Mapping[str, int]
) -> Tensor:
    """Embeddings [..., T, D] with the features of each medium at its placeholders, in their order.

    Args:
        embeddings: embeddings of `input_ids`, [..., T, D].
        input_ids: token ids, [..., T].
        features: features of the prompts in `input_ids`, in their order.
        placeholders: the token that stands for each medium.
    """
    for name, token in placeholders.items():
        parts = [found[name] for found in features if name in found]
        if parts:
            where = (input_ids == token).unsqueeze(-1)
            embeddings = embeddings.masked_scatter(where, torch.cat(parts).to(embeddings.dtype))
    for found in features:
        if UNUSED in found:
            embeddings = embeddings + found[UNUSED].to(embeddings.dtype)
    return embeddings
