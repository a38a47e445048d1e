"""GRPO, the algorithm of EchoInk-R1 (Section 3.2), as pure functions on tensors. The trainer runs these.

    r_i = Σ_k λ_k R_k(o_i)                                              `total_reward`, Eq. 5
    A_i = (r_i - mean r) / (std r + 1e-4)                               `advantages`, Eq. 1
    L   = -1/G Σ_i 1/|o_i| Σ_t [min(ρ A_i, clip(ρ) A_i) - β KL_it]      `objective`, Eq. 2
    KL  = exp(d) - d - 1,  d = log π_ref - log π_θ                      `kl`

R_accuracy (Eq. 3) is in `rewards/accuracy.py`, R_format (Eq. 4) in `rewards/format.py`. The variants are TRL's; the
tests compare each with TRL's own loss and gradient. Unlike the paper's public code, this one does not clamp d to ±10.

Shapes: B prompts, G group, R = B·G rows (completions), K rewards, C completion tokens. Masks are True on tokens that
count.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from echoink.config.schema import Correction, Loss, Scale

EPSILON = 1e-4
"""Added to the standard deviation in Eq. 1, as in TRL."""


def total_reward(rewards: Tensor, weights: Tensor) -> Tensor:
    """r_i = Σ_k λ_k R_k(o_i), Eq. 5: [R] from rewards [R, K] and their weights λ [K]."""
    return (rewards * weights).sum(1)


def _from_the_first(rows: Tensor) -> Tensor:
    """Rewards [N, M] minus the first reward of their row.

    Equal rewards become exactly 0, and so does their deviation from the mean. Without this, the mean of eight times 1.2
    is not 1.2 in floats, and Adam would turn the remainder into ordinary steps. Sums that differ only by rounding, such
    as 0.3 + 0.4 and 0.7, count as equal.
    """
    rounding = 4 * torch.finfo(rows.dtype).eps * rows.abs().amax(1, keepdim=True)
    difference = rows - rows[:, :1]
    return difference.masked_fill(difference.abs() <= rounding, 0)


def standard_deviation(rewards: Tensor, group: int, scale: Scale) -> Tensor:
    """Standard deviation (with Bessel's correction) of each row's group, or of all rows with `Scale.batch`: [R]."""
    grouped = _from_the_first(rewards.view(1, -1) if scale is Scale.batch else rewards.view(-1, group))
    count = grouped.shape[1]
    variance = (grouped - grouped.mean(1, keepdim=True)).square().mean(1) * (count / (count - 1))
    return variance.sqrt().repeat_interleave(count)


def advantages(rewards: Tensor, group: int, scale: Scale) -> Tensor:
    """A_i = (r_i - mean r) / (std r + 1e-4), Eq. 1.

    Args:
        rewards: total rewards [R]; the rows of a group are adjacent.
        group: G.
        scale: divide by the standard deviation of the group (Eq. 1), of the batch, or by nothing (Dr. GRPO).

    Returns:
        [R].
    """
    grouped = _from_the_first(rewards.view(-1, group))
    centred = (grouped - grouped.mean(1, keepdim=True)).flatten()
    return centred if scale is Scale.none else centred / (standard_deviation(rewards, group, scale) + EPSILON)


def rejection(accuracy: Tensor) -> Tensor:
    """1 where R_accuracy is 1, else 0: [R] from [R]. The step is then supervised, on the right completions (RAFT)."""
    return (accuracy == 1).float()


def silent_rows(advantages: Tensor, group: int) -> Tensor:
    """The rows of silent groups, whose advantages are all 0, so that they add nothing to the loss at β = 0: [R].

    Eq. 1 gives zeros where the rewards of a group are equal, `rejection` where none of its completions is right.
    """
    return (advantages.view(-1, group) == 0).all(1).repeat_interleave(group)


def kl(logps: Tensor, reference: Tensor) -> Tensor:
    """exp(d) - d - 1 with d = log π_ref - log π_θ, per token: [R, C]. Schulman's unbiased estimate, never negative."""
    difference = reference - logps
    return torch.exp(difference) - difference - 1


def engine_ratio(logps: Tensor, engine: Tensor, mask: Tensor, how: Correction, largest: float) -> Tensor:
    """Importance ratio π_policy / π_engine of the tokens that an engine sampled, truncated or masked.

    Args:
        logps: log-probabilities of the policy, [R, C].
        engine: log-probabilities of the engine, [R, C]; NaN where it gave none, which counts as a ratio of 1.
        mask: [R, C], True on the tokens that count.
        how: truncate or mask ratios, by token or by sequence, or do not correct; see `Correction`.
        largest: the bound on a ratio.

    Returns:
        Weights of the token losses: [R, C] by token, [R, 1] by sequence, and [R, C] of ones without correction.
    """
    if how is Correction.none:
        return torch.ones_like(logps)
    difference = ((logps - engine) * mask).nan_to_num(nan=0.0)
    if how in (Correction.sequence_truncate, Correction.sequence_mask):
        difference = difference.sum(1, keepdim=True)
    ratio = difference.exp()
    if how in (Correction.token_truncate, Correction.sequence_truncate):
        return ratio.clamp(max=largest)
    return ratio.masked_fill(ratio > largest, 0)


@dataclass(frozen=True)
class ObjectiveSettings:
    """Which variant of Eq. 2 a run minimizes."""

    loss: Loss
    """How token losses are reduced to one number, see `reduce`; CISPO also changes the token loss."""
    clip: float
    """ε: the ratio of the new to the old policy is clipped at 1 ± ε, with CISPO only at 1 + ε."""
    beta: float
    """β, the weight of the KL term."""
    max_tokens: int
    """The cap on a completion's tokens, by which Dr. GRPO divides."""


def token_losses(logps: Tensor, old: Tensor, advantages: Tensor, settings: ObjectiveSettings) -> Tensor:
    """-min(ρ A, clip(ρ, 1-ε, 1+ε) A) per token, with ρ = π_θ / π_old; CISPO: -min(ρ, 1+ε) A log π_θ, ρ as a constant.

    Args:
        logps: log π_θ [R, C].
        old: log π_old [R, C], under the policy that sampled.
        advantages: [R].
        settings: gives ε and says whether the loss is CISPO's.

    Returns:
        [R, C].
    """
    ratio, advantages, clip = torch.exp(logps - old), advantages.unsqueeze(1), settings.clip
    if settings.loss is Loss.cispo:
        # The ratio is a constant here: the gradient flows through log π_θ of every token, clipped or not.
        return -ratio.clamp(max=1 + clip).detach() * advantages * logps
    return -torch.min(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def reduce(losses: Tensor, mask: Tensor, settings: ObjectiveSettings, tokens: Tensor | float) -> Tensor:
    """Reduce token losses [R, C] to one number.

    Args:
        losses: [R, C].
        mask: [R, C], True on the tokens that count.
        settings: `grpo` averages over each completion's tokens, then over the completions (Eq. 2); `bnpo` averages over
            all tokens; `dr_grpo` divides by R times the cap on a completion's tokens, `dapo` and `cispo` by `tokens`.
        tokens: the divisor of `dapo` and `cispo`, see `EchoInkTrainer._tokens_of_step`.
    """
    summed, loss = losses * mask, settings.loss
    if loss is Loss.grpo:
        return (summed.sum(-1) / mask.sum(-1).clamp(min=1.0)).mean()
    if loss is Loss.bnpo:
        return summed.sum() / mask.sum().clamp(min=1.0)
    if loss is Loss.dr_grpo:
        return summed.sum() / (len(losses) * settings.max_tokens)
    return summed.sum() / tokens


class Objective(NamedTuple):
    """What `objective` returns."""

    loss: Tensor
    """[], to be minimized."""
    kl: Tensor | None
    """KL per token [R, C], None without a reference."""


def objective(
    logps: Tensor,
    old: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    settings: ObjectiveSettings,
    tokens: Tensor | float,
    reference: Tensor | None = None,
    weights: Tensor | None = None,
) -> Objective:
    """L = -1/G Σ_i 1/|o_i| Σ_t [w min(ρ A_i, clip(ρ) A_i) - β KL_it], Eq. 2, or a variant of it.

    Args:
        logps: log π_θ [R, C].
        old: log π_old [R, C].
        advantages: [R].
        mask: [R, C], True on the tokens that count.
        settings: the loss, ε and β.
        tokens: see `reduce`.
        reference: log π_ref [R, C]; None where β is 0.
        weights: w, [R, C] or [R, 1], see `engine_ratio`; None means 1.
    """
    divergence = None if reference is None else kl(logps, reference)
    losses = token_losses(logps, old, advantages, settings)
    if weights is not None:
        losses = losses * weights
    if divergence is not None:
        losses = losses + settings.beta * divergence
    return Objective(reduce(losses, mask, settings, tokens), divergence)
