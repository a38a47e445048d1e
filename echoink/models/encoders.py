"""Runs pictures, sounds and videos through their towers, once per prompt.

The features of a prompt can be reused wherever the same towers run: rollout, policy and reference share them if the
towers are frozen. Where the towers learn, each update encodes once, with gradients, in the model's own forward.

Shapes: B prompts, D width of the language model, N placeholder tokens of a medium.
"""

from collections.abc import Sequence

import torch

from echoink.models.batching import row_media
from echoink.models.family import UNUSED, Features, PromptInputs
from echoink.models.registry import family_of


def towers_learn(base: torch.nn.Module) -> bool:
    """Whether any weight of a tower (an adapter's included) gets a gradient."""
    towers = family_of(base).TOWERS.values()
    return any(p.requires_grad for tower in towers for p in getattr(base, tower).parameters())


def same_towers(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Whether two models' towers have the same weights, bit for bit after conversion to the type of `other`.

    Call it before `rounding.round_frozen` changes either of them.
    """
    pairs = [
        zip(getattr(one, tower).parameters(), getattr(other, tower).parameters(), strict=True)
        for tower in family_of(one).TOWERS.values()
    ]
    return all(a is b or torch.equal(a.to(b.dtype), b) for pair in pairs for a, b in pair)


def encode_media(base: torch.nn.Module, prompts: Sequence[PromptInputs], run_all: bool = False) -> list[Features]:
    """Run each tower once over the media of B prompts.

    Args:
        base: the model without its head.
        prompts: the prompts whose `media` are encoded; they may have different media.
        run_all: also run a tower that has nothing to encode. If several processes share a tower's weights and one of
            them calls it, all must: a forward pass gathers the weights, and the update needs a gradient from each.

    Returns:
        One `Features` per prompt, in their order; `UNUSED`, if there is one, is in the first.
    """
    family = family_of(base)
    encoded = family.encode(base, row_media(prompts, range(len(prompts))), run_all)
    features: list[Features] = [{} for _ in prompts]
    for name, token in family.placeholders(base.config).items():
        if name not in encoded:
            continue
        counts = [int((prompt.input_ids == token).sum()) for prompt in prompts]
        rows = encoded[name]
        assert sum(counts) == len(rows), f"{len(rows)} {name} features for {sum(counts)} placeholder tokens"
        for found, part, count in zip(features, rows.split(counts), counts, strict=True):
            if count:
                found[name] = part
    if UNUSED in encoded:
        features[0][UNUSED] = encoded[UNUSED]
    return features
