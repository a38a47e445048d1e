"""Metrics of an engine's rollout: how far its log-probabilities are from the policy's, and the weights in the loss.

`grpo.engine_ratio` computes these weights.

Shapes: R rows, C completion tokens, N micro-batches of all processes.
"""

import torch
from torch import Tensor


def notes(logps: Tensor, engine: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """Sums, counts and extremes of one micro-batch, [7], from which `metrics` computes means and extremes.

    Args:
        logps: log-probabilities of the policy, [R, C].
        engine: log-probabilities of the engine, [R, C]; NaN where it gave none.
        mask: [R, C], True on the tokens that count.
        weights: [R, C] or [R, 1], see `grpo.engine_ratio`.
    """
    difference = (logps - engine).abs()[mask]
    difference = difference[~difference.isnan()]
    inside = weights[mask] if weights.shape == mask.shape else weights[mask.any(1)]
    if not len(difference):
        return logps.new_tensor([0, 0, 0, torch.inf, 0, 0, -torch.inf])
    apart = difference.sum(), len(difference), difference.max()
    ratio = inside.min(), inside.sum(), inside.numel(), inside.max()
    return torch.stack([torch.as_tensor(each, device=logps.device, dtype=logps.dtype) for each in (*apart, *ratio)])


def metrics(noted: Tensor) -> dict[str, float]:
    """The difference of the log-probabilities (mean and largest, nats per token) and the weights over a whole step.

    Args:
        noted: [N, 7], `notes` of all micro-batches and processes.

    Returns:
        Values by metric name; empty if no token could be compared.
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
