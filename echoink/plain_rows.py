"""Log-probabilities as TRL computes them: each completion is a row with its prompt and its media.

The oracle for `shared_prefix` in the tests, the baseline in the benchmark, and what `grpo.shared_prefix=false` runs.

Shapes: R rows, P prompt and C completion tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from echoink.processing import PromptInputs, row_media, row_positions


def score(
    model: torch.nn.Module,
    prompts: Sequence[PromptInputs],
    owner: Sequence[int],
    input_ids: Tensor,
    attention_mask: Tensor,
    completion_width: int,
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities and entropies of completion tokens, each row with its prompt and its media again.

    Args:
        model: a thinker after TRL's `add_fused_lm_head`, possibly wrapped.
        prompts: the unique prompts.
        owner: for each of the R rows the index of its prompt.
        input_ids: [R, P + C], prompts padded on the left, completions on the right.
        attention_mask: [R, P + C].
        completion_width: C.

    Returns:
        Log-probabilities [R, C] and entropies alike, or None where the head computes none.
    """
    labels = input_ids.masked_fill(attention_mask == 0, -100)
    labels[:, :-completion_width] = -100
    positions = row_positions(prompts, owner, input_ids.shape[1] - completion_width, completion_width)
    media = {name: value.to(input_ids.device) for name, value in row_media(prompts, owner).items()}
    output = model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=positions.to(input_ids.device),
        labels=labels,
        fused_lm_head=True,
        in_loss=True,
        **media,
    )
    entropy = None if output.entropy is None else output.entropy[:, -completion_width:]
    return output.log_probs[:, -completion_width:], entropy
