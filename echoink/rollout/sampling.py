"""Draws tokens by temperature, top-p and top-k, with noise keyed by seed, step, sample, completion and token."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_FEW = 1024
"""Number of candidates that are sorted first where only top-p limits them."""


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen: logits over `temperature`, the `top_k` likeliest (0: all), then the nucleus `top_p`."""

    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int
    end_ids: tuple[int, ...] = ()
    """Tokens that end a completion; if there are none, every completion has `max_new_tokens`."""


def uniforms(seed: int, step: int, prompt_id: str, group_size: int, length: int) -> Tensor:
    """Noise of one group, uniform on [0, 1), shape [G, C]; row g and column t do not depend on G or C."""
    key = int.from_bytes(hashlib.sha256(prompt_id.encode()).digest()[:8], "big")
    rows = [np.random.default_rng([seed, step, key, g]).random(length, dtype=np.float32) for g in range(group_size)]
    return torch.from_numpy(np.stack(rows))


def seed_of(seed: int, step: int, prompt_id: str) -> int:
    """The seed of one group for an engine that draws its own noise, an integer of 62 bits."""
    key = int.from_bytes(hashlib.sha256(prompt_id.encode()).digest()[:8], "big")
    return int(np.random.SeedSequence([seed, step, key]).generate_state(1, np.uint64)[0]) >> 2


def choose(logits: Tensor, noise: Tensor, temperature: Tensor, top_p: float, top_k: int) -> Tensor:
    """One token per row by inverse transform sampling; rows with temperature 0 take the likeliest token.

    Args:
        logits: [R, V].
        noise: uniform numbers [R].
        temperature: [R], 0 for greedy.
        top_p: nucleus mass, 1 for all.
        top_k: number of candidates, 0 for all.

    Returns:
        Token ids [R].
    """
    greedy = temperature == 0
    scaled = logits.float() / torch.where(greedy, 1.0, temperature).unsqueeze(1)
    if not top_k and top_p == 1:  # no token is left out, so none is sorted
        probabilities, ids = scaled.softmax(1), None
    else:
        probabilities, ids = _likeliest(scaled, top_p, top_k)
        before = probabilities.cumsum(1) - probabilities
        probabilities = probabilities.masked_fill(before >= top_p, 0)
    cumulative = probabilities.cumsum(1)
    total = cumulative[:, -1:]
    place = (cumulative <= noise.unsqueeze(1) * total).sum(1)
    place = place.minimum((cumulative < total).sum(1))  # rounding must not go past the last candidate
    place = torch.where(greedy, probabilities.argmax(1), place)
    return place if ids is None else ids.gather(1, place.unsqueeze(1)).squeeze(1)


def _likeliest(scaled: Tensor, top_p: float, top_k: int) -> tuple[Tensor, Tensor]:
    """Probabilities and ids of the candidates, each [R, n], the likeliest first.

    With `top_k` the probabilities are normalized over the candidates. Without it, the nucleus nearly always lies in the
    `_FEW` likeliest tokens; the whole vocabulary of 150,000 is sorted only where it does not.
    """
    vocabulary = scaled.shape[1]
    if top_k or vocabulary <= _FEW:
        values, ids = scaled.topk(min(top_k or vocabulary, vocabulary), dim=1)
        return values.softmax(1), ids
    every = scaled.logsumexp(1, keepdim=True)
    values, ids = scaled.topk(_FEW, dim=1)
    probabilities = (values - every).exp()
    if (probabilities.sum(1) < top_p).any():
        values, ids = scaled.topk(vocabulary, dim=1)
        probabilities = (values - every).exp()
    return probabilities, ids
