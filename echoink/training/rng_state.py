"""The state of all generators of random numbers, as a checkpoint keeps it."""

import random
from typing import Any

import numpy as np
import torch


def state() -> dict[str, Any]:
    """Of Python, NumPy, torch and every GPU, in types that `torch.load(weights_only=True)` takes."""
    kind, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), *rest),
        "cpu": torch.random.get_rng_state(),
        "cuda": torch.cuda.random.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore(state: dict[str, Any]) -> None:
    """Put back what `state` gave."""
    kind, keys, *rest = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.random.set_rng_state(state["cpu"])
    torch.cuda.random.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])  # there may be fewer now
