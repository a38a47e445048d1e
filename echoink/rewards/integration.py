r"""Rewards that are meant to pay for using both hearing and seeing. `reward.integration` names the rule.

`experiments/integration.md` has what was measured. Where one way of answering describes both media and the other does
not, rewards that know nothing of the media (`reward=control_length`, `reward=control_mention`) end as high as
`counterfactual`. Where both describe both media, `counterfactual` prefers the wrong way and makes training worse, and
`twin` is the one rule that has brought back some of what a shortcut takes, beyond its controls. A claim about fusion
has to beat all of them.

A bonus that is the same for every right completion of a group does nothing: Eq. 1 subtracts and divides it away. So
what is paid must differ within a group, or act after the normalization.

    counterfactual  R_int,i = R_acc,i (1 - exp(-max(0, c_i) / s))
                    c_i = min_m mean_t [log pi(o_it | q) - log pi(o_it | q \ m)]
    need            A_i <- A_i (1 + lambda_int [the group needs both])
    twin            R_int,i = R_acc,i [for each sense m: R_acc(o_i^m) = 0 and readable if q needs m, else = 1]

`counterfactual` measures how much likelier the policy finds completion o_i with both senses than without sound, and
than without sight (\ m: the medium is removed from the prompt), in nats per token. A completion that is as likely with
one sense alone earns nothing, even if right. s is `reward.integration_scale`. It costs three scoring passes
without gradient, each group's prompt once.

`need` answers each prompt G more times without sound and G times without sight, and weighs the whole group where its
own answers are right more often than both: one-sided Fisher exact test at `ALPHA`, the margin that the noise of G
draws asks for. At three equal rates it fires in less than 0.3 % of groups of 8, a bare "more often than both" in a
quarter (and "more often than one" in two fifths).

`twin` changes a sense instead of removing it. For each sense m that medium is replaced by another sample's, which has
another answer to the same question (`ablations.make`), and the policy answers again with the same random numbers as
o_i: this is o_i^m. A right answer is paid if it changes with each sense that the question needs (the field `need` of
its row: audio, image or both), and stays right when another sense changes. A group's prompt is answered G more times
for each sense. A question without such a label, or without a donor, is paid nothing. `redraw` is its control: it pays
by the same formula, and its twins are asked the same question with the same media and the noise of the group's next two
completions, so G is at least 3. It knows the same labels and draws as many answers, and touches no medium.

Two published rules, for comparison, with the same further rollouts:

    omnivideo_r1    1 where completion i is not worse than its i-th counterpart without sound and without sight; it pays
                    where all three are wrong, and where one sense suffices
    video_r1        R_acc,i where the group's accuracy is at least 0.8 of that without sound and of that without sight
                    (there: of shuffled frames); the same for all right completions, so Eq. 1 leaves nothing of it

A prompt that does not have both senses is paid nothing and weighs 1.

Shapes: R = B·G rows (completions), G group, M = 2 senses, C completion tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from echoink.common.statistics import more_often
from echoink.rewards.types import Rule

ALPHA = 0.05
"""Level of the test behind `need`."""

TWINS = (Rule.twin, Rule.redraw)
"""Rules that pay for answers that change."""

ANSWERS_AGAIN = (Rule.need, *TWINS, Rule.omnivideo_r1, Rule.video_r1)
"""Rules that need completions of the changed prompts."""


def gain(full: Tensor, ablated: Tensor, mask: Tensor) -> Tensor:
    """c_i [R]: how much likelier each completion is with both senses than without either, in nats a token.

    Args:
        full: log-probabilities [R, C] under the full prompt.
        ablated: [M, R, C] under the prompts without a sense.
        mask: [R, C], True on the completions' tokens.
    """
    found = ((full - ablated) * mask).sum(-1) / mask.sum(-1).clamp(min=1)
    return found.amin(0)


def counterfactual(right: Tensor, gains: Tensor, scale: float) -> Tensor:
    """R_int [R], see the module's docstring; c ≤ 0 and wrong completions get 0, c = s gives 0.63."""
    return right * (1 - torch.exp(-gains.clamp(min=0) / scale))


def needs_both(right: Tensor, ablated: Tensor, group: int) -> Tensor:
    """For each group whether it needs both senses: [B].

    Args:
        right: [R], R_acc of the full prompt's completions; less than 1 is not right.
        ablated: [M, R], of the prompts without a sense.
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
        right: [R], R_acc of the completions.
        twins: [M, R], R_acc of their twins under a change of each sense.
        readable: [M, R], whether a twin has an answer that can be read; True and False.
        needed: [M, R], whether the question needs the sense.
    """
    as_needed = torch.where(needed, (twins == 0) & readable, twins == 1)
    return (right == 1) * as_needed.all(0).float()


PAYS = {Rule.omnivideo_r1: omnivideo_r1, Rule.video_r1: video_r1}
"""The rules that pay by completions of the ablated prompts."""


def padded(completions: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids [R, C] and their mask, padded at the end."""
    rows = [torch.tensor(tokens) for tokens in completions]
    mask = pad_sequence([torch.ones_like(row, dtype=torch.bool) for row in rows], batch_first=True)
    return pad_sequence(rows, batch_first=True).to(device), mask.to(device)
