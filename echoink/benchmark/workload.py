"""What a benchmark works on: a model of a given shape with random weights, prompts, completions of given lengths."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from echoink.benchmark.config import ShapeConfig
from echoink.common.errors import UserError
from echoink.config.paths import TINY
from echoink.data.processor import encode
from echoink.models.family import PromptInputs
from echoink.models.loading import load_processor
from echoink.models.registry import family_of_config


@dataclass(frozen=True)
class Workload:
    """B prompts and G completions of each, the same for all systems."""

    prompts: list[PromptInputs]
    completion_ids: Tensor
    """[B·G, C], right-padded; the last token of each ends it."""
    mask: Tensor
    """[B·G, C], True on tokens."""
    advantages: Tensor
    """[B·G]"""

    @property
    def group(self) -> int:
        """G."""
        return len(self.mask) // len(self.prompts)


def make_model(shape: ShapeConfig, seed: int, device: torch.device) -> PreTrainedModel:
    """A model of the given shape; its token ids are those of the embedded model's processor."""
    family, config = family_of_config(AutoConfig.from_pretrained(TINY))
    text, audio, vision = config.text_config, config.audio_config, config.vision_config
    text.hidden_size, text.intermediate_size, text.vocab_size = shape.width, shape.feed_forward, shape.vocabulary
    text.num_hidden_layers, text.layer_types = shape.layers, ["full_attention"] * shape.layers
    text.num_attention_heads, text.num_key_value_heads = shape.heads, shape.key_heads
    half = shape.width // shape.heads // 2
    text.rope_parameters["mrope_section"] = [half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8]
    width, layers = shape.tower_width, shape.tower_layers
    audio.d_model, audio.encoder_ffn_dim, audio.encoder_layers = width, 4 * width, layers
    vision.hidden_size, vision.intermediate_size, vision.depth = width, 3 * width, layers
    vision.fullatt_block_indexes = list(range(layers - 1, -1, -8))
    audio.encoder_attention_heads = vision.num_heads = max(4, width // 80)
    audio.output_dim = vision.out_hidden_size = shape.width
    for part in (config, text, audio, vision):
        part.initializer_range = 0.02
    torch.manual_seed(seed)
    with torch.device(device):
        model = family.MODEL._from_config(config, dtype=getattr(torch, shape.dtype.name))
    model.generation_config.pad_token_id = config.pad_token_id
    model.generation_config.eos_token_id = config.eos_token_id
    return model


def make_workload(model: PreTrainedModel, shape: ShapeConfig, seed: int) -> Workload:
    """Prompts of about P tokens (each 8 shorter than the one before) and random completions of varied length."""
    prompts = [_prompt(model, shape, shape.prompt_tokens - 8 * index, seed + index) for index in range(shape.prompts)]
    mean, rows = shape.completion_tokens, shape.prompts * shape.group_size
    spread = torch.linspace(0.75 * mean, 1.25 * mean, shape.group_size).round().long()
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.cat([spread[torch.randperm(shape.group_size, generator=generator)] for _ in range(shape.prompts)])
    mask = torch.arange(int(lengths.max())) < lengths.unsqueeze(1)
    ids = torch.randint(20, 400, mask.shape, generator=generator)
    ids[torch.arange(rows), lengths - 1] = model.config.eos_token_id
    return Workload(prompts, ids * mask, mask, torch.randn(rows, generator=generator))


def _prompt(model: PreTrainedModel, shape: ShapeConfig, tokens: int, seed: int) -> PromptInputs:
    rng = np.random.default_rng(seed)
    side = int(shape.pixels**0.5)
    image = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
    audio = rng.standard_normal(int(16_000 * shape.audio_seconds)).astype(np.float32)
    processor = load_processor("tiny", min(112**2, shape.pixels), shape.pixels)

    def made(words: int) -> PromptInputs:
        content = [{"type": "image"}, {"type": "audio"}, {"type": "text", "text": "a" + " a" * words}]
        return encode(processor, model, [{"role": "user", "content": content}], image=image, audio=audio)

    bare, one = len(made(0).input_ids), len(made(100).input_ids)
    if bare > tokens:
        raise UserError(
            f"a prompt of {tokens} tokens: picture and sound alone take {bare}", "raise shape.prompt_tokens"
        )
    return made(round(100 * (tokens - bare) / (one - bare)))
