"""The language model's attention: ours where the mask knows how to attend, transformers' SDPA otherwise.

A mask that is no tensor travels through the model untouched. Two kinds do: `shared_prefix.Layout` in the loss and
`decoding.Decoder` in the rollout; each has a method `attend`.
"""

from typing import Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, Qwen2_5OmniThinkerForConditionalGeneration
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from echoink.common.errors import UserError

NAME = "echoink"
"""Under which transformers knows our attention."""


class Mask(Protocol):
    """A mask that attends for itself."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Output [R, H, T, d] of query [R, H, T, d] over key and value [R, K, T, d] and what the mask holds."""


def select(model: Qwen2_5OmniThinkerForConditionalGeneration) -> None:
    """Give a thinker's language model our attention, for good: under gradient checkpointing the backward pass looks it
    up again.

    Raises:
        UserError: its attention has sliding windows or dropout, which a shared prompt would not follow.
    """
    config = model.config.get_text_config()
    if "sliding_attention" in config.layer_types or config.attention_dropout:
        what = "sliding windows" if "sliding_attention" in config.layer_types else "dropout"
        raise UserError(f"this model's attention has {what}, which a shared prompt cannot follow", "take another model")
    model.model.language_model.config._attn_implementation = NAME


def _attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Mask | Tensor | None, **kwargs
) -> tuple[Tensor, None]:
    if attention_mask is None or isinstance(attention_mask, Tensor):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    # Under autocast the rotary embedding leaves query and key in float32.
    query, key = query.to(value.dtype), key.to(value.dtype)
    return attention_mask.attend(module.layer_idx, query, key, value, kwargs["scaling"]).transpose(1, 2), None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
