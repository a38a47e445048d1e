"""The small model: a Qwen2.5-Omni thinker of 146 million parameters around pretrained parts, with a new vision tower.

The language model is SmolLM2-135M-Instruct, the audio encoder is that of Whisper tiny.en (`pretrained_parts`). Both fit
Omni's modules: a Llama layer is a Qwen2 layer whose biases are 0, and text has the same position on all axes of M-RoPE;
the audio tower is Whisper's encoder, within windows of two seconds, with pooling before its last norm. The vision
tower, the projection of the audio tower and the embeddings of the media tokens have no pretrained weights.
"""

import torch
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5OmniProcessor,
    Qwen2_5OmniThinkerConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
)

from echoink.models.pretrained_parts import Parts
from echoink.models.tiny_architecture import MEDIA, processor_around, token_ids, with_ends

VISION = {"depth": 6, "hidden_size": 192, "num_heads": 6, "intermediate_size": 512, "fullatt_block_indexes": [1, 3, 5]}
"""Dimensions of the new vision tower."""

WHISPER_HEAD = 64
"""Width of an attention head in every size of Whisper."""

NEW = ("model.visual.", "model.audio_tower.proj.", "model.audio_tower.audio_bos_eos_token.")
"""Prefixes of the names of weights that are not pretrained. (Omni's thinker does not use the last.)"""


def make_processor(parts: Parts) -> Qwen2_5OmniProcessor:
    """The Omni processor around the language model's tokenizer, to which the media tokens are added."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=parts.tokenizer.backend_tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=MEDIA,
    )
    return processor_around(tokenizer, mels=parts.audio["conv1.weight"].shape[1])


def make_model(parts: Parts, processor: Qwen2_5OmniProcessor) -> Qwen2_5OmniThinkerForConditionalGeneration:
    """The thinker with the pretrained weights; new embeddings are the mean of the old, other new weights are random."""
    model = Qwen2_5OmniThinkerForConditionalGeneration(thinker_config(parts, processor))
    state = model.state_dict()
    given = {f"model.language_model.{name.removeprefix('model.')}": value for name, value in parts.language.items()}
    given |= {f"model.audio_tower.{name}": value for name, value in parts.audio.items()}
    words = given["model.language_model.embed_tokens.weight"]
    rows = state["model.language_model.embed_tokens.weight"].clone()
    rows[: len(words)], rows[len(words) :] = words, words.mean(0)  # new tokens start as the mean of all others
    given["model.language_model.embed_tokens.weight"] = rows
    given |= {name: torch.zeros_like(value) for name, value in state.items() if _is_qwen2_bias(name)}
    left = model.load_state_dict(given, strict=False)
    assert not left.unexpected_keys, left.unexpected_keys
    assert {name for name in left.missing_keys if not name.startswith(NEW)} == {"lm_head.weight"}, left.missing_keys
    model.tie_weights()
    return with_ends(model, processor)


def _is_qwen2_bias(name: str) -> bool:
    return name.startswith("model.language_model.") and name.endswith("_proj.bias")


def thinker_config(parts: Parts, processor: Qwen2_5OmniProcessor) -> Qwen2_5OmniThinkerConfig:
    """The thinker's configuration, with the dimensions of its parts."""
    language = parts.language_config
    rotated = language.hidden_size // language.num_attention_heads // 2  # frequencies of a head
    temporal = rotated // 4
    heard, mels, _ = parts.audio["conv1.weight"].shape
    return Qwen2_5OmniThinkerConfig(
        text_config={
            "vocab_size": 64 * -(-len(processor.tokenizer) // 64),
            "hidden_size": language.hidden_size,
            "intermediate_size": language.intermediate_size,
            "num_hidden_layers": language.num_hidden_layers,
            "num_attention_heads": language.num_attention_heads,
            "num_key_value_heads": language.num_key_value_heads,
            "max_position_embeddings": language.max_position_embeddings,
            "rms_norm_eps": language.rms_norm_eps,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": language.rope_parameters["rope_theta"],
                "mrope_section": [temporal, (rotated - temporal) // 2, (rotated - temporal) // 2],
            },
            "tie_word_embeddings": True,
        },
        audio_config={
            "d_model": heard,
            "encoder_layers": len({name.split(".")[1] for name in parts.audio if name.startswith("layers.")}),
            "encoder_attention_heads": heard // WHISPER_HEAD,
            "encoder_ffn_dim": len(parts.audio["layers.0.fc1.weight"]),
            "num_mel_bins": mels,
            "output_dim": language.hidden_size,
        },
        vision_config={**VISION, "out_hidden_size": language.hidden_size},
        tie_word_embeddings=True,
        **token_ids(processor),
    )
