"""Pictures, sounds and videos through their towers, once per prompt, and from there into the prompt's embeddings.

The features of a prompt serve whoever runs the same towers on it: rollout, policy and reference share them where the
towers are frozen. Where the towers learn, each update encodes once, with gradients, in the model's own forward.

Shapes: B prompts, P prompt tokens, D width of the language model, N placeholder tokens of a medium.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniThinkerModel

from echoink.data.processor import PromptInputs, row_media

Features = dict[str, Tensor]
"""What the towers make of one prompt's media: `image`, `video`, `audio`, each [N, D]; absent media are absent."""

NOTHING = "nothing"
"""Beside them, in a loss: a zero that depends on the towers that had nothing to do, see `run_towers`."""

_SEEN = (
    ("image", "pixel_values", "image_grid_thw"),
    ("video", "pixel_values_videos", "video_grid_thw"),
)
"""What the vision tower takes: a medium, its patches, their grids."""


def towers_learn(thinker: Qwen2_5OmniThinkerModel) -> bool:
    """Whether any weight of the audio or vision tower (an adapter's included) gets a gradient."""
    return any(p.requires_grad for tower in (thinker.audio_tower, thinker.visual) for p in tower.parameters())


def same_towers(one: Qwen2_5OmniThinkerModel, other: Qwen2_5OmniThinkerModel) -> bool:
    """Whether two models' towers hold the same weights, bit for bit."""
    pairs = [
        zip(getattr(one, name).parameters(), getattr(other, name).parameters(), strict=True)
        for name in ("audio_tower", "visual")
    ]
    return all(a is b or torch.equal(a, b) for pair in pairs for a, b in pair)


def encode_media(
    thinker: Qwen2_5OmniThinkerModel, prompts: Sequence[PromptInputs], alike: bool = False
) -> list[Features]:
    """Run each tower once over the media of B prompts.

    Args:
        thinker: its towers and configuration.
        prompts: whose `media` are encoded; prompts may differ in what they have.
        alike: see `run_towers`.

    Returns:
        One `Features` per prompt.
    """
    media = row_media(prompts, range(len(prompts)))
    encoded = run_towers(thinker, media, alike)
    features: list[Features] = [{} for _ in prompts]
    for name, token in placeholders(thinker).items():
        if name not in encoded:
            continue
        counts = [int((prompt.input_ids == token).sum()) for prompt in prompts]
        whole = encoded[name]
        assert sum(counts) == len(whole), f"{len(whole)} {name} features for {sum(counts)} placeholder tokens"
        for found, part, count in zip(features, whole.split(counts), counts, strict=True):
            if count:
                found[name] = part
    if NOTHING in encoded:
        features[0][NOTHING] = encoded[NOTHING]
    return features


def run_towers(thinker: Qwen2_5OmniThinkerModel, media: Mapping[str, Tensor], alike: bool = False) -> Features:
    """Run each tower once, pictures and videos together.

    Args:
        thinker: its towers and configuration.
        media: the processor's tensors, on any device.
        alike: run also the tower that has nothing to do, on one patch or one token of silence, and return a zero that
            depends on it (`NOTHING`). Processes that share out a tower's weights must all call it, in the same order,
            and have a gradient for each of its weights, whatever media their own prompts have.
    """
    device = thinker.get_input_embeddings().weight.device
    media = {name: value.to(device) for name, value in media.items()}
    encoded: Features = {}
    seen = [(name, *keys) for name, *keys in _SEEN if keys[0] in media]
    if seen:
        patches = torch.cat([media[values] for _, values, _ in seen])
        grids = [media[grid] for _, _, grid in seen]
        found = thinker.get_image_features(patches, torch.cat(grids), return_dict=True).pooler_output
        for name, _, grid in seen:
            encoded[name], found = torch.cat(tuple(found[: len(media[grid])])), found[len(media[grid]) :]
    elif alike:
        encoded[NOTHING] = 0 * torch.cat(tuple(_see_nothing(thinker, device))).sum()
    if "input_features" in media:
        mask = media["feature_attention_mask"]
        encoded["audio"] = thinker.get_audio_features(media["input_features"], mask, return_dict=True).last_hidden_state
    elif alike:
        encoded[NOTHING] = encoded.get(NOTHING, 0) + 0 * _hear_nothing(thinker, device).sum()
    return encoded


def embed(thinker: Qwen2_5OmniThinkerModel, input_ids: Tensor, features: Sequence[Features]) -> Tensor:
    """Embeddings [..., D] of `input_ids` [...], features in the place of placeholder tokens, in their order."""
    embeddings = thinker.get_input_embeddings()(input_ids)
    for name, token in placeholders(thinker).items():
        parts = [found[name] for found in features if name in found]
        if parts:
            where = (input_ids == token).unsqueeze(-1)
            embeddings = embeddings.masked_scatter(where, torch.cat(parts).to(embeddings.dtype))
    for found in features:
        if NOTHING in found:
            embeddings = embeddings + found[NOTHING].to(embeddings.dtype)
    return embeddings


def placeholders(thinker: Qwen2_5OmniThinkerModel) -> dict[str, int]:
    """The token that stands for each medium in `input_ids`."""
    config = thinker.config
    return {"image": config.image_token_id, "video": config.video_token_id, "audio": config.audio_token_id}


def _see_nothing(thinker: Qwen2_5OmniThinkerModel, device: torch.device) -> Sequence[Tensor]:
    """The features of the smallest picture, black."""
    config = thinker.visual.config
    side = config.spatial_merge_size
    values = config.in_channels * config.temporal_patch_size * config.patch_size**2
    grid = torch.tensor([[1, side, side]], device=device)
    return thinker.get_image_features(
        torch.zeros(side * side, values, device=device), grid, return_dict=True
    ).pooler_output


def _hear_nothing(thinker: Qwen2_5OmniThinkerModel, device: torch.device) -> Tensor:
    """The features of the shortest sound, silence: 4 frames of the spectrogram are one token."""
    spectrogram = torch.zeros(1, thinker.config.audio_config.num_mel_bins, 4, device=device)
    mask = torch.ones(1, 4, dtype=torch.long, device=device)
    return thinker.get_audio_features(spectrogram, mask, return_dict=True).last_hidden_state
