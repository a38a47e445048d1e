"""The state of all random number generators, as a checkpoint stores it."""

import random
from typing import Any

import numpy as np
import torch


def state() -> dict[str, Any]:
    """The states of Python, NumPy, torch and every GPU, in types that `torch.load(weights_only=True)` accepts."""
    kind, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), *rest),
        "cpu": torch.random.get_rng_state(),
        "cuda": torch.cuda.random.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore(state: dict[str, Any]) -> None:
    """Restore what `state` returned."""
    kind, keys, *rest = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.random.set_rng_state(state["cpu"])
    torch.cuda.random.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])  # there may be fewer GPUs now
