"""What is logged of an engine's rollout: how far its log-probabilities are from the policy's, and the loss's weights.

The weights themselves are `grpo.engine_ratio`.

Shapes: R rows, C completion tokens.
"""

import torch
from torch import Tensor


def notes(logps: Tensor, engine: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """What `metrics` needs of one micro-batch: [7], sums, counts and extremes."""
    difference = (logps - engine).abs()[mask]
    difference = difference[~difference.isnan()]
    inside = weights[mask] if weights.shape == mask.shape else weights[mask.any(1)]
    if not len(difference):
        return logps.new_tensor([0, 0, 0, torch.inf, 0, 0, -torch.inf])
    spread = [
        difference.sum(),
        len(difference),
        difference.max(),
        inside.min(),
        inside.sum(),
        inside.numel(),
        inside.max(),
    ]
    return torch.stack([torch.as_tensor(value, device=logps.device, dtype=logps.dtype) for value in spread])


def metrics(noted: Tensor) -> dict[str, float]:
    """Difference of the log-probabilities (mean and largest, nats a token) and the weights, of a whole step.

    Args:
        noted: [N, 7], `notes` of all micro-batches and processes.
    """
    total, count, largest, least, weights, rows, most = noted.double().unbind(1)
    if not count.sum():
        return {}
    return {
        "engine/logp_difference_mean": float(total.sum() / count.sum()),
        "engine/logp_difference_max": float(largest.max()),
        "engine/ratio_min": float(least.min()),
        "engine/ratio_mean": float(weights.sum() / rows.sum()),
        "engine/ratio_max": float(most.max()),
    }
