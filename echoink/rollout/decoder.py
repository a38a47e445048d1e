"""One more token for every row that still runs, from one prompt cache per group.

The cache of a prompt is not copied to its G completions: their queries meet it together, each keeps keys and values of
its own tokens only, and one softmax runs over both parts. Keys and values stay in the type in which the model computes;
products accumulate, and the softmax runs, in float32.

A model step on a GPU costs its launches as well as its bytes. There the shapes stay fixed, so that a captured CUDA
graph replays a whole step: rows that finish leave their slots idle until half of them are, then the rest moves
together. A row's own tokens are read from a window that doubles as they grow. A graph serves every later rollout, for
as long as the weights stay where they are. On a CPU rows leave at once.

Shapes: B prompts, R running rows, S slots, P prompt and C completion tokens, W of these in the window, H heads, K
key-value heads, V vocabulary.
"""

import functools
from collections.abc import Callable, Sequence
from itertools import chain, count, takewhile

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import DynamicCache, PreTrainedModel

from echoink.models.families import family_of
from echoink.models.rounding import autocast_dtype, round_linear

BLOCK = 128
"""With fixed shapes a prompt has room for a multiple of so many tokens: those of about one length share it."""
WINDOW = 64
"""With fixed shapes so many own tokens are read at first."""

Step = Callable[[], Tensor]
"""One step of all slots: logits [S, V]."""
Capture = Callable[[Step], Step]
"""Makes the replay of a step, which wants fixed shapes and addresses."""


class Decoder:
    """Decodes R = B·G rows, row b·G + g continuing prompt b. One decoder serves one rollout after another.

    Args:
        model: the model with our attention (`attention.select`), in evaluation mode.
        capturing: gives what captures steps, anew whenever all replays are void; None runs steps as they come.
    """

    def __init__(self, model: PreTrainedModel, capturing: Callable[[], Capture] | None = None):
        self._capturing, self._layers = capturing, _Layers(model)
        self._replays: dict[tuple[int, ...], Step] = {}
        self._sizes, self._relies_on = (0, 0, 0, 0), None  # of the rooms; what the replays rely on
        self._shared_room: list[tuple[Tensor, Tensor]] = []
        self._own_room: list[tuple[Tensor, Tensor]] = []
        self._own: list[tuple[Tensor, Tensor]] = []
        self.captures = 0
        """Steps that were captured so far."""

    def begin(self, cache: DynamicCache, mask: Tensor, group: int, length: int) -> None:
        """Take up a rollout.

        Args:
            cache: of its B prompts, padded on the left.
            mask: [B, P], 1 where there is a prompt token.
            group: G.
            length: C, at most so many calls.
        """
        # Under autocast the cache is in float32, because the rotary embedding leaves the keys so.
        dtype = autocast_dtype(mask.device.type) or cache.layers[0].values.dtype
        self._layers.round(mask.device.type)
        self._prefix = [(layer.keys.to(dtype), layer.values.to(dtype)) for layer in cache.layers]
        self._unseen = torch.zeros(mask.shape, device=mask.device).masked_fill(mask == 0, float("-inf"))  # [B, P]
        self._prompt = [prompt for prompt in range(len(mask)) for _ in range(group)]  # of each slot
        self._slots = list(range(len(self._prompt)))  # of each running row
        self._calls = 0
        if self._capturing:
            self._move_in(length)
        else:
            self._own = self._room(len(self._prompt), length)
            self._tokens, self._positions = torch.zeros(2, len(self._prompt), dtype=torch.long, device=mask.device)
            self._filled = torch.zeros(1, dtype=torch.long, device=mask.device)
        self._settle()

    def _room(self, rows: int, tokens: int) -> list[tuple[Tensor, Tensor]]:
        """Zeros for keys and values of each layer: [rows, K, tokens, d]."""
        first = self._prefix[0][0]
        shape = (rows, first.shape[1], tokens, first.shape[3])
        return [(first.new_zeros(shape), first.new_zeros(shape)) for _ in self._prefix]

    def _move_in(self, length: int) -> None:
        """Put the prompts where the captured steps look for them. The rooms only grow; then the replays are void."""
        prefix, unseen = self._prefix, self._unseen
        prompts, tokens = unseen.shape
        wanted = (prompts, -(-tokens // BLOCK) * BLOCK, len(self._prompt), length)
        sizes = tuple(map(max, self._sizes, wanted))
        relies_on = (sizes, prefix[0][0].dtype, self._layers.addresses())
        if relies_on != self._relies_on:
            self._sizes, self._relies_on = sizes, relies_on
            self._replays.clear()
            self._capture = self._capturing()
            # An old room goes before the new one is made: both at once would not fit.
            self._own.clear()
            self._shared_room = self._fitting(self._shared_room, sizes[0], sizes[1])
            self._own_room = self._fitting(self._own_room, sizes[2], sizes[3])
            self._unseen_room = unseen.new_empty(sizes[:2])
            self._inputs = torch.zeros(2, sizes[2], dtype=torch.long, device=unseen.device)
            self._filled = torch.zeros(1, dtype=torch.long, device=unseen.device)
        start = sizes[1] - tokens  # prompts end where their rooms end
        # What an earlier rollout left is masked: it is multiplied by 0. It has to be finite, for 0 · nan is nan.
        for room in chain(*self._shared_room, *self._own_room):
            room.zero_()
        for room, part in zip(chain(*self._shared_room), chain(*prefix), strict=True):
            room[:prompts, :, start:] = part
        self._unseen_room.fill_(float("-inf"))
        self._unseen_room[:prompts, start:] = unseen
        self._filled.zero_()
        self._lead(prompts, len(self._prompt))

    def _fitting(self, room: list[tuple[Tensor, Tensor]], rows: int, tokens: int) -> list[tuple[Tensor, Tensor]]:
        """The room, or in its place one of this size and of the prompts' type."""
        wanted = (rows, tokens, self._prefix[0][0].dtype)
        if room and (len(room[0][0]), room[0][0].shape[2], room[0][0].dtype) == wanted:
            return room
        room.clear()
        return self._room(rows, tokens)

    def _lead(self, prompts: int, slots: int) -> None:
        """Use the first places of the rooms."""
        self._prefix = [(keys[:prompts], values[:prompts]) for keys, values in self._shared_room]
        self._own = [(keys[:slots], values[:slots]) for keys, values in self._own_room]
        self._unseen, (self._tokens, self._positions) = self._unseen_room[:prompts], self._inputs[:, :slots]

    def keep(self, rows: Sequence[int]) -> None:
        """Let all but `rows` leave."""
        self._slots = [self._slots[row] for row in rows]
        running: dict[int, list[int]] = {}  # slots of each prompt that still has any
        for slot in self._slots:
            running.setdefault(self._prompt[slot], []).append(slot)
        places = max(map(len, running.values()))
        if self._capturing:
            # A move costs copies and perhaps a capture: not before half of the slots are free. Every prompt then has as
            # many slots as the next, some of them idle.
            if len(running) * places > len(self._prompt) // 2:
                self._running = torch.tensor(self._slots, device=self._unseen.device)
                return
            kept = [(slots + slots[:1] * places)[:places] for slots in running.values()]
            moved = {slot: i * places + j for i, slots in enumerate(running.values()) for j, slot in enumerate(slots)}
        else:
            kept, moved = list(running.values()), {slot: new for new, slot in enumerate(self._slots)}
        self._move(list(running), kept, moved)

    def _move(self, prompts: list[int], kept: list[list[int]], moved: dict[int, int]) -> None:
        """Bring the slots `kept` of each of `prompts` together."""
        device = self._unseen.device
        slots = torch.tensor([slot for of_prompt in kept for slot in of_prompt], device=device)
        stay = torch.tensor(prompts, device=device)
        numbers = {prompt: number for number, prompt in enumerate(prompts)}
        if self._capturing:
            own, prefix, unseen = self._own, self._prefix, self._unseen[stay]
            self._lead(len(prompts), len(slots))
            for rooms, parts, index in ((self._own, own, slots), (self._prefix, prefix, stay)):
                for room, part in zip(chain(*rooms), chain(*parts), strict=True):
                    room.copy_(part[index])
            self._unseen.copy_(unseen)
        else:
            self._own = [(keys[slots], values[slots]) for keys, values in self._own]
            self._tokens, self._positions = torch.zeros(2, len(slots), dtype=torch.long, device=device)
            if len(prompts) <= len(self._unseen) // 2:  # prompts without rows leave too
                self._prefix = [(keys[stay], values[stay]) for keys, values in self._prefix]
                self._unseen = self._unseen[stay]
            else:
                numbers = {prompt: prompt for prompt in prompts}
        self._prompt = [numbers[prompt] for prompt, of_prompt in zip(prompts, kept, strict=True) for _ in of_prompt]
        self._slots = [moved[slot] for slot in self._slots]
        self._settle()

    def _settle(self) -> None:
        """Where the slots of each prompt are."""
        device, prompts = self._unseen.device, len(self._unseen)
        slots: list[list[int]] = [[] for _ in range(prompts)]
        for slot, prompt in enumerate(self._prompt):
            slots[prompt].append(slot)
        self._places = max(map(len, slots))
        self._at = None  # where all prompts have as many slots a reshape finds them, else prompt and place of each [S]
        if any(len(of_prompt) < self._places for of_prompt in slots):
            place = {slot: place for of_prompt in slots for place, slot in enumerate(of_prompt)}
            places = [place[slot] for slot in range(len(self._prompt))]
            self._at = torch.tensor(self._prompt, device=device), torch.tensor(places, device=device)
        all_run = self._slots == list(range(len(self._prompt)))
        self._running = None if all_run else torch.tensor(self._slots, device=device)

    def __call__(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Logits [R, V] after `tokens` [R], which stand at `positions` [R]."""
        running = slice(None) if self._running is None else self._running
        self._tokens[running], self._positions[running] = tokens, positions
        self._calls += 1
        if self._capturing:
            self._window = next(w for w in _windows(self._own_room[0][0].shape[2]) if w >= self._calls)
            shapes = (len(self._unseen), self._places, self._window)
            if shapes not in self._replays:
                self._replays[shapes] = self._capture(self._step)
                self.captures += 1
            logits = self._replays[shapes]()
        else:
            self._window = self._calls
            logits = self._step()
        self._filled += 1
        return logits[running]

    def _step(self) -> Tensor:
        if self._at is None:
            unseen = self._unseen.repeat_interleave(self._places, 0)  # [S, P]
        else:
            unseen = self._unseen[self._at[0]]
        later = torch.arange(self._window, device=unseen.device) > self._filled
        own = torch.zeros_like(later, dtype=unseen.dtype).masked_fill(later, float("-inf")).expand(len(unseen), -1)
        self._bias = torch.cat([unseen, own], 1)[:, None, None]  # [S, 1, 1, P + W], added to the scores
        return self._layers.run(self._tokens, self._positions, self)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Attention of one token per slot: query [S, H, 1, d], key and value [S, K, 1, d] → [S, H, 1, d]."""
        # 1. The new token's key and value join the row's own.
        own_keys, own_values = self._own[layer]
        own_keys.index_copy_(2, self._filled, key.to(own_keys.dtype))
        own_values.index_copy_(2, self._filled, value.to(own_values.dtype))
        own_keys, own_values = own_keys[:, :, : self._window], own_values[:, :, : self._window]
        prefix_keys, prefix_values = self._prefix[layer]
        # 2. A group's queries meet the prompt's keys as one matrix, so that the cache is read once per prompt.
        slots, heads, _, width = query.shape
        query = query.view(slots, own_keys.shape[1], -1, width).to(own_keys.dtype)  # [S, K, H/K, d]
        shared = self._by_slot(_product(self._by_prompt(query), prefix_keys.transpose(2, 3)))
        scores = torch.cat([shared, _product(query, own_keys.transpose(2, 3))], -1)  # [S, K, H/K, P + W], float32
        # 3. One softmax over both parts.
        weights = torch.add(self._bias, scores, alpha=scale).softmax(-1).to(own_values.dtype)
        of_prefix, of_own = weights.split([prefix_keys.shape[2], self._window], -1)
        output = self._by_slot(_product(self._by_prompt(of_prefix), prefix_values)) + _product(of_own, own_values)
        return output.to(value.dtype).reshape(slots, heads, 1, width)

    def _by_prompt(self, x: Tensor) -> Tensor:
        """[S, K, H/K, n] → [B, K, places·H/K, n]: what belongs to a group side by side."""
        prompts, places = len(self._unseen), self._places
        if self._at is None:
            grid = x.unflatten(0, (prompts, places))
        else:
            grid = x.new_zeros(prompts, places, *x.shape[1:])
            grid[self._at] = x
        return grid.transpose(1, 2).flatten(2, 3)

    def _by_slot(self, x: Tensor) -> Tensor:
        """The way back."""
        grid = x.unflatten(2, (self._places, -1)).transpose(1, 2)  # [B, places, K, H/K, n]
        return grid.flatten(0, 1) if self._at is None else grid[self._at]


class _Layers(nn.Module):
    """The language model and its head on one token per slot, with weights rounded before."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model, self._family = model, family_of(model)
        self._rounded: dict[str, Tensor] = {}

    def round(self, device_type: str) -> None:
        """Round the weights as they are now, where autocast would; into the copies that are there."""
        used = {*self._family.language_model(self.model.model).modules(), self.model.lm_head}
        round_linear(self, autocast_dtype(device_type), self._rounded, used)

    def addresses(self) -> list[int]:
        """Where the weights lie."""
        return [weight.data_ptr() for weight in (*self.parameters(), *self.buffers(), *self._rounded.values())]

    def run(self, tokens: Tensor, positions: Tensor, layout: Decoder) -> Tensor:
        """Logits [S, V]."""
        given = (tokens, positions, layout)
        # A head may share its matrix with the embedding, which stays as it is.
        return functional_call(self, self._rounded, given, tie_weights=False) if self._rounded else self(*given)

    def forward(self, tokens: Tensor, positions: Tensor, layout: Decoder) -> Tensor:
        """Logits [S, V] after `tokens` [S] at `positions` [S]; `layout` attends."""
        family, base = self._family, self.model.model
        hidden = family.language_model(base)(
            **family.embed(base, tokens.unsqueeze(1), []),
            **family.positions(positions.view(1, -1, 1).expand(family.POSITION_AXES, -1, 1)),
            **family.no_mask(),
            layout=layout,
            use_cache=False,
        ).last_hidden_state[:, -1]
        return family.logits(self.model, hidden)


def _windows(length: int) -> list[int]:
    """Tokens that are read: doubling up to C."""
    return [*takewhile(lambda window: window < length, (WINDOW << n for n in count())), length]


def _product(one: Tensor, other: Tensor) -> Tensor:
    """[N, K, M, n] @ [N, K, n, T] in float32, whatever the factors are rounded to."""
    if one.device.type == "cpu":  # which has no such product of its own
        with torch.autocast("cpu", enabled=False):
            return one.float() @ other.float()
    if one.dtype is torch.float32:
        return one @ other
    return torch.bmm(one.flatten(0, 1), other.flatten(0, 1), out_dtype=torch.float32).unflatten(0, one.shape[:2])


@functools.cache
def _aside() -> torch.cuda.Stream:
    # One for the whole process: for each stream that multiplies cuBLAS keeps memory for good.
    return torch.cuda.Stream()


def cuda_graphs() -> Capture:
    """Captures steps as CUDA graphs, which share one pool of memory."""
    # A pool that no graph uses any more is gone with its last graph: who drops all of them asks for a new one.
    pool = torch.cuda.graph_pool_handle()

    def capture(step: Step) -> Step:
        # A graph wants a run outside first. What that writes the replay writes again.
        aside = _aside()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            step()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            logits = step()

        def replay() -> Tensor:
            graph.replay()
            return logits

        return replay

    return capture
