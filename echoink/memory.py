"""How much memory a training step takes, estimated from the model's dimensions: decides about gradient checkpointing.

Shapes: T tokens of a packed row, D width, F width of the feed-forward layer, K width of keys and values.
"""

from dataclasses import asdict, dataclass

import psutil
import torch
from transformers import Qwen2_5OmniThinkerForConditionalGeneration

SHARE = 0.85
"""Of the memory that an estimate may fill; the rest is for fragments, caches of the allocator and the rollout."""


@dataclass(frozen=True)
class Estimate:
    """Bytes on one process."""

    weights: int
    """The policy's, and their copies in bfloat16 under autocast."""
    reference: int
    gradients: int
    optimizer: int
    """AdamW's two moments."""
    activations: int
    """Kept for the backward pass without gradient checkpointing."""

    @property
    def total(self) -> int:
        return sum(asdict(self).values())


@dataclass(frozen=True)
class Rows:
    """A packed row: so many prompts of P tokens, each with G completions of C tokens. Plain rows have P = 0."""

    prompts: int
    group: int
    prompt: int
    completion: int


def activations(model: Qwen2_5OmniThinkerForConditionalGeneration, rows: Rows, bf16: bool) -> int:
    """Bytes that the language model keeps for the backward pass of a packed row of T tokens.

    Counted per token and layer, in units of D, F and K: the inputs of two norms and of every linear layer, query and
    attention output (11 D; under autocast the norms stay in float32 and each linear layer keeps an input of its own:
    34 bytes per D), four values of the feed-forward layer (4 F), key and value (4 K). Without a GPU keys and values are
    also joined, prefix and completion: 2 K for each of the G (P + C).
    The towers, and the head, which works in chunks, are small beside it.
    """
    config = model.config.get_text_config()
    width, feed_forward = config.hidden_size, config.intermediate_size
    heads = config.num_attention_heads
    keys = width // heads * config.num_key_value_heads
    size = 2 if bf16 else model.dtype.itemsize
    widths = 34 if bf16 and model.dtype.itemsize > 2 else 11 * size
    tokens = rows.prompts * (rows.prompt + rows.group * rows.completion)
    joined = 0 if model.device.type == "cuda" else rows.prompts * rows.group * (rows.prompt + rows.completion)
    per_layer = tokens * (widths * width + (4 * feed_forward + 4 * keys) * size) + joined * 2 * keys * size
    return config.num_hidden_layers * per_layer


def estimate(
    model: Qwen2_5OmniThinkerForConditionalGeneration,
    learning: int,
    reference: bool,
    rows: Rows,
    bf16: bool,
) -> Estimate:
    """Memory of one training step without gradient checkpointing, on one process that holds everything.

    Args:
        model: the policy.
        learning: how many of its parameters learn.
        reference: whether a second model stands beside it.
        rows: of a micro-batch.
        bf16: whether it computes in bfloat16 under autocast.
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    size = model.dtype.itemsize
    copies = 2 * parameters if bf16 and size > 2 else 0
    return Estimate(
        weights=parameters * size + copies,
        reference=parameters * size if reference else 0,
        gradients=learning * size,
        optimizer=2 * learning * size,
        activations=activations(model, rows, bf16),
    )


def available(device: torch.device) -> int:
    """Bytes of memory that this process may have: what it holds and what is free."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    return psutil.virtual_memory().available + psutil.Process().memory_info().rss
