"""Pictures, sounds and videos through their towers, once per prompt, and from there into the prompt's embeddings.

The features of a prompt serve whoever runs the same towers on it: rollout, policy and reference share them where the
towers are frozen. Where the towers learn, each update encodes once, with gradients, in the model's own forward.

Shapes: B prompts, P prompt tokens, D width of the language model, N placeholder tokens of a medium.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniThinkerModel

from echoink.processing import PromptInputs, row_media

Features = dict[str, Tensor]
"""What the towers make of one prompt's media: `image`, `video`, `audio`, each [N, D]; absent media are absent."""


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


def encode_media(thinker: Qwen2_5OmniThinkerModel, prompts: Sequence[PromptInputs]) -> list[Features]:
    """Run each tower once over the media of B prompts.

    Args:
        thinker: its towers and configuration.
        prompts: whose `media` are encoded; prompts may differ in what they have.

    Returns:
        One `Features` per prompt.
    """
    device = thinker.get_input_embeddings().weight.device
    media = {name: value.to(device) for name, value in row_media(prompts, range(len(prompts))).items()}
    features: list[Features] = [{} for _ in prompts]
    for name, token in placeholders(thinker).items():
        if (encoded := _encoded(thinker, name, media)) is None:
            continue
        counts = [int((prompt.input_ids == token).sum()) for prompt in prompts]
        assert sum(counts) == len(encoded), f"{len(encoded)} {name} features for {sum(counts)} placeholder tokens"
        for found, part, count in zip(features, encoded.split(counts), counts, strict=True):
            if count:
                found[name] = part
    return features


def embed(thinker: Qwen2_5OmniThinkerModel, input_ids: Tensor, features: Sequence[Features]) -> Tensor:
    """Embeddings [..., D] of `input_ids` [...], features in the place of placeholder tokens, in their order."""
    embeddings = thinker.get_input_embeddings()(input_ids)
    for name, token in placeholders(thinker).items():
        parts = [found[name] for found in features if name in found]
        if parts:
            where = (input_ids == token).unsqueeze(-1)
            embeddings = embeddings.masked_scatter(where, torch.cat(parts).to(embeddings.dtype))
    return embeddings


def placeholders(thinker: Qwen2_5OmniThinkerModel) -> dict[str, int]:
    """The token that stands for each medium in `input_ids`."""
    config = thinker.config
    return {"image": config.image_token_id, "video": config.video_token_id, "audio": config.audio_token_id}


def _encoded(thinker: Qwen2_5OmniThinkerModel, name: str, media: dict[str, Tensor]) -> Tensor | None:
    if name == "image" and "pixel_values" in media:
        found = thinker.get_image_features(media["pixel_values"], media["image_grid_thw"], return_dict=True)
        return torch.cat(tuple(found.pooler_output))
    if name == "video" and "pixel_values_videos" in media:
        found = thinker.get_video_features(media["pixel_values_videos"], media["video_grid_thw"], return_dict=True)
        return torch.cat(tuple(found.pooler_output))
    if name == "audio" and "input_features" in media:
        mask = media["feature_attention_mask"]
        return thinker.get_audio_features(media["input_features"], mask, return_dict=True).last_hidden_state
    return None
