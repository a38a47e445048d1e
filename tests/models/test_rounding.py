"""Weights that are held in bfloat16 because autocast would round them at every use: the same numbers, bit for bit."""

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model
from trl.trainer.utils import add_fused_lm_head

from echoink.models.encoders import encode_media
from echoink.models.loading import lora
from echoink.models.logprobs import packed_logprobs
from echoink.models.rounding import round_frozen, round_linear

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def logps(model, prompts):
    """Log-probabilities of made-up completions under autocast, towers and head included."""
    ids = torch.randint(20, 400, (6, 9), generator=torch.Generator().manual_seed(0))
    index, mask = [0, 0, 1, 1, 2, 2], torch.ones_like(ids).bool()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        features = encode_media((model.get_base_model() if isinstance(model, PeftModel) else model).model, prompts[:3])
        return packed_logprobs(model, prompts[:3], features, prompt_index=index, completion_ids=ids, scored=mask)[0]


def test_a_frozen_model_in_bfloat16_gives_what_autocast_gives(model, prompts):
    model = copy.deepcopy(model).eval().requires_grad_(False)
    add_fused_lm_head(model)
    expected, before = logps(model, prompts), sum(p.nbytes for p in model.parameters())
    round_frozen(model, torch.bfloat16)
    assert torch.equal(logps(model, prompts), expected)
    # all but embedding, norms and what convolutions use
    assert sum(p.nbytes for p in model.parameters()) < 0.6 * before


def test_under_an_adapter_the_base_is_rounded_and_the_adapter_is_not(model, prompts):
    model = copy.deepcopy(model).eval()
    add_fused_lm_head(model)
    adapted = get_peft_model(model, lora(4, 8, 0.0, TARGETS))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    expected = logps(adapted, prompts)
    round_frozen(adapted, torch.bfloat16)
    assert torch.equal(logps(adapted, prompts), expected)
    kinds = {p.dtype for name, p in adapted.named_parameters() if p.requires_grad}
    assert kinds == {torch.float32}


def test_a_weight_that_an_embedding_shares_stays_as_it_is(model):
    model = copy.deepcopy(model).requires_grad_(False)
    model.lm_head.weight = model.model.language_model.embed_tokens.weight
    round_frozen(model, torch.bfloat16)
    assert model.lm_head.weight.dtype is torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, None])
def test_copies_stay_where_they_are_and_follow_the_weights(model, dtype):
    copies = {}
    round_linear(model, torch.bfloat16, copies)
    name, there = next(iter(copies.items()))
    where = there.data_ptr()
    assert torch.equal(there, model.get_parameter(name).to(torch.bfloat16))
    with torch.no_grad():
        model.get_parameter(name).add_(1)
    round_linear(model, dtype, copies)
    if dtype is None:
        assert not copies
    else:
        assert copies[name].data_ptr() == where
        assert torch.equal(copies[name], model.get_parameter(name).to(dtype))
