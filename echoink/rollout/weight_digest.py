"""What says that the weights which an engine holds are those that it was sent: sums of their bits.

An engine keeps some weights as one (query, key and value), so sums are by part of a layer:
`model.layers.3.self_attn.weight` has those of all projections there. A sum does not see an exchange inside a part; it
sees a part that did not arrive, one of an earlier step, and one in another type. The file imports torch alone: the
engine's Python reads it too.
"""

from collections.abc import Iterable

import torch

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def part_of(name: str) -> str:
    """The part of a layer that a weight belongs to, alike for the names of a checkpoint and of an engine."""
    *words, own, kind = name.split(".")
    if numbers := [place for place, word in enumerate(words) if word.isdigit()]:
        return ".".join([*words[max(0, numbers[-1] - 2) :], kind])
    # Of no layer: two towers may both have a `proj`; the head's neighbours have other names in an engine.
    return ".".join([*([] if own == "lm_head" else words[-1:]), own, kind])


def digests(weights: Iterable[tuple[str, torch.Tensor]]) -> dict[str, int]:
    """The sum of the bits of each part, modulo 2^64; -1 for a part of which something is not there to be seen."""
    found: dict[str, int] = {}
    for name, weight in weights:
        part, bits = part_of(name), weight.detach().contiguous().view(_BITS[weight.itemsize])
        before = found.get(part, 0)
        gone = before < 0 or not weight.numel()  # packed by the engine into a form of its own
        found[part] = -1 if gone else (before + int(bits.sum(dtype=torch.int64))) % 2**64
    return found


def differing(sent: dict[str, int], held: dict[str, int]) -> list[str]:
    """Parts that were sent and are held otherwise. What cannot be seen does not differ."""
    return sorted(part for part, value in sent.items() if held.get(part, -1) not in (-1, value))
