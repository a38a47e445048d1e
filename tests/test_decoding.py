"""Both decoders: the same tokens, and what each of them computes."""

from types import SimpleNamespace

import pytest
import torch
from transformers import set_seed

from echoink import rollout
from echoink.decoding import Growing, Slots, decoder_for
from echoink.models import load_model
from echoink.processing import prompt_batch
from echoink.shared_prefix import install
from tests.test_rollout import noise_of, run


@pytest.mark.parametrize("count", [1, 5])
def test_slots_decode_what_growing_rows_do(model, prompts, monkeypatch, count):
    """The decoder for GPUs, without its CUDA graph."""
    expected = run(model, prompts[:count], noise_of(count, 4), [1.0] * 4)
    assert len({len(row) for row in expected}) > 1, "wants rows that leave at different times"
    monkeypatch.setattr(rollout, "decoder_for", lambda model: Slots)
    assert run(model, prompts[:count], noise_of(count, 4), [1.0] * 4) == expected


def test_slots_are_for_gpus_whose_attention_takes_their_mask():
    def of(device, attention):
        model = load_model("tiny", attention=attention)
        if attention == "sdpa":
            install(model)
        model = SimpleNamespace(config=model.config, device=torch.device(device))
        return decoder_for(model)

    assert of("cuda", "sdpa") is Slots
    assert of("cuda", "eager") is Growing and of("cpu", "sdpa") is Growing


def test_slots_move_together_when_half_of_them_are_idle(model, prompts):
    start = rollout.prefill(model.eval(), prompts[:2], 4, 0)
    decoder = Slots(model, start.cache, start.mask, 8)
    sizes = []
    for rows in ([0, 1, 2, 3, 4, 5, 6, 7], [0, 2, 3, 4, 5], [0, 1, 2, 4], [1, 3], [1]):
        decoder.keep(torch.tensor(rows))
        with torch.no_grad():
            logits = decoder(torch.full((len(rows),), 30), start.next_positions[: len(rows)])
        assert len(logits) == len(rows)
        sizes.append(decoder._cache.layers[0].keys.shape[0])
    assert sizes == [8, 8, 4, 2, 1]


def test_growing_rows_leave_at_once(model, prompts):
    start = rollout.prefill(model.eval(), prompts[:2], 2, 0)
    decoder = Growing(model, start.cache, start.mask, 8)
    decoder.keep(torch.tensor([3]))
    with torch.no_grad():
        assert decoder(torch.tensor([30]), start.next_positions[3:]).shape[0] == 1
    assert start.cache.layers[0].keys.shape[0] == 1


@pytest.mark.parametrize("count", [1, 3])
def test_a_shared_prefill_samples_what_num_return_sequences_does(model, prompts, count):
    """With transformers' own random numbers and the same seed; three prompts are padded on the left."""
    model.eval()
    group, chosen = 4, prompts[:count]
    batch = prompt_batch(chosen, model.generation_config.pad_token_id)
    batch.pop("position_ids")
    settings = {"do_sample": True, "max_new_tokens": 20, "top_k": 50, "top_p": 0.95}
    set_seed(3)
    expected = model.generate(**batch, num_return_sequences=group, **settings)

    start = rollout.prefill(model, chosen, group, model.generation_config.pad_token_id)
    # generate() wants the last prompt token not yet in the cache, and the offset of positions that it would have found
    start.cache.crop(-1)
    real = start.mask.sum(1)
    model.model.rope_deltas = (start.next_positions - real).unsqueeze(1)
    set_seed(3)
    found = model.generate(
        input_ids=batch["input_ids"].repeat_interleave(group, 0),
        attention_mask=start.mask,
        past_key_values=start.cache,
        **settings,
    )
    assert torch.equal(found, expected)
    assert len({tuple(row.tolist()) for row in found}) > 1
