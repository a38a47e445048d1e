"""Parts of the tiny model: a real Qwen2.5-Omni processor and an untrained thinker of about a million parameters."""

import json

from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import (
    PreTrainedTokenizerBase,
    Qwen2_5OmniProcessor,
    Qwen2_5OmniThinkerConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    WhisperFeatureExtractor,
)
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from echoink.config.paths import TINY

PIXELS = 112
"""Side, in pixels, of the square pictures of the tiny model: 64 patches, 16 image tokens."""

INIT = 0.08
"""Standard deviation of the initial weights; at 0.02, as in wide models, it learns later (experiments/tiny_base.md)."""

MEDIA = {
    "image_token": "<|IMAGE|>",
    "audio_token": "<|AUDIO|>",
    "video_token": "<|VIDEO|>",
    "vision_bos_token": "<|vision_bos|>",
    "vision_eos_token": "<|vision_eos|>",
    "audio_bos_token": "<|audio_bos|>",
    "audio_eos_token": "<|audio_eos|>",
}
"""The names by which the Omni processor looks up its special tokens, and the tokens."""


def make_tokenizer(texts: list[str]) -> Qwen2Tokenizer:
    """Qwen2's byte-level BPE, with a vocabulary learned from `texts` and the special tokens of Omni."""
    learner = Tokenizer(BPE())
    split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated")
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    learner.decoder = decoders.ByteLevel()
    learner.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=2_000, min_frequency=2, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        ),
    )
    model = json.loads(learner.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens={"im_start_token": "<|im_start|>", **MEDIA},
    )


def make_processor(texts: list[str]) -> Qwen2_5OmniProcessor:
    """The Omni processor around a tokenizer for `texts`."""
    return processor_around(make_tokenizer(texts), mels=128)


def processor_around(tokenizer: PreTrainedTokenizerBase, mels: int) -> Qwen2_5OmniProcessor:
    """The Omni processor for pictures of 112x112 pixels and spectrograms of `mels` mel bands."""
    area = {"shortest_edge": PIXELS**2, "longest_edge": PIXELS**2}
    return Qwen2_5OmniProcessor(
        image_processor=Qwen2VLImageProcessor(size=area, patch_size=14, merge_size=2, temporal_patch_size=2),
        video_processor=Qwen2VLVideoProcessor(size=area, patch_size=14, merge_size=2, temporal_patch_size=2),
        feature_extractor=WhisperFeatureExtractor(feature_size=mels, return_attention_mask=True),
        tokenizer=tokenizer,
        chat_template=(TINY / "chat_template.jinja").read_text(encoding="utf-8"),
    )


def token_ids(processor: Qwen2_5OmniProcessor) -> dict[str, int]:
    """Ids of the special tokens, by the names of the thinker's configuration."""
    ids = processor.tokenizer.convert_tokens_to_ids
    return {
        "audio_token_index": ids(MEDIA["audio_token"]),
        "image_token_index": ids(MEDIA["image_token"]),
        "video_token_index": ids(MEDIA["video_token"]),
        "audio_start_token_id": ids(MEDIA["audio_bos_token"]),
        "audio_end_token_id": ids(MEDIA["audio_eos_token"]),
        "vision_start_token_id": ids(MEDIA["vision_bos_token"]),
        "vision_end_token_id": ids(MEDIA["vision_eos_token"]),
        "user_token_id": ids("user"),
        "pad_token_id": ids("<|endoftext|>"),
        "eos_token_id": ids("<|im_end|>"),
    }


def with_ends(
    model: Qwen2_5OmniThinkerForConditionalGeneration, processor: Qwen2_5OmniProcessor
) -> Qwen2_5OmniThinkerForConditionalGeneration:
    """The model, with its end tokens and its padding token set in its generation configuration."""
    ids = token_ids(processor)
    model.generation_config.eos_token_id = [ids["eos_token_id"], ids["pad_token_id"]]
    model.generation_config.pad_token_id = ids["pad_token_id"]
    return model


def make_model(processor: Qwen2_5OmniProcessor) -> Qwen2_5OmniThinkerForConditionalGeneration:
    """A thinker with random weights: 3 layers of width 128, audio and vision towers of 2 layers of width 64."""
    config = Qwen2_5OmniThinkerConfig(
        text_config={
            "vocab_size": 8 * -(-len(processor.tokenizer) // 8),
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 6, 6]},
            "tie_word_embeddings": False,
            "initializer_range": INIT,
        },
        audio_config={
            "d_model": 64,
            "encoder_layers": 2,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 192,
            "num_mel_bins": 128,
            "output_dim": 128,
            "initializer_range": INIT,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "num_heads": 4,
            "intermediate_size": 192,
            "out_hidden_size": 128,
            "fullatt_block_indexes": [1],
            "initializer_range": INIT,
        },
        initializer_range=INIT,
        **token_ids(processor),
    )
    return with_ends(Qwen2_5OmniThinkerForConditionalGeneration(config), processor)
