"""Log-probabilities of completions.

`packed_logprobs` computes each prompt once for its group.

`plain_row_logprobs` computes them as TRL does: each completion is a row with its prompt and its media. It is the oracle
for `packed_logprobs` in the tests, the baseline in the benchmark, and what `grpo.shared_prefix=false` runs.

Shapes: B prompts, G group, R = B·G rows, P prompt tokens, C completion tokens.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from echoink.models.batching import row_media, row_positions
from echoink.models.family import Features, PromptInputs
from echoink.models.shared_prefix import pack


def has_dropout(model: torch.nn.Module) -> bool:
    """Whether a model drops units in training, as an adapter may."""
    return any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in model.modules())


@contextmanager
def without_dropout(model: torch.nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode, so an adapter's dropout is off; afterwards its mode is restored."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def plain_row_logprobs(
    model: torch.nn.Module,
    prompts: Sequence[PromptInputs],
    prompt_index: Sequence[int],
    input_ids: Tensor,
    attention_mask: Tensor,
    completion_width: int,
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities and entropies of completion tokens; each row repeats its prompt and its media.

    Args:
        model: a model after TRL's `add_fused_lm_head`, possibly wrapped.
        prompts: the unique prompts.
        prompt_index: for each of the R rows, the index of its prompt.
        input_ids: [R, P + C], prompts padded on the left, completions on the right.
        attention_mask: [R, P + C], 1 where there is a token.
        completion_width: C.

    Returns:
        Log-probabilities [R, C]; entropies [R, C], or None if the head computes none.
    """
    labels = input_ids.masked_fill(attention_mask == 0, -100)
    labels[:, :-completion_width] = -100
    positions = row_positions(prompts, prompt_index, input_ids.shape[1] - completion_width, completion_width)
    media = {name: value.to(input_ids.device) for name, value in row_media(prompts, prompt_index).items()}
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


def packed_logprobs(
    model: torch.nn.Module,
    prompts: Sequence[PromptInputs],
    features: Sequence[Features] | None,
    prompt_index: Sequence[int],
    completion_ids: Tensor,
    scored: Tensor,
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities and entropies of completion tokens, with one computation of each group's prompt.

    Args:
        model: a model after `install` and TRL's `add_fused_lm_head`, possibly wrapped.
        prompts: the unique prompts.
        features: features of the same prompts; None lets the model encode their media, with gradients.
        prompt_index: for each of the R rows, the index of its prompt; the rows of a group are adjacent.
        completion_ids: [R, C].
        scored: [R, C], True from a row's first token up to the last one that is needed; at least one is True. Rows and
            groups without any are left out.

    Returns:
        Log-probabilities [R, C], 0 where not scored; entropies likewise, or None if the head computes none.
    """
    lengths, ids = scored.sum(1).tolist(), completion_ids.cpu()
    groups: dict[int, list[Tensor]] = {}
    for row, index in enumerate(prompt_index):
        if lengths[row]:
            groups.setdefault(index, []).append(ids[row, : lengths[row]])
    chosen = [prompts[index] for index in groups]
    packed = pack(chosen, list(groups.values()))
    device = completion_ids.device
    output = model(
        input_ids=packed.input_ids.to(device),
        position_ids=packed.position_ids.to(device),
        layout=packed.layout,
        prompts=chosen,
        features=None if features is None else [features[index] for index in groups],
        shift_labels=packed.labels.to(device),
        fused_lm_head=True,
    )

    def rows(values: Tensor) -> Tensor:
        return values.new_zeros(scored.shape).masked_scatter(scored, values)

    return rows(output.log_probs), None if output.entropy is None else rows(output.entropy)


def without_silent_groups(
    prompts: Sequence[PromptInputs], prompt_index: Sequence[int], completion_mask: Tensor, silent: Tensor
) -> Tensor:
    """The tokens that the loss needs if groups whose advantages are all 0 (silent groups) add nothing to it.

    A weight that only silent groups use still needs a gradient of zero: without one, an optimizer with momentum or
    weight decay behaves differently. So a silent group keeps one token if it has a kind of medium that no group that
    counts has; if no group counts, the first one keeps a token too.

    Args:
        prompts: the unique prompts.
        prompt_index: for each of the R rows, the index of its prompt.
        completion_mask: [R, C], True on the completions' tokens.
        silent: [R], True on the rows of silent groups.

    Returns:
        `scored` for `packed_logprobs`, [R, C].
    """
    scored = completion_mask & ~silent.unsqueeze(1)
    reached = {name for row in (~silent).nonzero().flatten().tolist() for name in prompts[prompt_index[row]].media}
    any_group = bool((~silent).any())
    for row in silent.nonzero().flatten().tolist():
        media = set(prompts[prompt_index[row]].media)
        if not any_group or not media <= reached:
            scored[row, 0], any_group = True, True
            reached |= media
    return scored
