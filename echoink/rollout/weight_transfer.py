"""What passes with the weights from a trainer to an engine: handles to them, and sums that say whether they arrived.

The file imports torch alone: the engine's Python reads it too.

**Handles** let another process read a tensor in this process's memory of a GPU (CUDA's inter-process handles). PyTorch
keeps the memory until the other has let go of it.

**Sums of bits.** An engine keeps some weights as one (query, key and value), so sums are by part of a layer:
`model.layers.3.self_attn.weight` has those of all projections there. A sum does not detect a swap within a part; it
detects a part that did not arrive, is of an earlier step, or has another type.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch.multiprocessing.reductions import rebuild_cuda_tensor, reduce_tensor

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


def handle(weight: torch.Tensor) -> Any:
    """What lets another process of this GPU read a tensor; without a GPU its values (numpy), for tests."""
    return reduce_tensor(weight)[1] if weight.is_cuda else weight.numpy()


def of_handle(given: Any) -> torch.Tensor:
    """The tensor of a handle, in the memory of the process that made it."""
    if not isinstance(given, tuple):
        return torch.from_numpy(given)
    arguments = list(given)
    arguments[_DEVICE] = torch.cuda.current_device()  # which has another number here
    return rebuild_cuda_tensor(*arguments)


_DEVICE = 6
"""Of the arguments with which PyTorch rebuilds a shared tensor, the number of its GPU."""
