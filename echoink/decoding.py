"""One more token for every row that still runs: with a cache that grows, or with slots of fixed shape for CUDA graphs.

A small model step on a GPU costs its launches, not its arithmetic. `Slots` keeps every shape and address fixed, so that
one captured graph replays a whole step; rows that finish leave their slots idle until half of them are, then the rest
moves together and the graph is captured again: at most log2 R captures for R rows. On a CPU `Growing` computes exactly
the rows that run.

Shapes: R running rows, S slots, P prompt tokens, C completion tokens, V vocabulary.
"""

import torch
from torch import Tensor
from transformers import DynamicCache, Qwen2_5OmniThinkerForConditionalGeneration, StaticCache

from echoink.shared_prefix import NAME


class Growing:
    """Rows over a cache that grows by a token per call; rows leave at once.

    Args:
        model: the thinker, in evaluation mode.
        cache: of R prefilled rows; taken over.
        mask: [R, P], 1 where there is a prompt token.
        length: C, at most so many calls.
    """

    def __init__(
        self, model: Qwen2_5OmniThinkerForConditionalGeneration, cache: DynamicCache, mask: Tensor, length: int
    ):
        self._model, self._cache, self._mask = model, cache, mask

    def keep(self, rows: Tensor) -> None:
        """Let all but `rows` leave."""
        self._mask = self._mask[rows]
        self._cache.batch_select_indices(rows)

    def __call__(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Logits [R, V] after `tokens` [R], which stand at `positions` [R]."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], 1)
        return _step(self._model, self._cache, tokens, positions, self._mask)


class Slots:
    """As `Growing`, in slots of fixed shape; on a GPU each step is one replay of a CUDA graph."""

    def __init__(
        self, model: Qwen2_5OmniThinkerForConditionalGeneration, cache: DynamicCache, mask: Tensor, length: int
    ):
        self._model, self._filled, self._room = model, mask.shape[1], mask.shape[1] + length
        self._slots = torch.arange(len(mask), device=mask.device)  # [R], the slot of each running row
        self._occupy(
            [(layer.keys, layer.values) for layer in cache.layers], torch.nn.functional.pad(mask, (0, length)).bool()
        )

    def keep(self, rows: Tensor) -> None:
        """Let all but `rows` leave."""
        self._slots = self._slots[rows]
        if len(rows) <= len(self._mask) // 2:
            kept = self._slots
            states = [(layer.keys[kept], layer.values[kept]) for layer in self._cache.layers]
            self._slots = torch.arange(len(rows), device=kept.device)
            self._occupy([(k[:, :, : self._filled], v[:, :, : self._filled]) for k, v in states], self._mask[kept])

    def __call__(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Logits [R, V] after `tokens` [R], which stand at `positions` [R]."""
        self._tokens[self._slots], self._positions[self._slots] = tokens, positions
        self._mask[:, self._filled] = True
        if self._tokens.is_cuda and self._graph is None:
            self._capture()
        if self._graph is None:
            self._logits = self._run()
        else:
            self._graph.replay()
        self._filled += 1
        return self._logits[self._slots]

    def _occupy(self, states: list[tuple[Tensor, Tensor]], mask: Tensor) -> None:
        self._cache = StaticCache(config=self._model.config.get_text_config(), max_cache_len=self._room)
        for number, (keys, values) in enumerate(states):
            self._cache.update(keys, values, number)
        self._mask = mask
        self._tokens = torch.zeros(len(mask), dtype=torch.long, device=mask.device)
        self._positions = torch.zeros_like(self._tokens)
        self._graph = self._logits = None

    def _run(self) -> Tensor:
        # One query per row: it sees whatever is filled, so the mask needs no causal part.
        mask = {"full_attention": self._mask[:, None, None, :]}
        return _step(self._model, self._cache, self._tokens, self._positions, mask)

    def _capture(self) -> None:
        # CUDA graphs want a run outside first; it fills this step's place, which the replay fills again.
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            self._run()
        torch.cuda.current_stream().wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._logits = self._run()
        for layer in self._cache.layers:
            layer.cumulative_length.fill_(self._filled)


def decoder_for(model: Qwen2_5OmniThinkerForConditionalGeneration) -> type[Growing] | type[Slots]:
    """`Slots` on a GPU, where the language model's attention takes the mask as it is; else `Growing`."""
    takes_masks = model.config.get_text_config()._attn_implementation in ("sdpa", NAME)
    return Slots if model.device.type == "cuda" and takes_masks else Growing


def _step(model, cache, tokens: Tensor, positions: Tensor, mask: Tensor | dict[str, Tensor]) -> Tensor:
    hidden = model.model(
        input_ids=tokens.unsqueeze(1),
        attention_mask=mask,
        position_ids=positions.view(1, -1, 1).expand(3, -1, 1),
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state[:, -1]
    return model.lm_head(hidden)
