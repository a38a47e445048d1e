"""Handles by which a trainer passes weights to an engine, and sums that show whether the weights arrived.

This file imports only torch, because the engine's Python imports it too.

**Handles** let another process read a tensor in this process's GPU memory (CUDA's inter-process handles). PyTorch keeps
the memory until the other process has released it.

**Sums of bits.** An engine fuses some weights into one (query, key and value), so there is one sum for each part of a
layer: `model.layers.3.self_attn.weight` covers all projections there. A sum does not detect a swap within a part; it
detects a part that did not arrive, is from an earlier step, or has another type.
"""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.multiprocessing.reductions import rebuild_cuda_tensor, reduce_tensor

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def part_of(name: str) -> str:
    """The part of a layer that a weight belongs to, the same for its name in a checkpoint and in an engine."""
    *words, own, kind = name.split(".")
    if numbers := [place for place, word in enumerate(words) if word.isdigit()]:
        return ".".join([*words[max(0, numbers[-1] - 2) :], kind])
    # Outside the layers a weight keeps the name of the module around it, because two towers may both have a `proj`. The
    # head does not: what is around it has another name in an engine.
    return ".".join([*([] if own == "lm_head" else words[-1:]), own, kind])


def digests(weights: Iterable[tuple[str, torch.Tensor]]) -> dict[str, int]:
    """The sum of each part's weights, their bits read as integers, modulo 2^64; -1 for a part with an empty weight."""
    found: dict[str, int] = {}
    for name, weight in weights:
        part, bits = part_of(name), weight.detach().contiguous().view(_BITS[weight.itemsize])
        before = found.get(part, 0)
        gone = before < 0 or not weight.numel()  # the engine has packed it into a form of its own
        found[part] = -1 if gone else (before + int(bits.sum(dtype=torch.int64))) % 2**64
    return found


def differing(sent: dict[str, int], held: dict[str, int]) -> list[str]:
    """Parts of which the engine holds another sum than was sent. Parts that it cannot show do not count."""
    return sorted(part for part, value in sent.items() if held.get(part, -1) not in (-1, value))


@contextmanager
def shareable() -> Iterator[None]:
    """Inside, memory is allocated so that another process may read it.

    With `expandable_segments:True` in PYTORCH_ALLOC_CONF, PyTorch passes file descriptors, which a container may
    forbid; so that is off here. The allocator then takes no block of an expandable segment.
    """
    own = os.environ.get("PYTORCH_ALLOC_CONF") or os.environ.get("PYTORCH_CUDA_ALLOC_CONF") or ""
    changed = re.sub(r"(expandable_segments\s*:\s*)true", r"\1False", own, flags=re.IGNORECASE)
    if changed == own:
        yield
        return
    # Each call sets all settings anew, so the others are repeated.
    torch._C._accelerator_setAllocatorSettings(changed)
    try:
        yield
    finally:
        torch._C._accelerator_setAllocatorSettings(own)


def handle(weight: torch.Tensor) -> Any:
    """A handle by which another process on this GPU can read a tensor; for a tensor on a CPU its values (for tests)."""
    return reduce_tensor(weight)[1] if weight.is_cuda else weight.numpy()


def of_handle(given: Any) -> torch.Tensor:
    """The tensor of a handle; it stays in the memory of the process that made the handle."""
    if not isinstance(given, tuple):
        return torch.from_numpy(given)
    arguments = list(given)
    arguments[_DEVICE] = torch.cuda.current_device()  # the GPU may have another number here
    return rebuild_cuda_tensor(*arguments)


_DEVICE = 6
"""Index of the GPU's number among the arguments with which PyTorch rebuilds a shared tensor."""
