"""Qwen2.5-Omni as a family (see `family.Family`): its thinker, which listens, looks and writes, without the talker.

Positions are those of M-RoPE, on three axes (temporal, height, width). A picture takes fewer positions than tokens. The
model keeps an offset of its own as module state, which becomes outdated between calls; so positions are computed once
per prompt and passed to every forward.
"""

import copy
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor
from transformers import (
    Qwen2_5OmniConfig,
    Qwen2_5OmniProcessor,
    Qwen2_5OmniThinkerConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
)
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniThinkerModel

from echoink.models.family import UNUSED, Features, PromptInputs, place_features
from echoink.models.qwen2_5_omni_tokens import GRID

NAME = "Qwen2.5-Omni"
MODEL_TYPE = "qwen2_5_omni_thinker"
MODEL = Qwen2_5OmniThinkerForConditionalGeneration
POSITION_AXES = 3
MEDIA = (
    "pixel_values",
    "image_grid_thw",
    "pixel_values_videos",
    "video_grid_thw",
    "input_features",
    "feature_attention_mask",
)
TOWERS = {"audio": "audio_tower", "vision": "visual"}
PROJECTIONS = {"audio": "proj", "vision": "merger"}
OTHER_PARTS = ("talker.", "token2wav.")
SHARDED_UNITS = {
    "model.language_model.layers.*": "free_full_weight",
    "model.visual.blocks.*": "free_full_weight",
    "model.audio_tower.layers.*": "free_full_weight",
}
PUBLISHED_NAMES = (
    (re.compile(r"^model\.language_model\."), "thinker.model."),
    (re.compile(r"^model\.(audio_tower|visual)\."), r"thinker.\1."),
    (re.compile(r"^lm_head\."), "thinker.lm_head."),
)

_VISION_INPUTS = (
    ("image", "pixel_values", "image_grid_thw"),
    ("video", "pixel_values_videos", "video_grid_thw"),
)
"""The inputs of the vision tower: a medium, the names of its patches and of their grids."""


def own_config(config: Qwen2_5OmniConfig | Qwen2_5OmniThinkerConfig) -> Qwen2_5OmniThinkerConfig:
    return getattr(config, "thinker_config", config)


def prompt_inputs(
    processor: Qwen2_5OmniProcessor,
    model: Qwen2_5OmniThinkerForConditionalGeneration,
    text: str,
    image: Image | None,
    audio: np.ndarray | None,
    video: np.ndarray | None,
    fps: float,
    audio_in_video: bool,
) -> PromptInputs:
    """See `Family`. A video's own sound alternates with its frames, in parts of two seconds, on the same clock. Parts
    are longer if the frames are so far apart that one would have none.
    """
    given: dict = {}
    if image is not None:
        given["images"] = [image]
    if audio is not None:
        # The extractor pads to `max_length`; the published configuration says 300 s, which costs 30 times the work of a
        # 10 s clip. A few frames of silence past the end give the same features (the mask drops them).
        hop = processor.feature_extractor.hop_length
        given |= {"audio": [audio], "audio_kwargs": {"max_length": (len(audio) // hop + 4) * hop}}
    if video is not None:
        pixels = video.shape[2] * video.shape[3]  # frames are scaled when they are decoded
        size = {"shortest_edge": min(pixels, GRID**2), "longest_edge": max(pixels, GRID**2)}
        given |= {"videos": [video], "videos_kwargs": {"fps": fps, "size": size}}
    if audio_in_video:
        given |= {"load_audio_from_video": True, "audio_from_video_indices": [0]}
        if (seconds := _seconds_per_part(2 / fps, len(video) // 2)) != model.config.seconds_per_chunk:
            given["videos_kwargs"]["seconds_per_chunk"] = float(seconds)
            model = copy.copy(model)  # for its arithmetic alone: the weights are shared
            model.config = copy.copy(model.config)
            model.config.seconds_per_chunk = seconds
    encoded = processor(text=[text], **given, return_tensors="pt")
    per_grid = encoded.get("video_second_per_grid")
    positions, _ = model.get_rope_index(
        encoded["input_ids"],
        image_grid_thw=encoded.get("image_grid_thw"),
        video_grid_thw=encoded.get("video_grid_thw"),
        attention_mask=encoded["attention_mask"],
        use_audio_in_video=audio_in_video,
        audio_seqlens=encoded["feature_attention_mask"].sum(-1) if audio is not None else None,
        second_per_grids=torch.as_tensor(per_grid) if per_grid is not None else None,
    )
    media = {name: encoded[name] for name in MEDIA if name in encoded}
    return PromptInputs(encoded["input_ids"][0], positions[:, 0], media)


def _seconds_per_part(seconds_per_grid: float, grids: int) -> int:
    """How many seconds of frames and of sound alternate.

    The processor begins a new part at most once per token. If a grid of frames skipped a part, it would be torn: one of
    its tokens before a part of the sound, the others after it.
    """
    parts = [int(number * seconds_per_grid / 2) for number in range(grids)]
    skips = any(later - earlier > 1 for earlier, later in itertools.pairwise(parts))
    return math.ceil(seconds_per_grid) if skips else 2


def placeholders(config: Qwen2_5OmniThinkerConfig) -> dict[str, int]:
    return {"image": config.image_token_id, "video": config.video_token_id, "audio": config.audio_token_id}


def encode(base: Qwen2_5OmniThinkerModel, media: Mapping[str, Tensor], run_all: bool) -> Features:
    """See `Family`. Pictures and videos go through the vision tower together."""
    device = base.get_input_embeddings().weight.device
    media = {name: value.to(device) for name, value in media.items()}
    encoded: Features = {}
    seen = [(name, *keys) for name, *keys in _VISION_INPUTS if keys[0] in media]
    if seen:
        patches = torch.cat([media[values] for _, values, _ in seen])
        grids = [media[grid] for _, _, grid in seen]
        found = base.get_image_features(patches, torch.cat(grids), return_dict=True).pooler_output
        for name, _, grid in seen:
            encoded[name], found = torch.cat(tuple(found[: len(media[grid])])), found[len(media[grid]) :]
    elif run_all:
        encoded[UNUSED] = 0 * torch.cat(tuple(_encode_black_picture(base, device))).sum()
    if "input_features" in media:
        mask = media["feature_attention_mask"]
        encoded["audio"] = base.get_audio_features(media["input_features"], mask, return_dict=True).last_hidden_state
    elif run_all:
        encoded[UNUSED] = encoded.get(UNUSED, 0) + 0 * _encode_silence(base, device).sum()
    return encoded


def embed(base: Qwen2_5OmniThinkerModel, input_ids: Tensor, features: Sequence[Features]) -> dict[str, Any]:
    embeddings = base.get_input_embeddings()(input_ids)
    return {"inputs_embeds": place_features(embeddings, input_ids, features, placeholders(base.config))}


def positions(position_ids: Tensor) -> dict[str, Any]:
    return {"position_ids": position_ids}


def padding_mask(mask: Tensor) -> dict[str, Any]:
    return {"attention_mask": mask}


def no_mask() -> dict[str, Any]:
    return {"attention_mask": {"full_attention": None}}


def language_model(base: Qwen2_5OmniThinkerModel) -> torch.nn.Module:
    return base.language_model


def logits(model: Qwen2_5OmniThinkerForConditionalGeneration, hidden: Tensor) -> Tensor:
    return model.lm_head(hidden)


def vllm_config(config: Qwen2_5OmniThinkerConfig) -> Qwen2_5OmniConfig:
    dimensions = {key: value for key, value in config.to_dict().items() if key != "quantization_config"}
    whole = Qwen2_5OmniConfig(thinker_config=dimensions, enable_audio_output=False)
    whole.architectures = ["Qwen2_5OmniModel"]
    return whole


def vllm_fields(config: Qwen2_5OmniThinkerConfig) -> tuple[str, str, tuple]:
    module = "vllm.model_executor.models.qwen2_5_omni_thinker"
    return module, "create_qwen2_5_omni_thinker_field_factory", (config.vision_config.spatial_merge_size,)


def vllm_media(media: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    found = {name: value.numpy() for name, value in media.items()}
    if "input_features" in found:
        heard = found["feature_attention_mask"][0].astype(bool)  # an extractor may pad on either side
        found["input_audio_features"] = found.pop("input_features")[0][:, heard]
        found["audio_feature_lengths"] = np.array([int(heard.sum())])
    return found


def _encode_black_picture(base: Qwen2_5OmniThinkerModel, device: torch.device) -> Sequence[Tensor]:
    # the smallest picture: one token
    config = base.visual.config
    side = config.spatial_merge_size
    values = config.in_channels * config.temporal_patch_size * config.patch_size**2
    grid = torch.tensor([[1, side, side]], device=device)
    return base.get_image_features(
        torch.zeros(side * side, values, device=device), grid, return_dict=True
    ).pooler_output


def _encode_silence(base: Qwen2_5OmniThinkerModel, device: torch.device) -> Tensor:
    # the shortest sound: 4 frames of the spectrogram are one token
    spectrogram = torch.zeros(1, base.config.audio_config.num_mel_bins, 4, device=device)
    mask = torch.ones(1, 4, dtype=torch.long, device=device)
    return base.get_audio_features(spectrogram, mask, return_dict=True).last_hidden_state
