"""The loss's correction for rollouts that another engine made: it samples from nearly the policy, not from it.

TRL's truncated or masked importance sampling, for a rollout with one update: the policy's log-probabilities are then
those of the loss itself, and no pass over the rollout is made for them (with several updates TRL makes it).

Shapes: R rows, C completion tokens.
"""

import torch
from torch import Tensor

from echoink.config.schema import Correction

NAMES = {
    "difference": "sampling/sampling_logp_difference",
    "ratio": "sampling/importance_sampling_ratio",
}
"""Of the metrics, as TRL has them."""


def ratio(logps: Tensor, told: Tensor, mask: Tensor, how: Correction, most: float) -> Tensor:
    """Probability of what was sampled under the policy over that under the engine, bounded.

    Args:
        logps: of the policy, [R, C].
        told: of the engine, [R, C]; not a number where it has none.
        mask: True where a token counts, [R, C].
        how: see `Correction`.
        most: the bound.

    Returns:
        Weights of the loss: [R, C] for tokens, [R, 1] for sequences.
    """
    if how is Correction.none:
        return torch.ones_like(logps)
    difference = ((logps - told) * mask).nan_to_num(nan=0.0)
    if how in (Correction.sequence_truncate, Correction.sequence_mask):
        difference = difference.sum(1, keepdim=True)
    found = difference.exp()
    if how in (Correction.token_truncate, Correction.sequence_truncate):
        return found.clamp(max=most)
    return found.masked_fill(found > most, 0)


def notes(logps: Tensor, told: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """What `metrics` needs of one micro-batch: [7], sums, counts and extremes."""
    difference = (logps - told).abs()[mask]
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
        f"{NAMES['difference']}/mean": float(total.sum() / count.sum()),
        f"{NAMES['difference']}/max": float(largest.max()),
        f"{NAMES['ratio']}/min": float(least.min()),
        f"{NAMES['ratio']}/mean": float(weights.sum() / rows.sum()),
        f"{NAMES['ratio']}/max": float(most.max()),
    }
