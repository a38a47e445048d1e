"""The rollout: each prompt is encoded and prefilled once, then its G completions are decoded from its cache.

Shapes: B prompts, G completions per prompt, R = B·G rows (row b·G + g), P prompt and C completion tokens, V vocabulary.

Sampling noise is keyed by (seed, step, prompt id, g, token position): one uniform number each, which inverting the
cumulative distribution turns into a token. So what a row samples does not depend on the batch, its order, rows that
finish and leave, or the number of processes (up to rounding in the logits).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from echoink.models.batching import prompt_batch
from echoink.models.encoders import encode_media
from echoink.models.family import Features, PromptInputs
from echoink.models.registry import family_of
from echoink.rollout.decoder import Decoder, cuda_graphs
from echoink.rollout.sampling import Sampling, choose


@dataclass(frozen=True)
class Prefilled:
    """B prompts after their single pass through the model."""

    cache: DynamicCache
    """Keys and values of the prompts, padded on the left."""
    mask: Tensor
    """[B, P], 1 where there is a prompt token."""
    logits: Tensor
    """Logits of the first completion token: [B, V]."""
    next_positions: Tensor
    """Position of the first completion token on all position axes: [B]."""


@torch.no_grad()
def prefill(
    model: PreTrainedModel, prompts: Sequence[PromptInputs], features: Sequence[Features] | None = None
) -> Prefilled:
    """Run each of B prompts through towers and language model once; the head runs on the last position only.

    Args:
        model: the model, not wrapped.
        prompts: B prompts.
        features: the towers' features of the prompts' media; None encodes them here.
    """
    features = encode_media(model.model, prompts) if features is None else features
    family = family_of(model)
    batch = {name: value.to(model.device) for name, value in prompt_batch(prompts).items()}
    cache = DynamicCache(config=model.config.get_text_config())
    hidden = family.language_model(model.model)(
        **family.embed(model.model, batch["input_ids"], features),
        **family.padding_mask(batch["attention_mask"]),
        **family.positions(batch["position_ids"]),
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state[:, -1]
    positions = torch.tensor([prompt.next_position for prompt in prompts], device=hidden.device)
    return Prefilled(cache, batch["attention_mask"], family.logits(model, hidden), positions)


def decoder_for(model: PreTrainedModel) -> Decoder:
    """A decoder that captures its steps where there is a GPU."""
    return Decoder(model, cuda_graphs if model.device.type == "cuda" else None)


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prompts: Sequence[PromptInputs],
    noise: Tensor,
    temperatures: Sequence[float],
    sampling: Sampling,
    features: Sequence[Features] | None = None,
    pick: Callable[[Tensor, Tensor, Tensor, float, int], Tensor] = choose,
    decoder: Decoder | None = None,
) -> list[list[int]]:
    """Decode G completions for each prompt.

    Args:
        model: the model, not wrapped; put in evaluation mode for the call.
        prompts: B prompts.
        noise: uniform numbers [B, G, C].
        temperatures: one per completion of a group, length G; 0 is greedy.
        sampling: top-p, top-k, the cap C on new tokens, the tokens that end a completion.
        features: the towers' features of the prompts' media; None encodes them here.
        pick: turns logits into tokens; a benchmark uses it to replay given tokens.
        decoder: the model's decoder from an earlier rollout; None makes a new one.

    Returns:
        R lists of token ids; a completion that ended has its end token last, one that was cut off has none.
    """
    device, group, was_training = model.device, len(temperatures), model.training
    model.eval()
    start = prefill(model, prompts, features)
    logits = start.logits.repeat_interleave(group, 0)
    positions = start.next_positions.repeat_interleave(group)
    decoder = decoder or decoder_for(model)
    decoder.begin(start.cache, start.mask, group, sampling.max_new_tokens)
    del start  # the decoder frees the caches of prompts whose rows have all left
    temperature = torch.tensor(list(temperatures) * len(prompts), dtype=torch.float32, device=device)
    noise = noise.flatten(0, 1).to(device)
    # Placeholders are never sampled: they would stand for a medium that is not there.
    media_tokens = torch.tensor(list(family_of(model).placeholders(model.config).values()), device=device)
    completions: list[list[int]] = [[] for _ in range(len(logits))]
    rows, ends = list(range(len(logits))), set(sampling.end_ids)
    for step in range(sampling.max_new_tokens):
        logits.index_fill_(1, media_tokens, float("-inf"))  # a list of numbers would be copied to the device each time
        tokens = pick(logits, noise[:, step], temperature, top_p=sampling.top_p, top_k=sampling.top_k)
        sampled = tokens.tolist()  # the only wait for the device in a step; top-p without top-k adds one in `choose`
        for row, token in zip(rows, sampled, strict=True):
            completions[row].append(token)
        kept = [index for index, token in enumerate(sampled) if token not in ends]
        if step + 1 == sampling.max_new_tokens or not kept:
            break
        if len(kept) < len(rows):  # finished rows leave
            rows = [rows[index] for index in kept]
            index = torch.tensor(kept, device=device)
            tokens, noise, temperature, positions = tokens[index], noise[index], temperature[index], positions[index]
            decoder.keep(kept)
        logits = decoder(tokens, positions + step)
    model.train(was_training)
    return completions
