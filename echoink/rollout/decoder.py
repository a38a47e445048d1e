"""One more token for every row that still runs, from one prompt cache per group.

The cache of a prompt is not copied to its G completions: their queries meet it together, each keeps keys and values of
its own tokens only, and the two parts of its attention are joined by their softmax sums.

A small model step on a GPU costs its launches, not its arithmetic. There the shapes stay fixed, so that one captured
CUDA graph replays a whole step: rows that finish leave their slots idle until half of them are, then the rest moves
together and the graph is captured again, at most log2 R times. On a CPU rows leave at once.

Shapes: B prompts, R running rows, S slots, P prompt and C completion tokens, H heads, K key-value heads, V vocabulary.
"""

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from echoink.models.families import family_of


class Decoder:
    """Decodes R = B·G rows, row b·G + g continuing prompt b.

    Args:
        model: the model with our attention (`attention.select`), in evaluation mode.
        cache: of the B prompts, padded on the left.
        mask: [B, P], 1 where there is a prompt token.
        group: G.
        length: C, at most so many calls.
        fixed: keep shapes fixed between moves; on a GPU each step is then the replay of a CUDA graph.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        cache: DynamicCache,
        mask: Tensor,
        group: int,
        length: int,
        fixed: bool,
    ):
        self._model, self._fixed, self._length = model, fixed, length
        self._family = family_of(model)
        kind, dtype = mask.device.type, cache.layers[0].values.dtype
        if torch.is_autocast_enabled(kind):  # the cache is in float32, because the rotary embedding leaves the keys so
            dtype = torch.get_autocast_dtype(kind)
        self._prefix = [(layer.keys.to(dtype), layer.values.to(dtype)) for layer in cache.layers]
        self._absent = mask == 0  # [B, P]
        self._filled = torch.zeros(1, dtype=torch.long, device=mask.device)  # own tokens so far, the same for all rows
        self._calls = 0
        # Room for all C own tokens of all rows at once: a captured graph wants addresses that stay.
        rows, shape = len(mask) * group, self._prefix[0][0].shape
        room = (rows, shape[1], length, shape[3])
        self._own = [(keys.new_zeros(room), values.new_zeros(room)) for keys, values in self._prefix]
        self._slots = torch.arange(rows, device=mask.device)  # [R], the slot of each running row
        self._settle(self._slots // group)

    def keep(self, rows: Tensor) -> None:
        """Let all but `rows` leave."""
        self._slots = self._slots[rows]
        # With a captured graph a move costs a new capture: not before half of the slots are idle.
        if self._fixed and len(rows) > len(self._group) // 2:
            return
        kept, self._slots = self._slots, torch.arange(len(rows), device=rows.device)
        self._own = [(keys[kept], values[kept]) for keys, values in self._own]
        self._settle(self._group[kept])

    def __call__(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Logits [R, V] after `tokens` [R], which stand at `positions` [R]."""
        self._tokens[self._slots], self._positions[self._slots] = tokens, positions
        if self._fixed and tokens.is_cuda:
            if self._graph is None:
                self._capture()
            self._graph.replay()
        else:
            self._logits = self._step()
        self._calls += 1
        return self._logits[self._slots]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Attention of one token per slot: query [S, H, 1, d], key and value [S, K, 1, d] → [S, H, 1, d]."""
        # 1. The new token's key and value join the row's own.
        own_keys, own_values = self._own[layer]
        own_keys.index_copy_(2, self._filled, key.to(own_keys.dtype))
        own_values.index_copy_(2, self._filled, value.to(own_values.dtype))
        if self._fixed:
            later = torch.arange(self._length, device=key.device) > self._filled  # [C]
        else:
            own_keys, own_values = own_keys[:, :, : self._calls + 1], own_values[:, :, : self._calls + 1]
            later = None
        prefix_keys, prefix_values = self._prefix[layer]
        # 2. A group's queries meet the prompt's keys as one matrix, so that the cache is read once per prompt.
        slots, heads, _, width = query.shape
        query = query.view(slots, prefix_keys.shape[1], -1, width)  # [S, K, H/K, d]
        grid = query.new_zeros((len(prefix_keys), self._places, *query.shape[1:]))  # [B, places, K, H/K, d]
        grid[self._group, self._place] = query
        side_by_side = grid.transpose(1, 2).flatten(2, 3)  # [B, K, places·H/K, d]: a group's queries side by side
        part = _part(side_by_side, prefix_keys, prefix_values, scale, self._absent[:, None, None])
        shared = (
            x.unflatten(2, (self._places, -1)).transpose(1, 2)[self._group, self._place]  # back to [S, K, H/K, ·]
            for x in part
        )
        # 3. Both parts are joined by their softmax sums.
        return (
            _joined(shared, _part(query, own_keys, own_values, scale, later))
            .to(value.dtype)
            .view(slots, heads, 1, width)
        )

    def _settle(self, group: Tensor) -> None:
        # Which prompt each slot continues, and its place among the slots of that prompt.
        alive = group.unique()
        if len(alive) <= len(self._absent) // 2:  # prompts without rows leave too
            self._prefix = [(keys[alive], values[alive]) for keys, values in self._prefix]
            self._absent = self._absent[alive]
            group = torch.searchsorted(alive, group)
        self._group = group  # [S]
        same = group[:, None] == group
        self._place = same.tril(-1).sum(1)  # [S]
        self._places = int(same.sum(1).max())
        self._tokens, self._positions = torch.zeros_like(group), torch.zeros_like(group)
        self._graph = self._logits = None

    def _step(self) -> Tensor:
        family, base = self._family, self._model.model
        hidden = family.language_model(base)(
            **family.embed(base, self._tokens.unsqueeze(1), []),
            **family.positions(self._positions.view(1, -1, 1).expand(family.POSITION_AXES, -1, 1)),
            **family.no_mask(),
            layout=self,
            use_cache=False,
        ).last_hidden_state[:, -1]
        self._filled += 1
        return family.logits(self._model, hidden)

    def _capture(self) -> None:
        # CUDA graphs want a run outside first; what it writes the replay writes again. Copies of weights that autocast
        # has made live as long as the caller's autocast block, and so longer than the graph.
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            self._step()
        torch.cuda.current_stream().wait_stream(aside)
        self._filled -= 1
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._logits = self._step()


def _part(
    query: Tensor, keys: Tensor, values: Tensor, scale: float, hidden: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention over a part of the keys, not yet normalized: weighted values, sum and maximum, in float32.

    Args:
        query: [N, K, M, d].
        keys: [N, K, T, d].
        values: [N, K, T, d].
        scale: of the scores.
        hidden: True where a key is not to be seen, broadcast to [N, K, M, T].
    """
    # All in float32, as the kernels of the loss accumulate: a score rounded to bfloat16 samples from another policy.
    with torch.autocast(query.device.type, enabled=False):
        scores = query.float() @ keys.float().transpose(2, 3) * scale
        if hidden is not None:
            scores = scores.masked_fill(hidden, float("-inf"))
        top = scores.amax(-1, keepdim=True)
        weights = (scores - top).exp()
        return weights @ values.float(), weights.sum(-1, keepdim=True), top


def _joined(one: tuple[Tensor, Tensor, Tensor], other: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Attention over both parts."""
    (value, total, top), (other_value, other_total, other_top) = one, other
    highest = torch.maximum(top, other_top)
    scale, other_scale = (top - highest).exp(), (other_top - highest).exp()
    return (value * scale + other_value * other_scale) / (total * scale + other_total * other_scale)
