"""How a token is drawn: temperature, top-p and top-k, with noise keyed by seed, step, sample and token."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen: logits over temperature, the `top_k` likeliest (0: all), of those the nucleus `top_p`."""

    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int


def uniforms(seed: int, step: int, prompt_id: str, group_size: int, length: int) -> Tensor:
    """Noise of one group, uniform on [0, 1), shape [G, C]; row g and column t do not depend on G or C."""
    key = int.from_bytes(hashlib.sha256(prompt_id.encode()).digest()[:8], "big")
    rows = [np.random.default_rng([seed, step, key, g]).random(length, dtype=np.float32) for g in range(group_size)]
    return torch.from_numpy(np.stack(rows))


def seed_of(seed: int, step: int, prompt_id: str) -> int:
    """For an engine that draws its own noise: of one group, 62 bits."""
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
    candidates = min(top_k, logits.shape[1]) if top_k else logits.shape[1]
    values, ids = scaled.topk(candidates, dim=1)
    probabilities = values.softmax(1)
    before = probabilities.cumsum(1) - probabilities
    probabilities = probabilities.masked_fill(before >= top_p, 0)
    cumulative = probabilities.cumsum(1)
    place = (cumulative <= noise.unsqueeze(1) * cumulative[:, -1:]).sum(1)
    place = place.minimum((probabilities > 0).sum(1) - 1)  # rounding must not leave the nucleus
    place = torch.where(greedy, 0, place)
    return ids.gather(1, place.unsqueeze(1)).squeeze(1)
