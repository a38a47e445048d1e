"""Decoding from shared prompt caches: the right logits whoever has left, and what is computed and held."""

import copy
import weakref
from itertools import chain

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import set_seed

from echoink.models.batching import prompt_batch
from echoink.rollout import generate as rollout
from echoink.rollout.decoder import Decoder
from tests.rollout.test_generate import noise_of, run


def decode(model, prompts, group, fixed, leaving, length=8, decoder=None):
    """Logits of steps between which all but the `leaving` rows leave; and the decoder."""
    start = rollout.prefill(model.eval(), prompts)
    decoder = decoder or Decoder(model, (lambda: replayed) if fixed else None)
    decoder.begin(start.cache, start.mask, group, length)
    positions, found = start.next_positions.repeat_interleave(group), []
    rows = torch.arange(len(prompts) * group)
    for step, kept in enumerate(leaving):
        rows = rows[kept]
        decoder.keep(kept)
        with torch.no_grad():
            found.append(decoder(30 + 7 * rows + step, positions[rows] + step).clone())  # the next call reuses it
    return found, rows, decoder


class Reads(TorchDispatchMode):
    """The addresses of all that is read, or written to, and was not made inside."""

    def __init__(self):
        super().__init__()
        self.addresses, self._made, self._alive = set(), set(), []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        storages = {x.untyped_storage().data_ptr() for x in given}
        self.addresses |= storages - self._made
        found = function(*args, **(kwargs or {}))
        made = [x for x in tree_leaves(found) if isinstance(x, torch.Tensor)]
        self._made |= {x.untyped_storage().data_ptr() for x in made} - storages
        self._alive += made  # an address is not used twice while its tensor lives
        return found


def replayed(step):
    """What a CUDA graph does, on a CPU: the same operations on what lies at the same addresses, or it fails."""
    with Reads() as captured:
        logits = step()

    def replay():
        with Reads() as again:
            found = step()
        assert again.addresses == captured.addresses, "a graph would read what is no longer there"
        assert found.data_ptr() == logits.data_ptr(), "and write what nobody reads"
        return found

    return replay


LEAVING = [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [0, 2, 3, 5, 6, 7, 9, 11], [1, 2, 4, 6, 7], [0, 4], [1]]


@pytest.mark.parametrize("fixed", [False, True], ids=["leaving at once", "fixed slots"])
def test_a_row_decodes_as_it_would_alone(model, prompts, fixed):
    """Three prompts of different lengths, G = 4; against the whole sequence through the model's own forward."""
    found, (row,), _ = decode(model, prompts[:3], 4, fixed, LEAVING)
    assert row == 11
    prompt = prompts[2]
    ids = torch.cat([prompt.input_ids, 30 + 7 * row + torch.arange(5)])[None]
    with torch.no_grad():
        expected = model(ids, attention_mask=torch.ones_like(ids), **prompt.media).logits[0, -5:]
    assert all((logits[-1] - one).abs().max() <= 1e-4 for logits, one in zip(found, expected, strict=True))


@pytest.mark.parametrize("fixed", [False, True])
def test_under_autocast_a_row_decodes_about_as_in_float32(model, prompts, fixed):
    exact, _, _ = decode(model, prompts[:3], 4, fixed, LEAVING)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, _, _ = decode(model, prompts[:3], 4, fixed, LEAVING)
    assert all(
        (a.log_softmax(-1) - b.float().log_softmax(-1)).abs().mean() < 0.1 for a, b in zip(exact, rounded, strict=True)
    )


def test_fixed_slots_compute_what_rows_that_leave_do(model, prompts):
    one, _, _ = decode(model, prompts[:3], 4, False, LEAVING)
    other, _, _ = decode(model, prompts[:3], 4, True, LEAVING)
    assert all((a - b).abs().max() <= 1e-5 for a, b in zip(one, other, strict=True))


def test_the_prompts_cache_is_held_once_per_prompt_and_rows_leave(model, prompts):
    _, _, decoder = decode(model, prompts[:3], 4, False, LEAVING[:1])
    assert decoder._prefix[0][0].shape[0] == 3 and decoder._own[0][0].shape[:3] == (12, 2, 8)
    sizes = {}
    for fixed in (False, True):
        sizes[fixed] = []
        for steps in range(1, 6):
            _, _, decoder = decode(model, prompts[:3], 4, fixed, LEAVING[:steps])
            sizes[fixed].append((len(decoder._own[0][0]), len(decoder._prefix[0][0])))
    assert sizes[False] == [(12, 3), (8, 3), (5, 3), (2, 3), (1, 1)]
    assert sizes[True] == [(12, 3), (12, 3), (6, 3), (2, 2), (1, 1)], "slots move together when half of them are idle"


def test_one_decoder_serves_rollouts_of_other_prompts_without_another_capture(model, prompts):
    decoder = Decoder(model, lambda: replayed)
    captures = []
    for chosen in (prompts[:3], prompts[3:6], prompts[:3], prompts[1:3]):
        everyone = [list(range(4 * len(chosen)))] * 2
        found, _, _ = decode(model, chosen, 4, True, everyone, decoder=decoder)
        expected, _, _ = decode(model, chosen, 4, False, everyone)
        assert all((a - b).abs().max() <= 1e-5 for a, b in zip(found, expected, strict=True))
        captures.append(decoder.captures)
    assert captures[0] == captures[1] == captures[2] == 1
    assert captures[3] == 2, "two prompts are other shapes"


def test_captured_steps_of_all_shapes_give_their_logits_in_the_same_memory(model, prompts):
    given = []

    def noted(step):
        given.append(step())
        return step

    decoder = Decoder(model, lambda: noted)
    for chosen in (prompts[:3], prompts[1:3]):
        decode(model, chosen, 4, True, [list(range(4 * len(chosen)))], decoder=decoder)
    assert [len(logits) for logits in given] == [12, 8] and len({logits.data_ptr() for logits in given}) == 1


def test_moved_slots_have_a_power_of_two_of_places_so_that_captures_are_few(model, prompts):
    everyone = list(range(16))
    three_of_one_prompt, three_of_another = [0, 1, 2], [0, 1, 3]
    decoder = Decoder(model, lambda: replayed)
    for left in (three_of_one_prompt, three_of_another, [0, 1, 2, 3]):
        decode(model, prompts[:2], 8, True, [everyone, left], decoder=decoder)
        assert (decoder._places, len(decoder._prefix_bias)) == (4, 1)
    assert decoder.captures == 2, "one for all rows, one for four places"


def test_a_buffer_that_grows_is_released_before_the_next_is_made(model, prompts, monkeypatch):
    """An evaluation's prompts grow past a multiple of BLOCK; the buffers are most of what it holds."""
    monkeypatch.setattr("echoink.rollout.decoder.BLOCK", 8)
    made, alive, make = [], [], Decoder._new_buffers

    def noted(self, rows, tokens):
        alive.append(sum(size for size, ref in made if ref() is not None))
        new = make(self, rows, tokens)
        made.extend((layer.nbytes, weakref.ref(layer)) for pair in new for layer in pair)
        return new

    monkeypatch.setattr(Decoder, "_new_buffers", noted)
    decoder = Decoder(model, lambda: replayed)
    by_length = sorted(prompts, key=lambda prompt: len(prompt.input_ids))
    everyone = [list(range(4))] * 2
    for chosen in (by_length[:1], by_length[-1:]):
        decode(model, chosen, 4, True, everyone, decoder=decoder)
    sizes = [size for size, _ in made]
    layers = 2 * len(model.model.language_model.layers)
    shared, own = sum(sizes[:layers]), sum(sizes[layers : 2 * layers])
    assert alive[:2] == [0, shared]
    assert decoder._sizes[1] > 8 and alive[-1] == own, "beside the longer prompts' buffers only the completions' own"


@pytest.mark.parametrize("autocast", [False, True])
def test_weights_that_moved_are_captured_anew_and_weights_that_learned_are_seen(model, prompts, autocast):
    model = copy.deepcopy(model)
    decoder = Decoder(model, lambda: replayed)

    def both():
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found, _, _ = decode(model, prompts[:3], 4, True, LEAVING[:1], decoder=decoder)
            expected, _, _ = decode(model, prompts[:3], 4, False, LEAVING[:1])
        assert (found[0].float() - expected[0].float()).abs().max() <= (0.1 if autocast else 1e-5)
        return found[0]

    before = both()
    with torch.no_grad():  # as an optimizer does
        for weight in model.parameters():
            weight.mul_(1.01)
    assert not torch.equal(before, both()) and decoder.captures == 1
    for weight in model.parameters():  # as a divided model does that is put together for each rollout
        weight.data = weight.data.clone()
    both()
    assert decoder.captures == 2


def test_own_tokens_are_read_from_a_window_that_doubles(model, prompts, monkeypatch):
    monkeypatch.setattr("echoink.rollout.decoder.WINDOW", 2)
    everyone = [list(range(12))] * 7
    found, _, decoder = decode(model, prompts[:3], 4, True, everyone, length=7)
    expected, _, _ = decode(model, prompts[:3], 4, False, everyone, length=7)
    assert all((a - b).abs().max() <= 1e-5 for a, b in zip(found, expected, strict=True))
    assert decoder.captures == 3, "windows of 2, 4 and 7"


def test_a_step_under_autocast_rounds_no_weight_and_frozen_ones_least_of_all(model, prompts):
    """They were rounded when the rollout began."""
    model = copy.deepcopy(model).requires_grad_(False)
    sizes = {weight.numel() for weight in model.model.language_model.layers.parameters() if weight.ndim == 2}

    class Casts(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.count += function.overloadpacket.__name__ == "_to_copy" and args[0].numel() in sizes
            return function(*args, **(kwargs or {}))

    with torch.autocast("cpu", torch.bfloat16):
        start = rollout.prefill(model.eval(), prompts[:1])
        decoder = Decoder(model)
        decoder.begin(start.cache, start.mask, 2, 4)
        with torch.no_grad(), Casts() as casts:
            decoder(torch.tensor([30, 31]), start.next_positions.repeat_interleave(2))
    assert casts.count == 0


def test_fixed_slots_sample_the_same_rollout(model, prompts, monkeypatch):
    expected = run(model, prompts[:5], noise_of(5, 4), [1.0] * 4)
    assert len({len(row) for row in expected}) > 1, "wants rows that leave at different times"
    monkeypatch.setattr(rollout, "decoder_for", lambda model: Decoder(model, lambda: replayed))
    assert run(model, prompts[:5], noise_of(5, 4), [1.0] * 4) == expected


@pytest.mark.parametrize("count", [1, 3])
def test_a_shared_prefill_samples_what_num_return_sequences_does(model, prompts, count):
    """With transformers' own random numbers and the same seed; three prompts are padded on the left."""
    model.eval()
    group, chosen = 4, prompts[:count]
    batch = prompt_batch(chosen)
    batch.pop("position_ids")
    settings = {"do_sample": True, "max_new_tokens": 20, "top_k": 50, "top_p": 0.95}
    set_seed(3)
    expected = model.generate(**batch, num_return_sequences=group, **settings)

    start = rollout.prefill(model, chosen)
    # generate() wants the last prompt token not yet in the cache, and the offset of positions that it would have found
    start.cache.crop(-1)
    start.cache.batch_repeat_interleave(group)
    model.model.rope_deltas = (start.next_positions - start.mask.sum(1)).repeat_interleave(group).unsqueeze(1)
    set_seed(3)
    found = model.generate(
        input_ids=batch["input_ids"].repeat_interleave(group, 0),
        attention_mask=start.mask.repeat_interleave(group, 0),
        past_key_values=start.cache,
        **settings,
    )
    assert torch.equal(found, expected)
    assert len({tuple(row.tolist()) for row in found}) > 1


def test_what_an_earlier_rollout_left_is_not_seen_even_if_it_is_not_finite(model, prompts):
    decoder = Decoder(model, lambda: replayed)
    decode(model, prompts[:3], 4, True, LEAVING[:1], decoder=decoder)
    for buffer in chain(*decoder._prefix_buffers, *decoder._own_buffers):
        buffer.fill_(float("nan"))
    found, _, _ = decode(model, prompts[:3], 4, True, LEAVING[:1], decoder=decoder)
    expected, _, _ = decode(model, prompts[:3], 4, False, LEAVING[:1])
    assert (found[0] - expected[0]).abs().max() <= 1e-5
