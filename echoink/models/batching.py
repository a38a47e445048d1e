"""Prompts as rows of a batch: padded tokens, positions, and the media of every row.

Shapes: A position axes, B prompts, R rows (a row is one completion with its prompt), P prompt tokens, C completion
tokens. Masks are 1 where there is a token. Prompts are padded on the left, completions on the right.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from echoink.models.family import PromptInputs


def prompt_batch(prompts: Sequence[PromptInputs]) -> dict[str, Tensor]:
    """Left-padded inputs of B prompts: `input_ids`, `attention_mask` [B, P], `position_ids` [A, B, P] and media."""
    rows = [prompt.input_ids for prompt in prompts]
    # Pad with 0: nothing attends to it, so any token but a placeholder will do.
    ids, mask = (
        pad_sequence(of, batch_first=True, padding_side="left") for of in (rows, [torch.ones_like(row) for row in rows])
    )
    prompt_index = range(len(prompts))
    positions = row_positions(prompts, prompt_index, ids.shape[1], 0)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions, **row_media(prompts, prompt_index)}


def row_positions(
    prompts: Sequence[PromptInputs], prompt_index: Sequence[int], prompt_width: int, completion_width: int
) -> Tensor:
    """Positions [A, R, P + C]. Completion token j stands at `next_position + j` on all axes.

    Args:
        prompts: the unique prompts.
        prompt_index: for each row, the index of its prompt.
        prompt_width: P.
        completion_width: C.
    """
    axes = len(prompts[0].position_ids)
    positions = torch.zeros((axes, len(prompt_index), prompt_width + completion_width), dtype=torch.long)
    steps = torch.arange(completion_width)
    for row, index in enumerate(prompt_index):
        prompt = prompts[index]
        positions[:, row, prompt_width - prompt.position_ids.shape[1] : prompt_width] = prompt.position_ids
        positions[:, row, prompt_width:] = prompt.next_position + steps
    return positions


def row_media(prompts: Sequence[PromptInputs], prompt_index: Sequence[int]) -> dict[str, Tensor]:
    """Media tensors of the rows, in their order. The media of a prompt are repeated for each of its rows.

    Tensors of one name are padded with zeros to the same shape, apart from their first axis: spectrograms of sounds of
    different lengths, for example. A name that no prompt has is absent.
    """
    parts: dict[str, list[Tensor]] = {}
    for index in prompt_index:
        for name, value in prompts[index].media.items():
            parts.setdefault(name, []).append(value)
    return {name: torch.cat(_padded(values)) for name, values in parts.items()}


def _padded(values: list[Tensor]) -> list[Tensor]:
    shape = [max(sizes) for sizes in zip(*(value.shape[1:] for value in values), strict=True)]
    if all(list(value.shape[1:]) == shape for value in values):
        return values
    found = []
    for value in values:
        room = [size - own for size, own in zip(shape, value.shape[1:], strict=True)]
        found.append(torch.nn.functional.pad(value, [side for size in reversed(room) for side in (0, size)]))
    return found
