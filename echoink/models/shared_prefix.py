"""Log-probabilities of a group's completions with the prompt computed once: exact, in one packed forward and backward.

A group is one prompt x_1 … x_P and G completions. Plain rows compute the prompt G times: G·(P + C) tokens. Packed, the
group takes P - 1 + Σ C_g tokens. Each completion begins with a copy of the prompt's last token; that copy predicts the
completion's first token. A row holds several groups: all prefixes first, then all completions, so that the row ends
with the scored tokens.

    x_1 … x_{P-1} | y_1 … y_{Q-1} | x_P a_1 … a_{A-1} | x_P b_1 … b_{B-1} | y_P c_1 … c_{C-1}
    prefix          prefix          predicts a_1 … a_A  predicts b_1 … b_B  predicts c_1 … c_C

Everything but attention works token by token and needs no change. A completion attends to the prefix and to itself,
not to other completions; each token keeps the position that it has in a plain row. Hence log-probabilities and
gradients equal those of plain rows up to rounding. The idea is that of Prefix Grouper (arXiv 2506.05433), here with
pictures, sounds and videos in the prefix.

`install` adds this layout to a model: its forward then takes `layout=` (and `features=`, see `encoders`). There is
still one call of the wrapped model per backward, so the hooks of DDP, FSDP and ZeRO work as usual.

Shapes: A position axes, B prompts (groups), G completions of each, T packed tokens, N = Σ C_g scored tokens, H heads,
K key-value heads.
"""

import functools
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from echoink.models import attention
from echoink.models.encoders import encode_media
from echoink.models.family import PromptInputs
from echoink.models.registry import family_of


class Layout:
    """The places of the groups in a packed row. The model passes the layout to every layer's attention.

    Args:
        groups: for each group, how many tokens its prefix has, P - 1, and each of its completions, C_g.
    """

    def __init__(self, groups: tuple[tuple[int, tuple[int, ...]], ...]):
        self.groups = groups
        self._block_masks: dict[torch.device, BlockMask] = {}

    @functools.cached_property
    def prefixes(self) -> int:
        """How many tokens all prefixes have; they come before all completions."""
        return sum(prefix for prefix, _ in self.groups)

    @functools.cached_property
    def scored(self) -> int:
        """N. The last N tokens of the row predict the completion tokens, in the order of the completions."""
        return sum(sum(lengths) for _, lengths in self.groups)

    @property
    def tokens(self) -> int:
        """T."""
        return self.prefixes + self.scored

    def allowed(self, device: torch.device | str):
        """The attention rule, a function of the indices of query and key.

        A key is seen if it is in the same group, in the prefix or in the same completion, and not after the query.
        """
        # For each packed token [T]: its group; and its completion, counted from 1 over all groups. 0 is a prefix, which
        # all completions of its group see; completions do not see each other.
        sizes = [prefix for prefix, _ in self.groups] + [sum(lengths) for _, lengths in self.groups]
        group = torch.arange(len(self.groups)).repeat(2).repeat_interleave(torch.tensor(sizes)).to(device)
        parts = torch.tensor([self.prefixes, *(length for _, lengths in self.groups for length in lengths)])
        branch = torch.arange(len(parts)).repeat_interleave(parts).to(device)

        def rule(_batch, _head, query, key):
            seen = (branch[key] == 0) | (branch[key] == branch[query])
            return (group[query] == group[key]) & seen & (key <= query)

        return rule

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Attention of the packed row: query [1, H, T, d], key and value [1, K, T, d] → [1, H, T, d]."""
        return (by_blocks if query.is_cuda else by_parts)(query, key, value, layout=self, scale=scale)

    def block_mask(self, device: torch.device) -> BlockMask:
        """The rule in blocks, so that a kernel can skip the empty ones; made once for all layers."""
        # Without this cache each of the layers would build the mask again.
        if device not in self._block_masks:
            make = _compiled(create_block_mask) if device.type == "cuda" else create_block_mask
            rule = self.allowed(device)
            self._block_masks[device] = make(rule, B=None, H=None, Q_LEN=self.tokens, KV_LEN=self.tokens, device=device)
        return self._block_masks[device]


@dataclass(frozen=True)
class Packed:
    """One packed row of several groups."""

    input_ids: Tensor
    """[1, T]"""
    position_ids: Tensor
    """[A, 1, T]: the positions that the tokens have in plain rows."""
    labels: Tensor
    """[1, N]: the completion tokens, which the last N tokens of the row predict."""
    layout: Layout


def pack(prompts: Sequence[PromptInputs], completions: Sequence[Sequence[Tensor]]) -> Packed:
    """Lay out B groups in one row.

    Args:
        prompts: B prompts of at least 2 tokens; the last token is no placeholder of a medium.
        completions: for each prompt the token ids [C_g] of its completions, none of them empty; prompts may have
            different numbers of completions.
    """
    ids, positions, own_ids, own_positions, groups = [], [], [], [], []
    for prompt, group in zip(prompts, completions, strict=True):
        assert len(prompt.input_ids) >= 2 and all(len(completion) for completion in group)
        ids.append(prompt.input_ids[:-1])
        positions.append(prompt.position_ids[:, :-1])
        # A completion starts from the prompt's last token, at that token's position, and goes on from `next_position`.
        steps = torch.arange(max(map(len, group)) - 1) + prompt.next_position
        from_last = torch.cat([prompt.position_ids[:, -1:], steps.expand(len(prompt.position_ids), -1)], 1)
        for completion in group:
            own_ids += [prompt.input_ids[-1:], completion[:-1]]
            own_positions.append(from_last[:, : len(completion)])
        groups.append((len(prompt.input_ids) - 1, tuple(len(completion) for completion in group)))
    labels = torch.cat([completion for group in completions for completion in group])
    row, at = torch.cat(ids + own_ids), torch.cat(positions + own_positions, 1)
    return Packed(row[None], at[:, None], labels[None], Layout(tuple(groups)))


def install(model: PreTrainedModel) -> None:
    """Make a model accept packed rows; call it before wrapping. Without `layout` nothing changes.

    With `layout=` its base (`model.model`) takes `input_ids` [1, T], `position_ids` [A, 1, T] and either `features`,
    one per group, or `prompts`, whose media it then encodes; it returns hidden states [1, N, D] of the scored tokens
    alone, so that the head runs on nothing else.

    `base.run_all_towers` is False at first. A trainer sets it: then a forward that encodes media runs all towers, see
    `encoders.encode_media`. Plain rows do so only with `in_loss=True`.

    Raises:
        UserError: see `attention.select`.
    """
    attention.select(model)
    base, family = model.model, family_of(model)
    plain = type(base).forward  # unbound: a copy of the model would otherwise keep calling this model's

    @functools.wraps(plain)
    def forward(self, *args, layout: Layout | None = None, features=None, prompts=None, in_loss=False, **kwargs):
        # Plain rows: evaluation by transformers, and `grpo.shared_prefix=false`.
        if layout is None:
            return plain(self, *args, **(_embedded(self, kwargs) if in_loss and self.run_all_towers else kwargs))
        # Frozen towers have run in the rollout; towers that learn run here, with gradients.
        features = encode_media(self, prompts, self.run_all_towers) if features is None else features
        hidden = family.language_model(self)(
            **family.embed(self, kwargs["input_ids"], features),
            **family.positions(kwargs["position_ids"]),
            **family.no_mask(),
            layout=layout,
            use_cache=False,
        ).last_hidden_state
        return BaseModelOutputWithPast(last_hidden_state=hidden[:, -layout.scored :])

    base.forward = types.MethodType(forward, base)
    base.run_all_towers = False


def _embedded(base: torch.nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """Inputs of plain rows with their media embedded by all towers."""
    family = family_of(base)
    media = {name: inputs[name] for name in family.MEDIA if inputs.get(name) is not None}
    rest = {name: value for name, value in inputs.items() if name not in (*family.MEDIA, "input_ids")}
    features = [family.encode(base, media, run_all=True)]
    return {**rest, **family.embed(base, inputs["input_ids"], features)}


def by_parts(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float) -> Tensor:
    """Attention of a packed row, group by group: the prefix over itself, the completions over prefix and themselves.

    It is for a CPU, where FlexAttention has no backward. It computes at least in float32, which takes no longer there
    than bfloat16 (experiments/cpu_step.md).

    Args:
        query: [1, H, T, d].
        key: [1, K, T, d].
        value: [1, K, T, d].
        layout: the layout of the row.
        scale: the factor of the attention scores.

    Returns:
        [1, H, T, d], in the type of the query.
    """
    count, settings = len(layout.groups), {"enable_gqa": True, "scale": scale}
    sizes = [prefix for prefix, _ in layout.groups] + [sum(lengths) for _, lengths in layout.groups]
    # Split once: a slice for each group would have a gradient of the whole row's size.
    queries, keys, values = (
        (each.float() if each.itemsize < 4 else each).split(sizes, 2) for each in (query, key, value)
    )
    outputs, completions = [], []
    with torch.autocast(query.device.type, enabled=False):
        for n, (prefix, lengths) in enumerate(layout.groups):
            # The prefix sees itself; it is computed once for all G completions.
            outputs.append(scaled_dot_product_attention(queries[n], keys[n], values[n], is_causal=True, **settings))
            # The completions become a batch of G rows, each with the keys of the prefix before its own.
            own_query, own_key, own_value = (_rows(each[count + n][0], lengths) for each in (queries, keys, values))
            all_keys, all_values = (
                torch.cat([before.expand(len(lengths), -1, -1, -1), after], 2)
                for before, after in ((keys[n], own_key), (values[n], own_value))
            )
            longest = max(lengths)
            # A completion's token t sees the whole prefix and its own tokens up to t.
            causal = torch.ones(longest, prefix + longest, dtype=torch.bool, device=query.device).tril(prefix)
            found = scaled_dot_product_attention(own_query, all_keys, all_values, attn_mask=causal, **settings)
            completions += [row[:, :length] for row, length in zip(found, lengths, strict=True)]
    return torch.cat([*outputs, torch.cat(completions, 1)[None]], 2).to(query.dtype)


def _rows(packed: Tensor, lengths: tuple[int, ...]) -> Tensor:
    # [heads, Σ C_g, d] → [G, heads, max C_g, d], padded at the end, to which a causal row never attends
    rows = pad_sequence(packed.transpose(0, 1).split(lengths), batch_first=True)
    return rows.transpose(1, 2)


def by_blocks(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float) -> Tensor:
    """The same as `by_parts`, in one kernel that skips empty blocks: FlexAttention, compiled on a GPU."""
    flex = _compiled(flex_attention) if query.is_cuda else flex_attention
    return flex(query, key, value, block_mask=layout.block_mask(query.device), scale=scale, enable_gqa=True)


@functools.cache
def _compiled(function):
    # lengths differ from step to step: without dynamic shapes each would be compiled anew
    return torch.compile(function, dynamic=True)
