"""Decodes one token for every running row, from one prompt cache per group.

The cache of a prompt is not copied to its G completions. Their queries attend to it together, each completion keeps
only the keys and values of its own tokens, and one softmax runs over both parts. Keys and values have the type in which
the model computes; products accumulate in float32, and the softmax is in float32.

On a GPU a model step pays for kernel launches as well as for bytes. So shapes stay fixed there, and a captured CUDA
graph replays a whole step. Finished rows leave their slots idle; once the running rows fit into half of the slots (with
equally many for every prompt), they move together. A row's own tokens are read from a window that doubles as they grow.
A graph serves every later rollout, as long as the weights keep their addresses. On a CPU finished rows leave at once.

A *row* is a completion that still runs. A *slot* is its index in the tensors of a step; the slot of a finished row
stays idle until the others move together. A *place* numbers the slots of one prompt. With fixed shapes, keys and values
are in *buffers*, which are as large as the largest rollout so far needed.

Shapes: B prompts, R running rows, S slots, P prompt and C completion tokens, W of these in the window, H heads, K
key-value heads, d width of a head, V vocabulary.
"""

import functools
from collections.abc import Callable, Sequence
from itertools import chain

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import DynamicCache, PreTrainedModel

from echoink.models.registry import family_of
from echoink.models.rounding import autocast_dtype, round_linear

BLOCK = 128
"""With fixed shapes, prompt buffers are a multiple of this many tokens long: similar lengths share a graph."""
WINDOW = 64
"""With fixed shapes, attention first reads this many of a row's own tokens; the number doubles as they grow."""

Step = Callable[[], Tensor]
"""One step of all slots; returns logits [S, V]."""
Capture = Callable[[Step], Step]
"""Turns a step into a replay of it; shapes and addresses must stay fixed."""


class Decoder:
    """Decodes R = B·G rows; row b·G + g continues prompt b. One decoder serves one rollout after another.

    Args:
        model: the model with our attention (`attention.select`), in evaluation mode.
        make_capture: makes the function that captures steps; called again whenever all captured steps become invalid.
            None: steps are not captured.
    """

    def __init__(self, model: PreTrainedModel, make_capture: Callable[[], Capture] | None = None):
        self._make_capture, self._layers = make_capture, _Layers(model)
        self._replays: dict[tuple[int, ...], Step] = {}
        self._sizes, self._relies_on = (0, 0, 0, 0), None  # sizes of the buffers; what the replays rely on
        self._prefix_buffers: list[tuple[Tensor, Tensor]] = []
        self._own_buffers: list[tuple[Tensor, Tensor]] = []
        self._own: list[tuple[Tensor, Tensor]] = []
        self._logits: Tensor | None = None  # [slots, V], the result of every captured step
        self.captures = 0
        """How many steps have been captured so far."""

    def begin(self, cache: DynamicCache, mask: Tensor, group: int, length: int) -> None:
        """Begin a rollout.

        Args:
            cache: the cache of its B prompts, padded on the left.
            mask: [B, P], 1 where there is a prompt token.
            group: G.
            length: C; the decoder can be called at most so many times.
        """
        # Under autocast the cache is in float32, because the rotary embedding returns float32 keys.
        dtype = autocast_dtype(mask.device.type) or cache.layers[0].values.dtype
        self._layers.round(mask.device.type)
        self._prefix = [(layer.keys.to(dtype), layer.values.to(dtype)) for layer in cache.layers]
        self._prefix_bias = torch.zeros(mask.shape, device=mask.device).masked_fill(mask == 0, float("-inf"))  # [B, P]
        self._prompt_of_slot = [prompt for prompt in range(len(mask)) for _ in range(group)]  # prompt of each slot
        self._slot_of_row = list(range(len(self._prompt_of_slot)))  # slot of each running row
        self._calls = 0
        if self._make_capture:
            self._load_prompts(length)
        else:
            self._own = self._new_buffers(len(self._prompt_of_slot), length)
            self._tokens, self._positions = torch.zeros(
                2, len(self._prompt_of_slot), dtype=torch.long, device=mask.device
            )
            self._own_length = torch.zeros(1, dtype=torch.long, device=mask.device)
        self._index_slots()

    def _new_buffers(self, rows: int, tokens: int) -> list[tuple[Tensor, Tensor]]:
        """Zeros for the keys and the values of each layer: [rows, K, tokens, d] each."""
        first = self._prefix[0][0]
        shape = (rows, first.shape[1], tokens, first.shape[3])
        return [(first.new_zeros(shape), first.new_zeros(shape)) for _ in self._prefix]

    def _load_prompts(self, length: int) -> None:
        """Copy the prompts to where the captured steps read them.

        If a buffer must grow, or its type or the weights' addresses have changed, all replays are dropped.
        """
        prefix, prefix_bias = self._prefix, self._prefix_bias
        prompts, tokens = prefix_bias.shape
        wanted = (prompts, -(-tokens // BLOCK) * BLOCK, len(self._prompt_of_slot), length)
        sizes = tuple(map(max, self._sizes, wanted))
        relies_on = (sizes, prefix[0][0].dtype, self._layers.addresses())
        if relies_on != self._relies_on:
            self._sizes, self._relies_on = sizes, relies_on
            self._replays.clear()
            self._capture = self._make_capture()
            # The old buffers are freed before the new ones are made: both at once would not fit.
            self._logits = None
            self._own.clear()
            self._prefix_buffers = self._resized(self._prefix_buffers, sizes[0], sizes[1])
            self._own_buffers = self._resized(self._own_buffers, sizes[2], sizes[3])
            self._prefix_bias_buffer = prefix_bias.new_empty(sizes[:2])
            self._logits = prefix[0][0].new_empty(sizes[2], len(self._layers.model.lm_head.weight))
            self._inputs = torch.zeros(2, sizes[2], dtype=torch.long, device=prefix_bias.device)
            self._own_length = torch.zeros(1, dtype=torch.long, device=prefix_bias.device)
        start = sizes[1] - tokens  # prompts end where their buffers end
        # Values left by an earlier rollout are masked, which multiplies them by 0. They must be finite: 0 · nan is nan.
        for buffer in chain(*self._prefix_buffers, *self._own_buffers):
            buffer.zero_()
        for buffer, part in zip(chain(*self._prefix_buffers), chain(*prefix), strict=True):
            buffer[:prompts, :, start:] = part
        self._prefix_bias_buffer.fill_(float("-inf"))
        self._prefix_bias_buffer[:prompts, start:] = prefix_bias
        self._own_length.zero_()
        self._use_first(prompts, len(self._prompt_of_slot))

    def _resized(self, buffers: list[tuple[Tensor, Tensor]], rows: int, tokens: int) -> list[tuple[Tensor, Tensor]]:
        """The buffers if they have this size and the prompts' type; otherwise new ones, and the old ones are freed."""
        wanted = (rows, tokens, self._prefix[0][0].dtype)
        if buffers and (len(buffers[0][0]), buffers[0][0].shape[2], buffers[0][0].dtype) == wanted:
            return buffers
        buffers.clear()
        return self._new_buffers(rows, tokens)

    def _use_first(self, prompts: int, slots: int) -> None:
        """Use the first rows of the buffers."""
        self._prefix = [(keys[:prompts], values[:prompts]) for keys, values in self._prefix_buffers]
        self._own = [(keys[:slots], values[:slots]) for keys, values in self._own_buffers]
        self._prefix_bias, (self._tokens, self._positions) = self._prefix_bias_buffer[:prompts], self._inputs[:, :slots]

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but `rows`, ascending indices of the running rows."""
        self._slot_of_row = [self._slot_of_row[row] for row in rows]
        running: dict[int, list[int]] = {}  # slots of each prompt that still has any
        for slot in self._slot_of_row:
            running.setdefault(self._prompt_of_slot[slot], []).append(slot)
        places = max(map(len, running.values()))
        if self._make_capture:
            # A move costs copies and perhaps a capture, so it waits until the rows fit into half of the slots. Every
            # prompt then has equally many slots, some of them idle. Powers of two keep the number of captures small.
            places = 1 << (places - 1).bit_length()
            if len(running) * places > len(self._prompt_of_slot) // 2:
                self._running_slots = torch.tensor(self._slot_of_row, device=self._prefix_bias.device)
                return
            # Idle slots hold copies of the prompt's first running slot; nobody reads their logits.
            kept = [(slots + slots[:1] * places)[:places] for slots in running.values()]
            moved = {slot: i * places + j for i, slots in enumerate(running.values()) for j, slot in enumerate(slots)}
        else:
            kept, moved = list(running.values()), {slot: new for new, slot in enumerate(self._slot_of_row)}
        self._move(list(running), kept, moved)

    def _move(self, prompts: list[int], kept: list[list[int]], moved: dict[int, int]) -> None:
        """Move slots together.

        Args:
            prompts: the prompts that still have running rows.
            kept: for each of them the slots that it keeps.
            moved: for each old slot the new one.
        """
        device = self._prefix_bias.device
        slots = torch.tensor([slot for of_prompt in kept for slot in of_prompt], device=device)
        stay = torch.tensor(prompts, device=device)
        numbers = {prompt: number for number, prompt in enumerate(prompts)}
        if self._make_capture:
            own, prefix, prefix_bias = self._own, self._prefix, self._prefix_bias[stay]
            self._use_first(len(prompts), len(slots))
            for buffers, parts, index in ((self._own, own, slots), (self._prefix, prefix, stay)):
                for buffer, part in zip(chain(*buffers), chain(*parts), strict=True):
                    buffer.copy_(part[index])  # they share memory; `part[index]` is a copy
            self._prefix_bias.copy_(prefix_bias)
        else:
            self._own = [(keys[slots], values[slots]) for keys, values in self._own]
            self._tokens, self._positions = torch.zeros(2, len(slots), dtype=torch.long, device=device)
            # Prompts without rows leave too, but not one by one: each time, the caches of the others are copied.
            if len(prompts) <= len(self._prefix_bias) // 2:
                self._prefix = [(keys[stay], values[stay]) for keys, values in self._prefix]
                self._prefix_bias = self._prefix_bias[stay]
            else:
                numbers = {prompt: prompt for prompt in prompts}
        self._prompt_of_slot = [
            numbers[prompt] for prompt, of_prompt in zip(prompts, kept, strict=True) for _ in of_prompt
        ]
        self._slot_of_row = [moved[slot] for slot in self._slot_of_row]
        self._index_slots()

    def _index_slots(self) -> None:
        """Note which slots belong to each prompt."""
        device, prompts = self._prefix_bias.device, len(self._prefix_bias)
        slots: list[list[int]] = [[] for _ in range(prompts)]
        for slot, prompt in enumerate(self._prompt_of_slot):
            slots[prompt].append(slot)
        self._places = max(map(len, slots))
        # Prompt and place of each slot [S]; None if all prompts have equally many slots, since a reshape suffices then.
        self._coordinates = None
        if any(len(of_prompt) < self._places for of_prompt in slots):
            place = {slot: place for of_prompt in slots for place, slot in enumerate(of_prompt)}
            places = [place[slot] for slot in range(len(self._prompt_of_slot))]
            self._coordinates = torch.tensor(self._prompt_of_slot, device=device), torch.tensor(places, device=device)
        all_run = self._slot_of_row == list(range(len(self._prompt_of_slot)))
        self._running_slots = None if all_run else torch.tensor(self._slot_of_row, device=device)

    def __call__(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Logits [R, V] after `tokens` [R] at `positions` [R]; the next call may write to the same memory."""
        running = slice(None) if self._running_slots is None else self._running_slots
        self._tokens[running], self._positions[running] = tokens, positions
        self._calls += 1
        if self._make_capture:
            # The window doubles from `WINDOW`, and is never longer than the buffers.
            doublings = ((self._calls - 1) // WINDOW).bit_length()
            self._window = min(WINDOW << doublings, self._own_buffers[0][0].shape[2])
            shapes = (len(self._prefix_bias), self._places, self._window)
            if shapes not in self._replays:
                self._replays[shapes] = self._capture(self._captured_step)
                self.captures += 1
            logits = self._replays[shapes]()
        else:
            self._window = self._calls
            logits = self._step()
        self._own_length += 1
        return logits[running]

    def _captured_step(self) -> Tensor:
        """A step for a capture. All captures write their logits [S, V] to one buffer: of their own they would take more
        memory than all else that they keep.
        """
        logits = self._step()
        return self._logits[: len(logits)].copy_(logits)

    def _step(self) -> Tensor:
        if self._coordinates is None:
            prefix_bias = self._prefix_bias.repeat_interleave(self._places, 0)  # [S, P]
        else:
            prefix_bias = self._prefix_bias[self._coordinates[0]]
        later = torch.arange(self._window, device=prefix_bias.device) > self._own_length
        own_bias = torch.zeros_like(later, dtype=prefix_bias.dtype).masked_fill(later, float("-inf"))
        own_bias = own_bias.expand(len(prefix_bias), -1)
        self._bias = torch.cat([prefix_bias, own_bias], 1)[:, None, None]  # [S, 1, 1, P + W], added to the scores
        return self._layers.run(self._tokens, self._positions, self)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Attention of one token per slot: query [S, H, 1, d], key and value [S, K, 1, d] → [S, H, 1, d]."""
        # 1. The new token's key and value are added to the row's own.
        own_keys, own_values = self._own[layer]
        own_keys.index_copy_(2, self._own_length, key.to(own_keys.dtype))
        own_values.index_copy_(2, self._own_length, value.to(own_values.dtype))
        own_keys, own_values = own_keys[:, :, : self._window], own_values[:, :, : self._window]
        prefix_keys, prefix_values = self._prefix[layer]
        # 2. A group's queries are multiplied by the prompt's keys as one matrix, so the cache is read once per prompt.
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
        """[S, K, H/K, n] → [B, K, places·H/K, n]: the slots of a group side by side."""
        prompts, places = len(self._prefix_bias), self._places
        if self._coordinates is None:
            grid = x.unflatten(0, (prompts, places))
        else:
            grid = x.new_zeros(prompts, places, *x.shape[1:])
            grid[self._coordinates] = x
        return grid.transpose(1, 2).flatten(2, 3)

    def _by_slot(self, x: Tensor) -> Tensor:
        """[B, K, places·H/K, n] → [S, K, H/K, n]: the inverse of `_by_prompt`."""
        grid = x.unflatten(2, (self._places, -1)).transpose(1, 2)  # [B, places, K, H/K, n]
        return grid.flatten(0, 1) if self._coordinates is None else grid[self._coordinates]


class _Layers(nn.Module):
    """Runs the language model and its head on one token per slot, with weights that were rounded beforehand."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model, self._family = model, family_of(model)
        self._rounded: dict[str, Tensor] = {}

    def round(self, device_type: str) -> None:
        """Round the current weights that autocast would round; existing copies are overwritten in place."""
        used = {*self._family.language_model(self.model.model).modules(), self.model.lm_head}
        round_linear(self, autocast_dtype(device_type), self._rounded, used)

    def addresses(self) -> list[int]:
        """The addresses of the weights, of the buffers and of the rounded copies."""
        return [weight.data_ptr() for weight in (*self.parameters(), *self.buffers(), *self._rounded.values())]

    def run(self, tokens: Tensor, positions: Tensor, decoder: Decoder) -> Tensor:
        """Logits [S, V] from the rounded weights, see `forward`."""
        given = (tokens, positions, decoder)
        # The head may be tied to the embedding, which is not rounded.
        return functional_call(self, self._rounded, given, tie_weights=False) if self._rounded else self(*given)

    def forward(self, tokens: Tensor, positions: Tensor, decoder: Decoder) -> Tensor:
        """Logits [S, V] after `tokens` [S] at `positions` [S], with the decoder's attention."""
        family, base = self._family, self.model.model
        hidden = family.language_model(base)(
            **family.embed(base, tokens.unsqueeze(1), []),
            **family.positions(positions.view(1, -1, 1).expand(family.POSITION_AXES, -1, 1)),
            **family.no_mask(),
            layout=decoder,
            use_cache=False,
        ).last_hidden_state[:, -1]
        return family.logits(self.model, hidden)


def _product(one: Tensor, other: Tensor) -> Tensor:
    """[N, K, M, n] @ [N, K, n, T] → [N, K, M, T] in float32, whatever the type of the factors."""
    if one.device.type == "cpu":  # a CPU has no product of bfloat16 factors with a float32 result
        with torch.autocast("cpu", enabled=False):
            return one.float() @ other.float()
    if one.dtype is torch.float32:
        return one @ other
    return torch.bmm(one.flatten(0, 1), other.flatten(0, 1), out_dtype=torch.float32).unflatten(0, one.shape[:2])


@functools.cache
def _capture_stream() -> torch.cuda.Stream:
    # One for the whole process: cuBLAS allocates a workspace for each stream and never frees it.
    return torch.cuda.Stream()


def cuda_graphs() -> Capture:
    """Make a function that captures steps as CUDA graphs, which share one pool of memory."""
    # CUDA frees the pool with its last graph. So after all graphs are dropped, a new capture function is made.
    pool = torch.cuda.graph_pool_handle()

    def capture(step: Step) -> Step:
        # A step must run once before it is captured. The first replay overwrites what this run writes.
        stream = _capture_stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the GPU meanwhile: what they do is no error of this capture.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            logits = step()

        def replay() -> Tensor:
            graph.replay()
            return logits

        return replay

    return capture
