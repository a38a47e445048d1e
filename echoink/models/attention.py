"""The language model's attention: ours if a layout is passed, transformers' SDPA otherwise.

Two classes have their own attention: `shared_prefix.Layout` in the loss and `decoder.Decoder` in the rollout. They are
passed through the model as the keyword argument `layout`, which every layer passes on to its attention.

Shapes: R rows, H heads, K key-value heads, T tokens, d width of a head.
"""

from typing import Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from echoink.common.errors import UserError
from echoink.models.registry import family_of

NAME = "echoink"
"""The name under which transformers knows our attention."""


class AttentionLayout(Protocol):
    """A layout with its own attention. Not a dataclass: FSDP2's mixed precision would copy that in every layer."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Attention of query [R, H, T, d] over key and value [R, K, T, d] and what the layout holds: [R, H, T, d]."""


def select(model: PreTrainedModel) -> None:
    """Give a model's language model our attention.

    It is never taken back, because under gradient checkpointing the backward pass looks it up again.

    Raises:
        UserError: the model's attention has sliding windows or dropout, which a shared prompt does not support.
    """
    config = model.config.get_text_config()
    if "sliding_attention" in config.layer_types or config.attention_dropout:
        what = "sliding windows" if "sliding_attention" in config.layer_types else "dropout"
        raise UserError(f"this model's attention has {what}, which a shared prompt cannot follow", "take another model")
    family_of(model).language_model(model.model).config._attn_implementation = NAME


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    layout: AttentionLayout | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask=attention_mask, **kwargs)
    # Under autocast the rotary embedding returns query and key in float32.
    query, key = query.to(value.dtype), key.to(value.dtype)
    return layout.attend(module.layer_idx, query, key, value=value, scale=kwargs["scaling"]).transpose(1, 2), None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
