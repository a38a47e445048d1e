"""The language model's attention: ours if a layout is passed, transformers' SDPA otherwise.

Two classes have their own attention: `shared_prefix.Layout` in the loss and `decoder.Decoder` in the rollout. They pass
through the model as the keyword argument `layout`, which every layer hands on to its attention.
"""

from typing import Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from echoink.common.errors import UserError
from echoink.models.families import family_of

NAME = "echoink"
"""Under which transformers knows our attention."""


class AttentionLayout(Protocol):
    """What attends for itself. Not a dataclass: FSDP2's mixed precision would copy it in every layer."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Output [R, H, T, d] of query [R, H, T, d] over key and value [R, K, T, d] and what the layout holds."""


def select(model: PreTrainedModel) -> None:
    """Give a model's language model our attention, for good: under gradient checkpointing the backward pass looks it up
    again.

    Raises:
        UserError: its attention has sliding windows or dropout, which a shared prompt would not follow.
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
    # Under autocast the rotary embedding leaves query and key in float32.
    query, key = query.to(value.dtype), key.to(value.dtype)
    return layout.attend(module.layer_idx, query, key, value=value, scale=kwargs["scaling"]).transpose(1, 2), None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
