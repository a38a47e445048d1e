r"""Rewards that are meant to pay for using both hearing and seeing. `reward.integration` names the rule.

`experiments/integration.md` has the measurements. If only one of two ways of answering describes both media, rewards
that know nothing of the media (`reward=control_length`, `reward=control_mention`) end as high as `counterfactual`. If
both ways describe both media, `counterfactual` prefers the wrong way and makes training worse, and `twin` is the only
rule that recovers more of the accuracy lost to a shortcut than its controls do. A claim about fusion must beat all of
them.

A bonus that is the same for every right completion of a group has hardly any effect: Eq. 1 subtracts and divides it
away. So a bonus must differ within a group, or act after the normalization.

    counterfactual  R_int,i = R_acc,i (1 - exp(-max(0, c_i) / s))
                    c_i = min_m mean_t [log pi(o_it | q) - log pi(o_it | q \ m)]
    need            A_i <- A_i (1 + lambda_int [the group needs both])
    twin            R_int,i = R_acc,i [for each sense m: R_acc(o_i^m) = 0 and readable if q needs m, else = 1]

`counterfactual` measures how much more likely completion o_i is under the policy with both senses than without sound,
and than without sight (\ m: the medium is removed from the prompt), in nats per token. A completion that is as likely
with one sense alone earns nothing, even if it is right. s is `reward.integration_scale`. The rule costs three scoring
passes without gradient; each pass computes a group's prompt once.

`need` answers each prompt G more times without sound and G times without sight. It weights the whole group if its own
answers are right more often than both of these: Fisher's exact test, one-sided, at level `ALPHA`, the margin that the
noise of G draws requires. If all three rates are equal, the test is positive in at most 0.3 % of groups of 8; without
the test, "more often than both" would hold in up to a quarter, and "more often than without sound" in two fifths.

`twin` changes a sense instead of removing it. For each sense m the medium is replaced by another sample's, whose
answer differs (if possible to the same question, see `ablations.make`), and the policy answers again with the same
random numbers as for o_i: this is o_i^m. A right answer is paid if it changes with each sense that the question needs
(the field `need` of its row: audio, image or both), and stays right when another sense changes. A group's prompt is
answered G more times for each sense. A question without such a label, or without a donor, is paid nothing. `redraw` is
the control: it pays by the same formula, but its twins answer the same question with the same media and the noise of
the group's next two completions, so G is at least 3. It uses the same labels and as many answers; the media stay.

Two published rules, for comparison, with the same additional rollouts as `need`:

    omnivideo_r1    1 if completion i is not worse than its i-th counterparts without sound and without sight; it also
                    pays if all three are wrong, or if one sense suffices
    video_r1        R_acc,i if the group's accuracy is at least 0.8 of that without sound and of that without sight
                    (published: with shuffled frames); equal for all right completions, so Eq. 1 removes it

A prompt that does not have both senses is paid nothing and has weight 1.

Shapes: R = B·G rows (completions), G group, M = 2 senses, C completion tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from echoink.common.statistics import more_often
from echoink.rewards.types import Rule

ALPHA = 0.05
"""Significance level of the test behind `need`."""


def gain(full: Tensor, ablated: Tensor, mask: Tensor) -> Tensor:
    """c_i [R]: how much more likely each completion is with both senses than without one of them, in nats per token.

    Args:
        full: log-probabilities under the full prompt, [R, C].
        ablated: log-probabilities under the prompts without each sense, [M, R, C].
        mask: [R, C], True on the completions' tokens.
    """
    found = ((full - ablated) * mask).sum(-1) / mask.sum(-1).clamp(min=1)
    return found.amin(0)


def counterfactual(right: Tensor, gains: Tensor, scale: float) -> Tensor:
    """R_int [R], see the module's docstring; wrong completions and c ≤ 0 give 0, c = s gives 0.63."""
    return right * (1 - torch.exp(-gains.clamp(min=0) / scale))


def needs_both(right: Tensor, ablated: Tensor, group: int) -> Tensor:
    """Whether each group needs both senses: [B].

    Args:
        right: R_acc of the full prompt's completions, [R]; less than 1 is not right.
        ablated: R_acc of the completions without each sense, [M, R].
        group: G.
    """
    full = (right == 1).view(-1, group).sum(1).tolist()
    best = (ablated == 1).view(len(ablated), -1, group).sum(2).amax(0).tolist()
    fires = [more_often(one, other, group) <= ALPHA for one, other in zip(full, best, strict=True)]
    return torch.tensor(fires, device=right.device)


def omnivideo_r1(right: Tensor, ablated: Tensor, group: int) -> Tensor:
    """[R], see the module's docstring; arguments as of `needs_both`."""
    return (right >= ablated).all(0).float()


def video_r1(right: Tensor, ablated: Tensor, group: int) -> Tensor:
    """[R], see the module's docstring; arguments as of `needs_both`."""
    full = right.view(-1, group).mean(1)
    other = ablated.view(len(ablated), -1, group).mean(2)
    return right * (full >= 0.8 * other).all(0).repeat_interleave(group)


def twin(right: Tensor, twins: Tensor, readable: Tensor, needed: Tensor) -> Tensor:
    """R_int [R], see the module's docstring.

    Args:
        right: R_acc of the completions, [R].
        twins: R_acc of their twins under a change of each sense, [M, R].
        readable: whether a twin's answer can be read, [M, R], boolean.
        needed: whether the question needs the sense, [M, R], boolean.
    """
    as_needed = torch.where(needed, (twins == 0) & readable, twins == 1)
    return (right == 1) * as_needed.all(0).float()


PAYS = {Rule.omnivideo_r1: omnivideo_r1, Rule.video_r1: video_r1}
"""The functions of the published rules, which compare with completions of the ablated prompts."""


def padded(completions: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and their mask, [R, C], padded at the end."""
    rows = [torch.tensor(tokens) for tokens in completions]
    mask = pad_sequence([torch.ones_like(row, dtype=torch.bool) for row in rows], batch_first=True)
    return pad_sequence(rows, batch_first=True).to(device), mask.to(device)
